// Drives the pins of a verilated board: its clock, and a UART at the other end of its serial line.
// RESET(on) sets the pins that reset the board, LEDS has a bit for each LED that shines. Times are
// counted in parts of a clock, so that bits need not be whole numbers of clocks.

#include <cstdint>
#include <memory>

#include "Vcelosia.h"
#include "verilated.h"

namespace {

constexpr int kBits = 10;  // of a character: start, 8 data, stop
constexpr int kResetClocks = 16;

}  // namespace

extern "C" {

// Has the layout of `_Slice` in board.py.
struct Slice {
    const uint8_t* input;  // bytes for the board
    uint64_t size;
    uint64_t sent;
    uint8_t* output;  // room for bytes from it
    uint64_t capacity;
    uint64_t received;
    uint64_t quiet;  // clocks since anything happened on the line, in any slice
};

class Board {
public:
    Board(uint64_t bit_parts, uint64_t clock_parts)
        : bit_parts{static_cast<int64_t>(bit_parts)}
        , clock_parts{static_cast<int64_t>(clock_parts)} {
        power_up();
    }

    ~Board() { model->final(); }

    void reset() {
        auto& pins = *model;
        RESET(1);
        for (int i = 0; i < kResetClocks; ++i) clock();
        RESET(0);
    }

    void run(Slice& x, uint64_t limit, bool is_break) {
        for (; limit && x.received < x.capacity; --limit) {
            transmit(x, is_break);
            model->clk = 0;
            model->eval();
            receive(x);
            model->clk = 1;
            model->eval();
            ++clocks;
            const bool is_quiet = !sending && !receiving && !is_break;
            quiet = is_quiet ? quiet + 1 : 0;
        }
        x.quiet = quiet;
    }

    uint64_t leds() const {
        const auto& pins = *model;
        (void)pins;
        return LEDS;
    }

    uint64_t clocks = 0;

private:
    void power_up() {
        model = std::make_unique<Vcelosia>(&context);
        auto& pins = *model;
        RESET(0);
        pins.rx = 1;
    }

    void clock() {
        model->clk = 0;
        model->eval();
        model->clk = 1;
        model->eval();
        ++clocks;
    }

    void transmit(Slice& x, bool is_break) {
        const bool is_going_on = sending;
        if (sending) {
            send_left -= clock_parts;
            if (send_left <= 0) {
                send_left += bit_parts;
                send_bits >>= 1;
                --sending;
            }
        }
        if (!sending && x.sent < x.size && !is_break) {
            send_bits = 0x200 | x.input[x.sent++] << 1;
            sending = kBits;
            // Else what is left over of the last bit of the character before goes on.
            if (!is_going_on) send_left = bit_parts;
        }
        model->rx = !is_break && (!sending || (send_bits & 1));
    }

    void receive(Slice& x) {
        const bool level = model->tx;
        if (!receiving) {
            if (level) return;
            receiving = kBits;
            receive_left = bit_parts / 2;
            return;
        }
        receive_left -= clock_parts;
        if (receive_left > 0) return;
        receive_left += bit_parts;
        receive_bits = receive_bits >> 1 | level << (kBits - 1);
        if (--receiving) return;
        // Without a stop bit it is left out, as UARTs do.
        if (level) x.output[x.received++] = receive_bits >> 1;
    }

    VerilatedContext context;
    std::unique_ptr<Vcelosia> model;
    const int64_t bit_parts;
    const int64_t clock_parts;
    int sending = 0;  // bits left
    uint32_t send_bits = 0;
    int64_t send_left = 0;
    int receiving = 0;
    uint32_t receive_bits = 0;
    int64_t receive_left = 0;
    uint64_t quiet = 0;
};

#define EXPORT __attribute__((visibility("default")))

EXPORT Board* board_create(uint64_t bit_parts, uint64_t clock_parts) {
    return new Board{bit_parts, clock_parts};
}

EXPORT void board_destroy(Board* board) { delete board; }

EXPORT void board_reset(Board* board) { board->reset(); }

EXPORT uint64_t board_clocks(const Board* board) { return board->clocks; }

EXPORT uint64_t board_leds(const Board* board) { return board->leds(); }

EXPORT void board_run(Board* board, Slice* slice, uint64_t limit, int is_break) {
    board->run(*slice, limit, is_break != 0);
}

}  // extern "C"

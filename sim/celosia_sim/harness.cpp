// Drives the two AXI4-Streams of a verilated accelerator. LINK_BYTES is the size of a link word.
// A word lies in memory as in a packet, little-endian.

#include <cstdint>
#include <cstring>

#include "Vcelosia.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using Trace = VerilatedVcdC;
#endif

namespace {

template <class Port>
void store(Port& port, const uint8_t* data) {
    std::memcpy(&port, data, LINK_BYTES);
}

template <class Port>
void load(const Port& port, uint8_t* data) {
    std::memcpy(data, &port, LINK_BYTES);
}

// splitmix64
struct Random {
    uint64_t state;

    // True with a probability of threshold / 2^32.
    bool below(uint64_t threshold) {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return (z ^ z >> 31) >> 32 < threshold;
    }
};

}  // namespace

extern "C" {

// Has the layout of `_Exchange` in compiled.py. Clocks count from the creation of the simulation.
struct Exchange {
    const uint8_t* command;  // words to send
    const uint8_t* command_ends;  // a byte for each: 1 if it ends a packet
    uint64_t words;
    uint64_t sent;
    uint8_t* result;  // room for received words
    uint8_t* result_ends;
    uint64_t capacity;
    uint64_t received;
    uint64_t replies;  // packets still to be received
    uint64_t idle;  // clocks since a word moved
    uint64_t first_command;  // clocks at which words were accepted
    uint64_t last_command;
    uint64_t last_result;
};

class Simulation {
public:
    Simulation(const char* trace_path, uint64_t seed, double command_stall, double result_stall)
        : model{&context}
        , random{seed}
        , command_stall{threshold(command_stall)}
        , result_stall{threshold(result_stall)} {
#if VM_TRACE
        context.traceEverOn(true);
        model.trace(&trace, 99);
        trace.open(trace_path);
#else
        (void)trace_path;
#endif
        reset();
    }

    ~Simulation() {
        model.final();
#if VM_TRACE
        trace.close();
#endif
    }

    void reset() {
        valid = false;
        model.s_axis_tvalid = 0;
        model.s_axis_tkeep = ~uint64_t{0} >> (64 - LINK_BYTES);
        model.m_axis_tready = 0;
        model.aresetn = 0;
        for (int i = 0; i < 4; ++i) {
            settle();
            edge();
        }
        model.aresetn = 1;
    }

    // Simulates until everything is done, `limit` clocks have passed, no word has moved for
    // `patience` clocks, or the room for results is full.
    void run(Exchange& x, uint64_t limit, uint64_t patience) {
        static const uint8_t garbage[LINK_BYTES] = {0xa5, 0x5a, 0xff};
        for (; limit && x.idle < patience && x.received < x.capacity; --limit) {
            if (x.sent == x.words && !x.replies) break;
            if (!valid) {
                valid = x.sent < x.words && !random.below(command_stall);
                model.s_axis_tvalid = valid;
                if (valid) {
                    store(model.s_axis_tdata, x.command + x.sent * LINK_BYTES);
                    model.s_axis_tlast = x.command_ends[x.sent];
                } else if (command_stall) {  // data without valid mean nothing
                    store(model.s_axis_tdata, garbage);
                    model.s_axis_tlast = 1;
                }
            }
            model.m_axis_tready = !random.below(result_stall);
            settle();
            const bool sending = valid && model.s_axis_tready;
            const bool receiving = model.m_axis_tready && model.m_axis_tvalid;
            if (receiving) {
                load(model.m_axis_tdata, x.result + x.received * LINK_BYTES);
                const bool last = model.m_axis_tlast;
                x.result_ends[x.received++] = last;
                x.replies -= last && x.replies;
                x.last_result = clocks;
            }
            if (sending) {
                if (!x.sent++) x.first_command = clocks;
                x.last_command = clocks;
                valid = false;
            }
            x.idle = sending || receiving ? 0 : x.idle + 1;
            edge();
        }
#if VM_TRACE
        trace.flush();
#endif
    }

    uint64_t clocks = 0;

private:
    static uint64_t threshold(double probability) {
        return static_cast<uint64_t>(probability * 4294967296.0);
    }

    // Outputs for the present inputs.
    void settle() {
        model.aclk = 0;
        model.eval();
        dump();
    }

    void edge() {
        model.aclk = 1;
        model.eval();
        dump();
        ++clocks;
    }

    void dump() {
#if VM_TRACE
        trace.dump(clocks * 10 + (model.aclk ? 5 : 0));
#endif
    }

    VerilatedContext context;
#if VM_TRACE
    Trace trace;
#endif
    Vcelosia model;
    Random random;
    const uint64_t command_stall;
    const uint64_t result_stall;
    bool valid = false;
};

#define EXPORT __attribute__((visibility("default")))

EXPORT Simulation* celosia_create(const char* trace_path, uint64_t seed, double command_stall,
                                  double result_stall) {
    return new Simulation{trace_path, seed, command_stall, result_stall};
}

EXPORT void celosia_destroy(Simulation* simulation) { delete simulation; }

EXPORT void celosia_reset(Simulation* simulation) { simulation->reset(); }

EXPORT uint64_t celosia_clocks(const Simulation* simulation) { return simulation->clocks; }

EXPORT void celosia_run(Simulation* simulation, Exchange* exchange, uint64_t limit,
                        uint64_t patience) {
    simulation->run(*exchange, limit, patience);
}

}  // extern "C"

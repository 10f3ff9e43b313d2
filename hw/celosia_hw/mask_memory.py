"""Mask bits and biases of key tiles on their way to the lanes."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import BIAS_BITS, MASK_TILES, Widths
from .config import AcceleratorConfig
from .pipeline import clamp, delayed
from .protocol import mask_tile_words
from .ram import ram
from .timing import MASK_READ

__all__ = ["MaskMemory", "MaskStep"]


class MaskStep(data.StructLayout):
    """The key at hand.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    row : unsigned
        Key of the tile.
    place : unsigned
        Where the tile's mask bits and biases are.
    masked, biased : 1
        Whether it has mask bits, and biases.
    bias_shift : unsigned(3)
    slope_bias : signed
        Bias of the key where it has none of its own.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "row": range(config.key_rows),
                "place": range(MASK_TILES),
                "masked": 1,
                "biased": 1,
                "bias_shift": 3,
                "slope_bias": signed(Widths(config).log_score),
            }
        )


class MaskMemory(wiring.Component):
    """Keeps mask tiles and gives each lane the mask bit and the bias of its key.

    Latency `LATENCY` clocks from the step to lane 0, one more for each lane; a key every clock.
    There is no back-pressure; who writes must know that a place is free.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    write_mask, write_bias : In(1)
        Strobes, beside the following.
    write_place, write_row, write_word, write_data : In
        Place of the tile, for biases row of the tile, word of the tile or row, and the link word.
    step : In
        `MaskStep` of lane 0.
    allowed, biases : Out
        For each lane.
    """

    LATENCY = MASK_READ

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        bias = signed(Widths(config).log_score)
        words = max(mask_tile_words(config), config.words(2 * config.query_lanes), 2)
        super().__init__(
            {
                "write_mask": In(1),
                "write_bias": In(1),
                "write_place": In(range(MASK_TILES)),
                "write_row": In(range(config.key_rows)),
                "write_word": In(range(words)),
                "write_data": In(config.link_bits),
                "step": In(MaskStep(config)),
                "allowed": Out(config.query_lanes),
                "biases": Out(data.ArrayLayout(bias, config.query_lanes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        self._masks(m)
        step = self.step
        for lane in range(self._config.query_lanes):
            self._bias(m, lane, step)
            following = Signal(MaskStep(self._config), name=f"step_{lane + 1}", reset_less=True)
            m.d.sync += following.eq(step)
            step = following
        return m

    def _masks(self, m: Module) -> None:
        """Rows of one bit a lane, several to a word; lane c takes its bit c clocks later."""
        config, step = self._config, self.step
        lanes, per_word, words = config.query_lanes, config.mask_keys, mask_tile_words(config)
        storage = ram(config.link_bits, MASK_TILES * words)
        m.submodules.masks = storage
        write, read = storage.write_port(), storage.read_port()
        m.d.comb += [
            write.addr.eq(self.write_place * words + self.write_word),
            write.data.eq(self.write_data),
            write.en.eq(self.write_mask),
            read.addr.eq(
                step.place * words + Array(r // per_word for r in range(config.key_rows))[step.row]
            ),
        ]
        select = Signal(range(max(per_word, 2)))
        m.d.sync += select.eq(Array(r % per_word for r in range(config.key_rows))[step.row])
        rows = Array(read.data[i * lanes : (i + 1) * lanes] for i in range(per_word))
        row = Signal(lanes)
        m.d.sync += row.eq(rows[select] | (~delayed(m, step.masked, 1, "masked")).replicate(lanes))
        bits = delayed(m, row, 1, "row")
        for lane in range(lanes):
            m.d.comb += self.allowed[lane].eq(bits[0])
            if lane < lanes - 1:
                bits = delayed(m, bits[1:], 1, f"row_{lane + 1}")

    def _bias(self, m: Module, lane: int, step) -> None:
        config = self._config
        rows, per_word = config.key_rows, config.link_bits // BIAS_BITS
        storage = ram(signed(BIAS_BITS), MASK_TILES * rows)
        m.submodules[f"bias_{lane}"] = storage
        write, read = storage.write_port(), storage.read_port()
        m.d.comb += [
            write.addr.eq(self.write_place * rows + self.write_row),
            write.data.eq(self.write_data.word_select(lane % per_word, BIAS_BITS)),
            write.en.eq(self.write_bias & (self.write_word == lane // per_word)),
            read.addr.eq(step.place * rows + step.row),
        ]
        # One clock after the step the memory has its number, two clocks after it is shifted.
        beside = delayed(m, step.as_value(), 1, f"beside_{lane}")
        beside = data.View(MaskStep(config), beside)
        shape = self.biases[lane].shape()
        bias = Signal(shape, name=f"bias_{lane}", reset_less=True)
        chosen = Signal(shape, name=f"chosen_{lane}", reset_less=True)
        m.d.sync += [
            chosen.eq(
                Mux(
                    beside.biased,
                    clamp(read.data.as_signed() << beside.bias_shift, shape),
                    beside.slope_bias,
                )
            ),
            bias.eq(chosen),
        ]
        m.d.comb += self.biases[lane].eq(bias)

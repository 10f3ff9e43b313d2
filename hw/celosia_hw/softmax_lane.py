"""One lane of the streaming softmax: the scores of one query become weights and a row sum."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import FACTOR_BITS, GAIN_BITS, OPERAND_BITS, Exp2Table, Widths
from .config import AcceleratorConfig
from .multiplier import multiply
from .pipeline import (
    clamp,
    delayed,
    halve_and_clamp,
    is_greater,
    round_shift,
    shift_right_twice,
)
from .timing import MAXIMUM, Timing

__all__ = ["LaneStep", "SoftmaxLane"]

SHIFT_BITS = 6
"""Bits of a right shift of sums; larger ones are saturated, which shifts everything out."""


class LaneStep(data.StructLayout):
    """What accompanies the keys from lane to lane; every member keeps its own time.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    key_factor, value_factor : unsigned(16)
        Of the key at hand.
    load_factor, load_interval : 1
        The lane takes its query factor, its key interval.
    score_shift : unsigned(6)
    position : unsigned
        Number of the key at hand, from the first of the query tile.
    log_first, log_last, log_fresh : 1
        First and last key of a tile, and first tile of a query tile, at the maximum.
    sum_first, sum_last, sum_fresh, sum_final : 1
        The same and last tile of a query tile, at the row sum.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "key_factor": FACTOR_BITS,
                "value_factor": FACTOR_BITS,
                "load_factor": 1,
                "load_interval": 1,
                "score_shift": SHIFT_BITS,
                "position": range(config.key_capacity),
                "log_first": 1,
                "log_last": 1,
                "log_fresh": 1,
                "sum_first": 1,
                "sum_last": 1,
                "sum_fresh": 1,
                "sum_final": 1,
            }
        )


class SoftmaxLane(wiring.Component):
    """Streaming softmax of one query: scale, bias, mask, maximum, exponential, row sum, weight.

    Throughput: a score a clock, without a gap between tiles. Latency from a score to its weight:
    ``Timing.weight - Timing.score`` clocks, which includes waiting for the tile's maximum. The
    row sum leaves four clocks after the last probability. There is no back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    score : In
    allowed, bias : In
        Mask bit and bias of the key, beside ``step.position``.
    step, next_step : In, Out
        `LaneStep` of this lane, and one clock later that of the next.
    query_factor : In(16)
        Beside ``step.load_factor``.
    low, high : In
        Key interval [low, high), beside ``step.load_interval``.
    initial_maximum, initial_total : In
        State to start from, also beside ``step.load_interval``.
    weight : Out
    rescale_valid, rescale : Out
        For each tile: the right shift of the sums so far.
    total_valid, total, final_maximum : Out
        Row sum of a query tile and the maximum that it refers to; zero while not valid.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._widths = widths = Widths(config)
        super().__init__(
            {
                "score": In(signed(widths.score)),
                "allowed": In(1),
                "bias": In(signed(widths.log_score)),
                "step": In(LaneStep(config)),
                "next_step": Out(LaneStep(config)),
                "query_factor": In(FACTOR_BITS),
                "low": In(signed(18)),
                "high": In(signed(18)),
                "initial_maximum": In(signed(widths.maximum)),
                "initial_total": In(widths.total),
                "weight": Out(widths.probability),
                "rescale_valid": Out(1),
                "rescale": Out(SHIFT_BITS),
                "total_valid": Out(1),
                "total": Out(widths.total),
                "final_maximum": Out(signed(widths.maximum)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.sync += self.next_step.eq(self.step)
        log_score, allowed = self._log_score(m, platform), self._allowed(m)
        maximum, rescale = self._maximum(m, log_score, allowed)
        log_score, allowed = self._wait(m, log_score, allowed)
        probability = self._probability(m, log_score, allowed, maximum)
        self._row_sum(m, probability, rescale, maximum)
        self._weigh(m, platform, probability)
        return m

    def _log_score(self, m: Module, platform) -> Signal:
        """`arithmetic.log_score`, `arithmetic.biased`."""
        stages = self._config.multiplier_stages
        query_factor = Signal(FACTOR_BITS, reset_less=True)
        with m.If(self.step.load_factor):
            m.d.sync += query_factor.eq(self.query_factor)

        gain = Signal(GAIN_BITS, reset_less=True)
        operand = Signal(signed(OPERAND_BITS), reset_less=True)
        factors = multiply(m, query_factor, self.step.key_factor, stages, "factors", platform)
        m.d.sync += [
            gain.eq(round_shift(factors, 2 * FACTOR_BITS - GAIN_BITS)),
            operand.eq(round_shift(self.score, self._widths.score_drop)),
        ]
        product = multiply(m, operand, gain, stages, "scaled", platform)
        # One fraction bit more, by which the result is rounded.
        shifted = shift_right_twice(
            m, Cat(Const(0, 1), product).as_signed(), self.step.score_shift, "shifted"
        )
        log_score = Signal(signed(self._widths.log_score), reset_less=True)
        biased = Signal.like(log_score, name="biased")
        m.d.sync += [
            log_score.eq(halve_and_clamp(shifted, log_score.shape())),
            biased.eq(clamp(log_score + self.bias, biased.shape())),
        ]
        return biased

    def _allowed(self, m: Module) -> Signal:
        """Whether the key lies in the lane's interval and is not masked."""
        low = Signal.like(self.low, name="interval_low", reset_less=True)
        high = Signal.like(self.high, name="interval_high", reset_less=True)
        with m.If(self.step.load_interval):
            m.d.sync += [low.eq(self.low), high.eq(self.high)]
        allowed = Signal(reset_less=True)
        inside = (self.step.position >= low) & (self.step.position < high)
        m.d.sync += allowed.eq(inside & self.allowed)
        return allowed

    def _maximum(self, m: Module, log_score: Signal, allowed: Signal) -> tuple[Signal, Signal]:
        """`arithmetic.running_maximum`, and the shift by which sums so far are rescaled."""
        widths = self._widths
        tile_maximum = Signal.like(log_score, name="tile_maximum", reset_less=True)
        with m.If(self.step.log_first):
            m.d.sync += tile_maximum.eq(Mux(allowed, log_score, widths.lowest_log_score))
        with m.Elif(allowed & is_greater(log_score, tile_maximum)):
            m.d.sync += tile_maximum.eq(log_score)

        last = delayed(m, self.step.log_last, 2, "log_last")
        fresh = delayed(m, self.step.log_fresh, 1, "log_fresh")
        ceiling = Signal(signed(widths.maximum), reset_less=True)
        m.d.sync += ceiling.eq((tile_maximum + ((1 << widths.fraction) - 1)) >> widths.fraction)

        maximum = Signal(signed(widths.maximum), reset_less=True)
        previous = Signal(signed(widths.maximum), reset_less=True)
        initial = Signal(signed(widths.maximum), reset_less=True)
        with m.If(self.step.load_interval):
            m.d.sync += initial.eq(self.initial_maximum)
        # Beside the ceiling; it last changed long before.
        old = Signal(signed(widths.maximum), name="old_maximum", reset_less=True)
        m.d.sync += old.eq(Mux(fresh, initial, maximum))
        with m.If(last):
            m.d.sync += [previous.eq(old), maximum.eq(Mux(ceiling > old, ceiling, old))]

        rise = Signal(widths.shift)
        rescale = Signal(SHIFT_BITS, reset_less=True)
        top = (1 << SHIFT_BITS) - 1
        m.d.comb += rise.eq(maximum - previous)
        m.d.sync += rescale.eq(Mux(rise > top, top, rise))
        return maximum, rescale

    def _wait(self, m: Module, log_score: Signal, allowed: Signal) -> tuple[Value, Value]:
        """Hold log scores back until the tile's maximum is known."""
        depth = Timing(self._config).delay_line
        width = len(log_score) + 1
        m.submodules.delay_line = line = memory.Memory(shape=width, depth=depth, init=[])
        write, read = line.write_port(), line.read_port()
        place = Signal(range(depth))
        oldest = Signal(range(depth), init=1)
        m.d.sync += [place.eq(oldest), oldest.eq(Mux(oldest == depth - 1, 0, oldest + 1))]
        m.d.comb += [
            write.addr.eq(place),
            write.data.eq(Cat(log_score, allowed)),
            write.en.eq(1),
            read.addr.eq(oldest),
        ]
        return read.data[:-1].as_signed(), read.data[-1]

    def _probability(self, m: Module, log_score: Value, allowed: Value, maximum: Signal) -> Signal:
        """`arithmetic.Exp2Table.probability` of the distance from the maximum."""
        table, widths = Exp2Table(self._config), self._widths
        fraction_bits, low_bits = widths.fraction, table.low_bits
        bits = widths.probability

        # -(M - z) = fraction - whole, as M has no fraction.
        whole = Signal(widths.shift, reset_less=True)
        fraction = Signal(fraction_bits, reset_less=True)
        m.d.sync += [
            whole.eq(maximum - (log_score >> fraction_bits)),
            fraction.eq(log_score[:fraction_bits]),
        ]

        base = Signal(range(max(table.bases) + 1), reset_less=True)
        slope = Signal(range(max(table.slopes) + 1), reset_less=True)
        low = Signal(low_bits, reset_less=True)
        shift = Signal(range(table.GUARD + table.max_shift + 1), reset_less=True)
        segment = fraction[low_bits:]
        m.d.sync += [
            base.eq(Array(Const(b, base.shape()) for b in table.bases)[segment]),
            slope.eq(Array(Const(s, slope.shape()) for s in table.slopes)[segment]),
            low.eq(fraction[:low_bits]),
            shift.eq(table.GUARD + Mux(whole > table.max_shift, table.max_shift, whole)),
        ]

        growth = Signal(len(slope) + low_bits, reset_less=True)
        mantissa = Signal(table.table_fraction + 1, reset_less=True)
        m.d.sync += [
            growth.eq(slope * low),
            mantissa.eq(delayed(m, base, 1, "base") + round_shift(growth, table.SLOPE_FRACTION)),
        ]

        shifted = Signal(bits + 2, reset_less=True)
        probability = Signal(bits, reset_less=True)
        rounded = round_shift(shifted, 1)
        m.d.sync += [
            shifted.eq(Cat(Const(0, 1), mantissa) >> delayed(m, shift, 2, "shift")),
            probability.eq(
                Mux(delayed(m, allowed, 5, "allowed"), Mux(rounded[bits], -1, rounded), 0)
            ),
        ]
        return probability

    def _row_sum(self, m: Module, probability: Signal, rescale: Signal, maximum: Signal) -> None:
        """Add the tile's probabilities up, then to the rescaled row sum."""
        step, widths = self.step, self._widths
        tile_bits = widths.probability + (self._config.key_rows - 1).bit_length()
        partial = Signal(tile_bits, reset_less=True)
        m.d.sync += partial.eq(Mux(step.sum_first, 0, partial) + probability)

        m.d.comb += [self.rescale_valid.eq(step.sum_first), self.rescale.eq(rescale)]
        shift = Signal(SHIFT_BITS, reset_less=True)
        fresh = Signal(reset_less=True)
        with m.If(step.sum_first):
            m.d.sync += [shift.eq(rescale), fresh.eq(step.sum_fresh)]

        total = Signal(widths.total, reset_less=True)
        rescaled = Signal(widths.total, reset_less=True)
        tile_sum = Signal.like(partial, name="tile_sum", reset_less=True)
        initial = Signal(widths.total, reset_less=True)
        with m.If(step.load_interval):
            m.d.sync += initial.eq(self.initial_total)
        m.d.sync += [rescaled.eq(Mux(fresh, initial, total) >> shift), tile_sum.eq(partial)]
        with m.If(delayed(m, step.sum_last, 2, "sum_last")):
            m.d.sync += total.eq(rescaled + tile_sum)

        final = delayed(m, step.sum_last & step.sum_final, 3, "final")
        # The maximum changes before the row sum is complete.
        first_maximum, last_maximum = (
            Signal.like(maximum, name=f"{place}_maximum", reset_less=True)
            for place in ("first", "last")
        )
        with m.If(step.sum_first):
            m.d.sync += first_maximum.eq(maximum)
        with m.If(step.sum_last):
            m.d.sync += last_maximum.eq(Mux(step.sum_first, maximum, first_maximum))
        m.d.sync += [
            self.total_valid.eq(final),
            self.total.eq(Mux(final, total, 0)),
            self.final_maximum.eq(Mux(final, last_maximum, 0)),
        ]

    def _weigh(self, m: Module, platform, probability: Signal) -> None:
        """`arithmetic.weight`."""
        product = multiply(
            *(m, probability, self.step.value_factor),
            *(self._config.multiplier_stages, "weighted", platform),
        )
        m.d.comb += self.weight.eq(delayed(m, round_shift(product, FACTOR_BITS), 1, "weight"))


assert MAXIMUM == 3  # the stages of SoftmaxLane._maximum: tile maximum, ceiling, maximum

"""Division of accumulated outputs by their row sums."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import (
    ALIGN_GUARD,
    MAX_RESULT_FRACTION,
    OPERAND_BITS,
    RECIPROCAL_BITS,
    RESULT_BITS,
    Widths,
)
from .config import AcceleratorConfig
from .multiplier import multiply
from .pipeline import clamp, delayed, round_shift, shift_right_twice

__all__ = ["Normalizer"]


class Normalizer(wiring.Component):
    """`arithmetic.normalize` of `normalizer_lanes` values a clock.

    Latency ``multiplier_stages + 6`` clocks (`latency`). There is no back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    outputs : In
        Accumulated outputs.
    mantissas, lengths : In
        Reciprocals of their row sums.
    result_fraction : In(4)
    results : Out
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        widths, lanes = Widths(config), config.output_lanes
        self.latency = config.multiplier_stages + 6
        super().__init__(
            {
                "outputs": In(data.ArrayLayout(signed(widths.accumulator), lanes)),
                "mantissas": In(data.ArrayLayout(RECIPROCAL_BITS, lanes)),
                "lengths": In(data.ArrayLayout(range(widths.total + 1), lanes)),
                "result_fraction": In(range(MAX_RESULT_FRACTION + 1)),
                "results": Out(data.ArrayLayout(signed(RESULT_BITS), lanes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        for lane in range(self._config.output_lanes):
            result = self._lane(m, platform, lane)
            m.d.comb += self.results[lane].eq(result)
        return m

    def _lane(self, m: Module, platform, lane: int) -> Signal:
        stages = self._config.multiplier_stages
        output = delayed(m, self.outputs[lane], 1, f"output_{lane}")
        right = Signal(6, name=f"right_{lane}", reset_less=True)
        m.d.sync += right.eq(self.lengths[lane] + (MAX_RESULT_FRACTION - self.result_fraction))

        # One fraction bit more, by which the aligned value is rounded.
        left = Const(0, MAX_RESULT_FRACTION + ALIGN_GUARD + 1)
        shifted = shift_right_twice(m, Cat(left, output).as_signed(), right, f"shifted_{lane}")
        rounded = delayed(m, round_shift(shifted, 1), 1, f"rounded_{lane}")
        aligned = Signal(signed(OPERAND_BITS), name=f"aligned_{lane}", reset_less=True)
        m.d.sync += aligned.eq(clamp(rounded, aligned.shape()))

        mantissa = delayed(m, self.mantissas[lane], 5, f"mantissa_{lane}")
        product = multiply(m, aligned, mantissa, stages, f"quotient_{lane}", platform)
        result = Signal(signed(RESULT_BITS), name=f"result_{lane}", reset_less=True)
        rounded = round_shift(product, RECIPROCAL_BITS - 1 + ALIGN_GUARD)
        m.d.sync += result.eq(clamp(rounded, result.shape()))
        return result

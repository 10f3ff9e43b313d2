"""The second systolic array: weights of a tile of keys times their values."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import ELEMENT_BITS, Widths
from .config import AcceleratorConfig
from .multiplier import Operand, multiply
from .pipeline import delayed

__all__ = ["ValueArray"]


class ValueArray(wiring.Component):
    """Weight-stationary systolic array of `key_rows` x `query_lanes` processing elements.

    The weights of a tile enter a column at the top, key 0 first, and sink through shadow
    registers while the tile before is in use; key 0 ends in the last row, so values enter the
    rows in reverse. A tag beside the first value row makes each element take its weight over.

    Throughput: a tile every ``max(value dimension, key_rows)`` clocks without a gap. Latency:
    ``key_rows + multiplier_stages + 1 + c`` clocks from a value row to its partial sum in
    lane c. There is no back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    weights : In
        One weight per lane, lane c delayed by c clocks.
    load : In(1)
        Beside each weight of lane 0, one clock earlier.
    load_first : In(1)
        Beside the first weight (key 0) of lane 0, one clock earlier.
    values : In
        ``V[0..R-1, t]``, signed; the first `key_rows` clocks after the tile's first weight or
        later, but no later than the first weight of the next tile.
    swap : In(1)
        Beside the first value row of a tile.
    partials : Out
        One partial sum per lane, lane c delayed by c clocks.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        widths = Widths(config)
        self._weight = unsigned(widths.probability)
        self._partial = signed(widths.partial)
        super().__init__(
            {
                "weights": In(data.ArrayLayout(self._weight, config.query_lanes)),
                "load": In(1),
                "load_first": In(1),
                "values": In(data.ArrayLayout(signed(ELEMENT_BITS), config.key_rows)),
                "swap": In(1),
                "partials": Out(data.ArrayLayout(self._partial, config.query_lanes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        rows, lanes = self._config.key_rows, self._config.query_lanes

        left = [delayed(m, self.values[rows - 1 - r], r, f"value_skew_{r}") for r in range(rows)]
        tags = [self.swap]
        for r in range(1, rows):
            tags.append(delayed(m, tags[-1], 1, f"swap_row_{r}"))

        load, load_first = self.load, self.load_first
        for c in range(lanes):
            self._column(m, platform, c, load, load_first, left, tags)
            load = delayed(m, load, 1, f"load_{c}")
            load_first = delayed(m, load_first, 1, f"load_first_{c}")
        return m

    def _column(
        self, m: Module, platform, c: int, load, load_first, left: list, tags: list
    ) -> None:
        above, partial, enable_above = self.weights[c], None, None
        for r in range(self._config.key_rows):
            # Row r takes part from the tile's weight r on: before that its shadow is still
            # the last tile's, which its element takes over no sooner.
            enable = Signal(name=f"enable_{r}_{c}")
            m.d.sync += enable.eq(load if r == 0 else load & ~load_first & enable_above)
            value = Signal(signed(ELEMENT_BITS), name=f"value_{r}_{c}", reset_less=True)
            shadow = Signal(self._weight, name=f"shadow_{r}_{c}", reset_less=True)
            weight = Signal(self._weight, name=f"weight_{r}_{c}", reset_less=True)
            total = Signal(self._partial, name=f"partial_{r}_{c}", reset_less=True)
            m.d.sync += value.eq(left[r])
            with m.If(enable):
                m.d.sync += shadow.eq(above)
            with m.If(tags[r]):
                m.d.sync += weight.eq(shadow)
            product = multiply(
                *(m, Operand(left[r], value), Operand(shadow, weight, tags[r])),
                *(self._config.multiplier_stages, f"product_{r}_{c}", platform),
            )
            m.d.sync += total.eq(product if partial is None else partial + product)
            left[r], tags[r] = value, delayed(m, tags[r], 1, f"swap_{r}_{c}")
            above, partial, enable_above = shadow, total, enable
        m.d.comb += self.partials[c].eq(partial)

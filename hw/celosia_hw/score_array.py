"""The first systolic array: scores of a tile of keys with a tile of queries."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import ELEMENT_BITS, Widths
from .config import AcceleratorConfig
from .multiplier import Operand, multiply
from .pipeline import Steps, delayed

__all__ = ["ScoreArray"]


class ScoreArray(wiring.Component):
    """Output-stationary systolic array of `key_rows` x `query_lanes` processing elements.

    Element (r, c) accumulates ``K[r, t] * Q[c, t]`` over t, one product a clock. Rows enter on
    the left and columns at the top, skewed by one clock each. The elements of a column finish one
    after the other, so its scores leave through one multiplexer, key 0 first, one a clock.

    Throughput: a tile every ``max(inner dimension, key_rows)`` clocks without a gap. Latency:
    ``multiplier_stages + 3 + r + c`` clocks from the last element of the inner dimension to the
    score of key r in lane c. There is no back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    keys, queries : In
        ``K[0..R-1, t]`` and ``Q[0..C-1, t]``, signed.
    first, last : In(1)
        Beside the first and the last t of a tile.
    scores : Out
        One score per lane, lane c delayed by c clocks.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        element = signed(ELEMENT_BITS)
        self._score = signed(Widths(config).score)
        super().__init__(
            {
                "keys": In(data.ArrayLayout(element, config.key_rows)),
                "queries": In(data.ArrayLayout(element, config.query_lanes)),
                "first": In(1),
                "last": In(1),
                "scores": Out(data.ArrayLayout(self._score, config.query_lanes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        rows, lanes = self._config.key_rows, self._config.query_lanes
        stages = self._config.multiplier_stages

        left = [delayed(m, self.keys[r], r, f"key_skew_{r}") for r in range(rows)]
        top = [delayed(m, self.queries[c], c, f"query_skew_{c}") for c in range(lanes)]
        # The tag of a tile's first product travels beside the products.
        tags = [delayed(m, self.first, 1 + stages, "first")]
        for r in range(1, rows):
            tags.append(delayed(m, tags[-1], 1, f"first_row_{r}"))

        sums = [
            [self._element(m, platform, r, c, left, top, tags) for c in range(lanes)]
            for r in range(rows)
        ]

        m.submodules.drain = drain = Steps(rows)
        m.d.comb += [
            drain.start.eq(delayed(m, self.last, 1 + stages, "last")),
            drain.count_minus_one.eq(rows - 1),
        ]
        select = drain.index
        for c in range(lanes):
            column = Array(sums[r][c] for r in range(rows))
            score = Signal(self._score, name=f"score_{c}", reset_less=True)
            m.d.sync += score.eq(column[select])
            m.d.comb += self.scores[c].eq(score)
            select = delayed(m, select, 1, f"select_{c}")
        return m

    def _element(
        self, m: Module, platform, r: int, c: int, left: list, top: list, tags: list
    ) -> Signal:
        """One processing element; moves what enters row r and column c one element on."""
        key = Signal(signed(ELEMENT_BITS), name=f"key_{r}_{c}", reset_less=True)
        query = Signal(signed(ELEMENT_BITS), name=f"query_{r}_{c}", reset_less=True)
        total = Signal(self._score, name=f"sum_{r}_{c}", reset_less=True)
        m.d.sync += [key.eq(left[r]), query.eq(top[c])]
        product = multiply(
            *(m, Operand(left[r], key), Operand(top[c], query)),
            *(self._config.multiplier_stages, f"product_{r}_{c}", platform),
        )
        m.d.sync += total.eq(Mux(tags[r], 0, total) + product)
        left[r], top[c] = key, query
        tags[r] = delayed(m, tags[r], 1, f"first_{r}_{c}")
        return total

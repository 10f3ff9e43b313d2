"""Walks query tiles over their key tiles."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import ANCHOR_BITS, MASK_TILES, MAX_RESULT_FRACTION, SLOPE_BITS
from .config import AcceleratorConfig
from .softmax_lane import SHIFT_BITS
from .timing import Timing

__all__ = ["QueryJob", "Sequencer", "TileRecord"]

ACCUMULATOR_BANKS = 2


def _tile_members(config: AcceleratorConfig) -> dict:
    return {
        "tag": 8,
        "slot": range(config.slots),
        "base": range(config.slots * config.max_head_dim),
        "last_value_dim": range(config.accumulator_depth),
        "score_shift": SHIFT_BITS,
        "result_fraction": range(MAX_RESULT_FRACTION + 1),
        "low_step": 1,
        "high_step": 1,
        "low": signed(16),
        "high": signed(16),
        "limit": 16,
        "banks": config.key_banks,
        "query_buffer": 1,
        "intervals": 1,
        "mask": 1,
        "bias": 1,
        "bias_shift": 3,
        "slope": SLOPE_BITS,
        "slope_shift": 5,
        "anchor": signed(ANCHOR_BITS),
        "product": 1,
        "load_state": 1,
        "store_state": 1,
    }


def _is_masked(job: data.View) -> Value:
    return job.mask | job.bias


class QueryJob(data.StructLayout):
    """A query tile to attend with; its queries are in a query buffer.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    slot, base : unsigned
        First key tile, and the row where its keys and values start.
    last_tile, last_dim, last_value_dim, last_clock : unsigned
        Key tiles, head dimensions and clocks per key tile, each less one.
    banks : unsigned
        Key banks that are read, one bit each.
    is_listed : 1
        Whether the key tiles after the first are listed.
    query_buffer : 1
    tag, score_shift, result_fraction, low_step, high_step, low, high, limit
        As in `protocol.ATTEND_FIELDS`.
    intervals, mask, bias, bias_shift, slope, slope_shift, anchor
        As in `protocol.EXTENSION_FIELDS`.
    product : 1
        A MULTIPLY; the reply is a PRODUCT.
    load_state, store_state : 1
        As in `protocol.ATTEND_FIELDS`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                **_tile_members(config),
                "last_tile": range(config.slots),
                "is_listed": 1,
                "last_dim": range(config.max_head_dim),
                "last_clock": range(config.pitch(config.max_head_dim, config.max_head_dim)),
            }
        )


class TileRecord(data.StructLayout):
    """One key tile of a query tile.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    first, last : 1
        First and last key tile of the query tile.
    position : unsigned
        Number of its first key, from the first of the query tile.
    slot, base : unsigned
        Of this key tile.
    banks, query_buffer, tag, score_shift, ...
        As in `QueryJob`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                **_tile_members(config),
                "first": 1,
                "last": 1,
                "position": range(config.key_capacity),
            }
        )


class Sequencer(wiring.Component):
    """Reads the key and query rows of one tile after the other.

    A query tile starts when it has arrived and a bank of accumulators is free (credit), so that
    nothing behind it ever waits; a key tile with mask bits or biases when these have arrived.
    Throughput: a key tile every `AcceleratorConfig.pitch` clocks, without a gap between query tiles
    of the same head dimensions; two query tiles start at least `query_lanes` clocks apart, and
    after a change of head dimensions the pipeline waits for one old head dimension. Before and
    after a query tile that starts from a state the distance is `Timing.state_gap` clocks, and
    between ATTENDs and MULTIPLYs the pipeline runs empty.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    job : In
        Stream of `QueryJob`.
    bank_free : In(1)
        Strobe: a bank of accumulators is handed back.
    summed_up : In(1)
        Strobe: a query tile has left the pipeline.
    mask_arrived : In(1)
        Strobe: mask bits and biases of a key tile.
    list_start, list_group, list_advance, list_offset
        As in `TileList`.
    key_row, query_row : Out
        Rows to read.
    row_first, row_last : Out(1)
        Beside the first and last row of a tile.
    tile_valid, tile : Out
        Event and `TileRecord` beside the last row; all later steps count from here.
    started : Out(1)
        Strobe: a query tile starts in the next clock.
    steps : Out
        Multiply-accumulates that this tile takes in each processing element, beside the event.
    lacks_input, lacks_output : Out(1)
        Idle, as no query tile has arrived; as no bank is free.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._masked = Signal()
        rows = config.slots * config.max_head_dim
        super().__init__(
            {
                "job": In(stream.Signature(QueryJob(config))),
                "bank_free": In(1),
                "summed_up": In(1),
                "mask_arrived": In(1),
                "list_start": Out(1),
                "list_group": Out(1),
                "list_advance": Out(1),
                "list_offset": In(range(config.slots)),
                "key_row": Out(range(rows)),
                "query_row": Out(range(2 * config.max_head_dim)),
                "row_first": Out(1),
                "row_last": Out(1),
                "tile_valid": Out(1),
                "tile": Out(TileRecord(config)),
                "started": Out(1),
                "steps": Out(range(2 * config.max_head_dim + 1)),
                "lacks_input": Out(1),
                "lacks_output": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self._config
        depth = config.max_head_dim
        new = self.job.payload
        job = Signal(QueryJob(config), reset_less=True)
        running = Signal()
        clock = Signal.like(job.last_clock)
        tiles_left = Signal.like(job.last_tile)
        own = {
            name: Signal.like(self.tile[name], name=name)
            for name in ("first", "slot", "base", "position")
        }

        # A key tile waits for its mask.
        paused = Signal()
        # What decides on the next tile is a register of its own, as much depends on it.
        tile_end = Signal()
        is_last = Signal()
        query_end = Signal()
        before_end = Signal.like(clock)
        ends = running & ~paused & ~tile_end & (clock == before_end)
        m.d.sync += [
            before_end.eq(job.last_clock - 1),
            tile_end.eq(ends),
            query_end.eq(ends & is_last),
        ]
        masks = Signal(range(MASK_TILES + 1))
        start = self._start(m, new, job, running, query_end, masks != 0)
        following = running & (paused | tile_end & ~is_last)
        ready = ~_is_masked(job) | (masks != 0)
        used = Mux(start, _is_masked(new), following & ready & _is_masked(job))
        m.d.sync += [masks.eq(masks + self.mask_arrived - used), paused.eq(following & ~ready)]

        # The first row of a tile follows, or the last one.
        begins = start | following & ready
        last_dim = Mux(start, new.last_dim, job.last_dim)
        ends_row = running & ~paused & (clock + 1 == job.last_dim)
        m.d.sync += [
            self.row_first.eq(begins),
            self.row_last.eq(Mux(begins, last_dim == 0, ends_row)),
        ]

        next_tile = self._next_tile(m, job, own, start, tile_end)
        m.d.sync += clock.eq(Mux(tile_end | paused, 0, clock + 1))
        with m.If(tile_end):
            m.d.sync += [
                running.eq(~query_end),
                tiles_left.eq(tiles_left - 1),
                is_last.eq(tiles_left == 1),
                own["first"].eq(0),
                *(own[name].eq(value) for name, value in next_tile.items()),
                self.key_row.eq(next_tile["base"]),
                self.query_row.eq(Mux(job.query_buffer, depth, 0)),
            ]
        with m.Elif(~paused):
            m.d.sync += [
                self.key_row.eq(self.key_row + 1),
                self.query_row.eq(self.query_row + 1),
            ]
        with m.If(start):
            m.d.sync += [
                running.eq(1),
                clock.eq(0),
                job.eq(new),
                tiles_left.eq(new.last_tile),
                is_last.eq(new.last_tile == 0),
                own["first"].eq(1),
                own["slot"].eq(new.slot),
                own["base"].eq(new.base),
                own["position"].eq(0),
                self.key_row.eq(new.base),
                self.query_row.eq(Mux(new.query_buffer, depth, 0)),
            ]

        rest = [name for name in _tile_members(config) if name not in own]
        m.d.comb += [self.tile[name].eq(job[name]) for name in rest]
        m.d.comb += [self.tile[name].eq(value) for name, value in own.items()]
        m.d.comb += [
            self.tile.last.eq(is_last),
            self.tile_valid.eq(self.row_last),
            self.steps.eq(job.last_dim + 1 + Mux(job.product, 0, job.last_value_dim + 1)),
        ]
        idle = ~running | query_end
        m.d.comb += self.lacks_input.eq(paused | idle & (~self.job.valid | ~self._masked))
        return m

    def _next_tile(self, m: Module, job, own: dict, start, tile_end) -> dict[str, Value]:
        """Slot, base and position of the key tile after this one."""
        config = self._config
        m.d.comb += [
            self.list_start.eq(start),
            self.list_group.eq(self.job.payload.query_buffer),
            self.list_advance.eq(tile_end),
        ]
        listed = {
            "slot": job.slot + self.list_offset,
            "base": job.base + self.list_offset * config.max_head_dim,
            "position": self.list_offset * config.key_rows,
        }
        steps = {"slot": 1, "base": config.max_head_dim, "position": config.key_rows}
        result = {}
        for name, value in listed.items():
            # The list is read long before the tile ends.
            register = Signal(own[name].shape(), name=f"listed_{name}", reset_less=True)
            m.d.sync += register.eq(value)
            result[name] = Mux(job.is_listed, register, own[name] + steps[name])
        return result

    def _start(self, m: Module, new, job, running: Signal, query_end, has_mask) -> Signal:
        """Whether a query tile starts in the next clock."""
        credit = Signal(range(ACCUMULATOR_BANKS + 1), init=ACCUMULATOR_BANKS)
        start = self.started
        m.d.sync += credit.eq(credit + self.bank_free - start)

        # Lanes take their query factors one a clock, and a state until they have used it.
        longest = max(Timing(self._config).state_gap, self._config.query_lanes - 1)
        gap = Signal(range(longest + 1))
        had_state = Signal()
        with m.If(start):
            m.d.sync += [gap.eq(longest), had_state.eq(new.load_state)]
        with m.Elif(gap != 0):
            m.d.sync += gap.eq(gap - 1)
        has_state = new.load_state | had_state
        spaced = gap <= Mux(has_state, 0, longest - (self._config.query_lanes - 1))

        # What comes out of the score array goes one way or the other.
        in_flight = Signal(range(8))
        is_product = Signal()
        m.d.sync += in_flight.eq(in_flight + start - self.summed_up)
        with m.If(start):
            m.d.sync += is_product.eq(new.product)
        apart = (in_flight != 0) & (new.product != is_product)

        # A shorter inner dimension must not catch up with the tile before.
        settle = Signal(range(self._config.max_head_dim + 1))
        with m.If(query_end):
            m.d.sync += settle.eq(job.last_dim + 1)
        with m.Elif(settle != 0):
            m.d.sync += settle.eq(settle - 1)

        # A clock after the conditions: they change by a start, or for the better; the mask tile is
        # not taken by another key tile, as that one does not end so soon.
        permitted = self.job.valid & ~start & (credit != 0) & spaced & ~apart & self._masked
        same = (new.last_dim == job.last_dim) & (new.last_value_dim == job.last_value_dim)
        may_follow = Signal()
        may_begin = Signal()
        m.d.sync += [
            may_follow.eq(permitted & same),
            may_begin.eq(permitted & (same | ~query_end & (settle <= 1))),
        ]
        idle = ~running | query_end
        m.d.comb += [
            start.eq(Mux(running, query_end & may_follow, may_begin)),
            self._masked.eq(~_is_masked(new) | has_mask),
            self.job.ready.eq(start),
            self.lacks_output.eq(idle & self.job.valid & (credit == 0)),
        ]
        return start

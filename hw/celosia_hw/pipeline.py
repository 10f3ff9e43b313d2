"""Small building blocks of the pipeline: rounding, delayed events, counted steps."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "EventDelay",
    "Steps",
    "clamp",
    "delayed",
    "halve_and_clamp",
    "is_greater",
    "round_shift",
    "shift_right_twice",
]


def delayed(m: Module, value: Value, clocks: int, name: str, *, has_events: bool = False) -> Value:
    """`value`, `clocks` clocks later.

    Reset clears a single bit, which may be an event, and more of them with `has_events`. Data stay,
    as the way of reset to every register is long.
    """
    is_data = len(value) > 1 and not has_events
    for clock in range(clocks):
        register = Signal(value.shape(), name=f"{name}_{clock + 1}", reset_less=is_data)
        m.d.sync += register.eq(value)
        value = register
    return value


def round_shift(value: Value, shift: int) -> Value:
    """`arithmetic.round_shift` by a constant."""
    if shift == 0:
        return value
    return (value + (1 << (shift - 1))) >> shift


def clamp(value: Value, shape: Shape) -> Value:
    """Saturate a signed value to a narrower signed shape."""
    if len(value) <= shape.width:
        return value
    sign, dropped = value[-1], value[shape.width - 1 : -1]
    fits = (dropped == 0) & ~sign | dropped.all() & sign
    limit = Cat((~sign).replicate(shape.width - 1), sign)
    return Mux(fits, value[: shape.width], limit).as_signed()


def halve_and_clamp(value: Value, shape: Shape) -> Value:
    """``clamp(round_shift(value, 1), shape)``.

    Whether it saturates is found beside the sum, but for one bit, instead of after it.
    """
    width = shape.width
    if len(value) <= width:
        return round_shift(value, 1)
    sign = value[-1]
    result = (value[: width + 1] + 1)[1 : width + 1]
    dropped = value[width:-1]
    fits = Mux(sign, dropped.all(), (dropped == 0) & ~result[-1])
    limit = Cat((~sign).replicate(width - 1), sign)
    return Mux(fits, result, limit).as_signed()


def is_greater(a: Value, b: Value) -> Value:
    """``a > b`` of signed values of the same width, from the carry alone.

    With the sign flipped they compare as unsigned numbers do.
    """
    return Cat(a[:-1], ~a[-1]) > Cat(b[:-1], ~b[-1])


def shift_right_twice(
    m: Module, value: Value, amount: Value, name: str, *, clear: Value | None = None
) -> Signal:
    """``value >> amount`` two clocks later, by eights and then by ones.

    Parameters
    ----------
    amount : Value
        6 bits, beside `value`.
    clear : Value, optional
        Gives zero instead, beside `value`.
    """
    shape = value.shape()
    coarse = Signal(shape, name=f"{name}_coarse", reset_less=True)
    fine = Signal(shape, name=f"{name}_fine", reset_less=True)
    rest = Signal(3, name=f"{name}_rest", reset_less=True)
    shifted = value >> Cat(Const(0, 3), amount[3:6])
    m.d.sync += [
        coarse.eq(shifted if clear is None else Mux(clear, 0, shifted)),
        rest.eq(amount[:3]),
        fine.eq(coarse >> rest),
    ]
    return fine


class EventDelay(wiring.Component):
    """Hands an event and its record on after a fixed number of clocks.

    Latency `delay` clocks, exactly. Events come at least `spacing` clocks apart; records wait in
    a ring as deep as the events that fit the delay, the last clock in a register. There is no
    back-pressure.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the record.
    delay : int
        At least 1.
    spacing : int
        Smallest number of clocks between two events.

    Members
    -------
    i_valid, i : In
        The event and its record.
    o_valid, o : Out
        The same, `delay` clocks later. The record holds in that clock only.
    """

    def __init__(self, shape, delay: int, spacing: int) -> None:
        if delay < 1:
            raise ValueError(f"delay must be at least 1, not {delay}")
        self._shape = shape
        self._delay = delay
        self._depth = (delay - 1) // spacing + 1
        super().__init__({"i_valid": In(1), "i": In(shape), "o_valid": Out(1), "o": Out(shape)})

    def elaborate(self, platform) -> Module:
        m = Module()
        line = Signal(self._delay)
        m.d.sync += line.eq(Cat(self.i_valid, line))
        m.d.comb += self.o_valid.eq(line[-1])

        record = Signal.like(Value.cast(self.o), name="record", reset_less=True)
        m.d.comb += Value.cast(self.o).eq(record)
        if self._depth == 1:
            with m.If(self.i_valid):
                m.d.sync += record.eq(self.i)
        else:
            self._ring(m, line[-2], record)
        return m

    def _ring(self, m: Module, take: Value, record: Signal) -> None:
        depth = self._depth
        write = Signal(range(depth))
        read = Signal(range(depth))
        with m.If(self.i_valid):
            m.d.sync += write.eq(Mux(write == depth - 1, 0, write + 1))
        with m.If(take):
            m.d.sync += read.eq(Mux(read == depth - 1, 0, read + 1))

        size = Shape.cast(self._shape).width
        m.submodules.ring = ring = memory.Memory(shape=size, depth=depth, init=[])
        write_port, read_port = ring.write_port(), ring.read_port(domain="comb")
        m.d.comb += [
            write_port.addr.eq(write),
            write_port.data.eq(self.i),
            write_port.en.eq(self.i_valid),
            read_port.addr.eq(read),
        ]
        m.d.sync += record.eq(read_port.data)


class Steps(wiring.Component):
    """Counts a fixed or given number of steps after each event, one a clock.

    Latency one clock from the event to step 0. An event may come with the last step of the one
    before, and no earlier. There is no back-pressure.

    Parameters
    ----------
    limit : int
        Largest number of steps.

    Members
    -------
    start : In(1)
        The event.
    count_minus_one : In
        Steps to count less one, beside `start`.
    active, index, first, last : Out
        A step, its number, and whether it is the first or the last of its event.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        super().__init__(
            {
                "start": In(1),
                "count_minus_one": In(range(max(limit, 2))),
                "active": Out(1),
                "index": Out(range(max(limit, 2))),
                "first": Out(1),
                "last": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        end = Signal.like(self.count_minus_one)
        m.d.comb += [
            self.first.eq(self.active & (self.index == 0)),
            self.last.eq(self.active & (self.index == end)),
        ]
        with m.If(self.start):
            m.d.sync += [self.active.eq(1), self.index.eq(0), end.eq(self.count_minus_one)]
        with m.Elif(self.last):
            m.d.sync += [self.active.eq(0), self.index.eq(0)]
        with m.Elif(self.active):
            m.d.sync += self.index.eq(self.index + 1)
        return m

"""The exported block between the AXI4-Stream source and sink of cocotbext-axi."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles
from cocotb.utils import get_sim_time
from cocotbext.axi import AxiStreamBus, AxiStreamFrame, AxiStreamSink, AxiStreamSource

from celosia_hw.config import AcceleratorConfig
from celosia_hw.protocol import (
    COMMAND_BYTES,
    COUNTERS_FIELDS,
    LOAD_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
    encode_header,
    key_tile_words,
)

CLOCK_NS = 10
CONFIG = AcceleratorConfig(**json.loads(os.environ["CELOSIA_BENCH_CONFIG"]))
PAUSES: dict[str, Callable[[], Iterator[bool]] | None] = {
    "never": None,
    "regular": lambda: itertools.cycle([True, True, True, False]),
    "random": lambda: (random.random() < 0.4 for _ in itertools.count()),
}


class Ports:
    """The block in reset, then ready, with a source and a sink."""

    def __init__(self, dut: Any) -> None:
        self._dut = dut
        cocotb.start_soon(Clock(dut.aclk, CLOCK_NS, unit="ns").start())
        self.source, self.sink = (
            kind(AxiStreamBus.from_prefix(dut, prefix), dut.aclk, dut.aresetn, False)
            for kind, prefix in ((AxiStreamSource, "s_axis"), (AxiStreamSink, "m_axis"))
        )
        for side in (self.source, self.sink):
            side.log.setLevel("WARNING")

    async def reset(self) -> None:
        self._dut.aresetn.value = 0
        await ClockCycles(self._dut.aclk, 2)
        self._dut.aresetn.value = 1
        await ClockCycles(self._dut.aclk, 1)

    def pause(self, source: str, sink: str) -> None:
        for side, name in ((self.source, source), (self.sink, sink)):
            side.clear_pause_generator()
            side.pause = False
            generator = PAUSES[name]
            if generator is not None:
                side.set_pause_generator(generator())

    async def exchange(self, packets: list[Any], replies: int) -> list[bytes]:
        for packet in packets:
            self.source.send_nowait(packet)
        received = [bytes((await self.sink.recv()).tdata) for _ in range(replies)]
        await self.source.wait()
        return received


def identify(tag: int) -> bytes:
    return encode_header(COUNTERS_FIELDS, COMMAND_BYTES, opcode=Opcode.IDENTIFY, tag=tag)


def padded(packet: bytes) -> bytes:
    return packet.ljust(CONFIG.words(len(packet)) * CONFIG.link_bytes, b"\0")


@cocotb.test(skip="CELOSIA_BENCH_PACKETS" not in os.environ, timeout_time=20, timeout_unit="ms")
async def recorded_packets(dut: Any) -> None:
    """Every pattern of pauses on either side gives the integer model's replies."""
    with open(os.environ["CELOSIA_BENCH_PACKETS"]) as file:
        record = json.load(file)
    packets, expected = ([bytes.fromhex(p) for p in record[name]] for name in ("in", "out"))
    ports = Ports(dut)
    await ports.reset()
    for source, sink in itertools.product(PAUSES, PAUSES):
        ports.pause(source, sink)
        assert await ports.exchange(packets, len(expected)) == expected, (source, sink)
        # The last bytes of a packet may be left out where they are zeros.
        short = [packet.rstrip(b"\0") for packet in packets]
        long = [
            packet[: max(len(s), len(packet) - CONFIG.link_bytes + 1)]
            for s, packet in zip(short, packets, strict=True)
        ]
        assert await ports.exchange(long, len(expected)) == expected, (source, sink)
        assert ports.sink.empty()
        assert ports.source.empty()


@cocotb.test(skip="CELOSIA_BENCH_PACKETS" not in os.environ, timeout_time=20, timeout_unit="ms")
async def missing_bytes(dut: Any) -> None:
    """A TKEEP with gaps, or partial before the last word, is answered and forgotten."""
    ports = Ports(dut)
    await ports.reset()
    size = CONFIG.link_bytes
    header = encode_header(LOAD_FIELDS, COMMAND_BYTES, opcode=Opcode.LOAD, tag=77, tiles=1)
    packet = padded(header) + bytes(key_tile_words(CONFIG, 1, 1) * size)
    words = len(packet) // size
    for word, pattern in itertools.product(range(words), ("gap", "first", "cut", "none")):
        keep = [1] * len(packet)
        missing = {"gap": [1], "first": [0], "cut": [size - 1], "none": range(size)}[pattern]
        for place in missing:
            keep[word * size + place] = 0
        ports.source.send_nowait(AxiStreamFrame(packet, tkeep=keep))
        if word < words - 1 or pattern in ("gap", "first"):
            reply = (await ports.sink.recv()).tdata
            assert (reply[0], reply[2]) == (Reply.ERROR, ErrorCode.BAD_KEEP), (word, pattern)
            if word:  # the tag has arrived
                assert reply[1] == 77
        (reply,) = await ports.exchange([padded(identify(5))], 1)
        assert reply[:2] == bytes([Reply.IDENTITY, 5])


@cocotb.test(skip="CELOSIA_BENCH_PACKETS" not in os.environ, timeout_time=20, timeout_unit="ms")
async def reset_in_traffic(dut: Any) -> None:
    """Nothing of a packet or reply under way is left after two clocks of reset."""
    ports = Ports(dut)
    await ports.reset()
    for clocks in range(1, 60):
        ports.sink.pause = clocks % 2 == 0
        ports.source.send_nowait(padded(identify(1)))
        await ClockCycles(dut.aclk, clocks)
        await ports.reset()
        ports.source.clear()
        ports.sink.clear()
        ports.sink.pause = False
        (reply,) = await ports.exchange([padded(identify(2))], 1)
        assert reply[:2] == bytes([Reply.IDENTITY, 2]), clocks
        assert ports.sink.empty()


@cocotb.test(skip="CELOSIA_BENCH_PACKETS" not in os.environ, timeout_time=20, timeout_unit="ms")
async def packets_one_by_one(dut: Any) -> None:
    """Malformed packets are answered by their errors."""
    with open(os.environ["CELOSIA_BENCH_PACKETS"]) as file:
        pairs = json.load(file)["pairs"]
    ports = Ports(dut)
    await ports.reset()
    for packet, answers in pairs:
        replies = await ports.exchange([bytes.fromhex(packet)], len(answers))
        # An ERROR may overtake a RESULT.
        assert sorted(reply.hex() for reply in replies) == sorted(answers)


@cocotb.test(skip="CELOSIA_BENCH_SOCKET" not in os.environ)
async def serve(dut: Any) -> None:
    """Executes what a driver in another process asks for, until it hangs up."""
    ports = Ports(dut)
    await ports.reset()
    ports.pause("random", "random")
    with Client(os.environ["CELOSIA_BENCH_SOCKET"]) as connection:
        while (order := connection.recv()) is not None:
            before = get_sim_time("ns")
            replies = await ports.exchange(*order)
            connection.send((replies, round((get_sim_time("ns") - before) / CLOCK_NS)))

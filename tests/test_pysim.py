import pytest

from celosia_hw.config import preset
from celosia_hw.protocol import (
    COMMAND_BYTES,
    COUNTERS_FIELDS,
    Opcode,
    encode_header,
    parse_identity,
)
from celosia_sim.compiled import CompiledSimulation
from celosia_sim.errors import SimulationError
from celosia_sim.pysim import ComponentTransport, PysimTransport
from loopback import HANG, SWALLOW, Loopback, loopback_verilog


@pytest.mark.parametrize("width", [4, 16])
def test_packets_return_unchanged(width):
    packets = [bytes([number + 1]) * (3 * number + 1) for number in range(20)]
    transport = ComponentTransport(Loopback(width))
    expected = [packet + bytes(-len(packet) % width) for packet in packets]
    assert transport.exchange(packets, 20) == expected
    assert transport.exchange([b"\x01"], 1) == [b"\x01" + bytes(width - 1)]


def test_replies_not_asked_for_come_first_in_the_next_exchange():
    transport = ComponentTransport(Loopback(4))
    assert transport.exchange([b"\x01"] + [b"\x02"] * 3, 1) == [b"\x01\0\0\0"]
    assert transport.exchange([b"\x03"], 4) == [b"\x02\0\0\0"] * 3 + [b"\x03\0\0\0"]


def test_commands_without_replies_are_delivered():
    transport = ComponentTransport(Loopback(4))
    assert transport.exchange([bytes([SWALLOW]) * 20], 0) == []
    assert transport.clocks == 5
    assert transport.exchange([], 0) == []
    assert transport.clocks == 0


def test_timeout_resets():
    transport = ComponentTransport(Loopback(4), idle_clocks=100)
    with pytest.raises(TimeoutError, match=r"no word moved for 100 clocks: 1 of 2 .* 0 of 1"):
        transport.exchange([bytes([HANG]) * 8], 1)
    assert transport.exchange([b"\x01"], 1) == [b"\x01\0\0\0"]


def test_an_interrupted_exchange_resets():
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    transport = ComponentTransport(Loopback(4))
    with pytest.raises(KeyboardInterrupt):
        transport.exchange([b"\x01" * 4000], 1, interrupt)
    assert transport.exchange([b"\x02"], 1) == [b"\x02\0\0\0"]


def test_closed_transports_say_so():
    transport = ComponentTransport(Loopback(4))
    transport.close()
    with pytest.raises(SimulationError, match="closed"):
        transport.exchange([b"\x01"], 1)


def test_clocks_agree_with_the_compiled_simulation():
    commands = [[bytes([number]) * 4 * (number + 1)] for number in range(1, 9)]
    other = CompiledSimulation(loopback_verilog(4), 4)
    transport = ComponentTransport(Loopback(4))
    # Neither clock counts what its reset took: bring both to the same phase of the design.
    for packets in commands:
        assert transport.exchange(packets, 1) == other.exchange(packets, 1)


def test_an_accelerator_identifies_itself():
    config = preset("tiny")
    command = encode_header(COUNTERS_FIELDS, COMMAND_BYTES, opcode=Opcode.IDENTIFY)
    (reply,) = PysimTransport(config).exchange([command], 1)
    assert parse_identity(reply[config.link_bytes :])[0] == config

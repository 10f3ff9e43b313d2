"""Extended ATTENDs, states, APPENDs and MULTIPLYs: gateware against the integer model."""

import pytest

from celosia_hw.config import AcceleratorConfig, preset
from celosia_hw.protocol import (
    COMMAND_BYTES,
    COUNTERS_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
    encode_header,
    parse_statistics,
)
from celosia_sim.compiled import CompiledTransport
from celosia_sim.model_device import ModelTransport
from random_packets import KINDS, Packets, program

CONFIGS = {
    "tiny": preset("tiny"),
    "small": preset("small"),
    # More lanes than rows, three banks, the shortest multiplier, short tiles.
    "lanes": AcceleratorConfig(
        key_rows=5,
        query_lanes=8,
        max_head_dim=12,
        max_keys=40,
        key_banks=3,
        max_sequence=400,
        score_fraction_bits=8,
        link_bytes=4,
        multiplier_stages=1,
    ),
}


def compare(config, commands, replies, **stalls):
    """Replies of the gateware and of the model."""
    with CompiledTransport(config, **stalls) as sim, ModelTransport(config) as model:
        expected = model.exchange(commands, replies)
        assert sim.exchange(commands, replies) == expected
    return expected


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_kind(name, kind):
    compare(CONFIGS[name], program(CONFIGS[name], 1, [kind], 8), 8)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", range(12))
def test_all_kinds_with_stalls(name, seed):
    config = CONFIGS[name]
    stalls = {"command_stall": 0.3, "result_stall": 0.4} if seed % 2 else {}
    if stalls:
        stalls["stall_seed"] = seed
    compare(config, program(config, seed, KINDS), 12, **stalls)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kinds", [("mask",), ("bias", "list"), ("mask", "bias")])
@pytest.mark.parametrize("cut", [1, 3, -1])
def test_usable_after_missing_and_surplus_mask_tiles(name, kinds, cut):
    config = CONFIGS[name]
    packets = Packets(config, 5)
    load, whole = packets.load(0, config.slots), packets.attend(kinds, least=6)
    link = config.link_bytes
    broken = whole[: -cut * link] if cut > 0 else whole + bytes(link)
    identify = packets.pad(
        encode_header(COUNTERS_FIELDS, COMMAND_BYTES, opcode=Opcode.IDENTIFY, tag=9)
    )
    following = packets.attend(KINDS)
    with CompiledTransport(config) as sim, ModelTransport(config) as model:
        for device in (sim, model):
            replies = device.exchange([load, broken], 2)
            errors = [reply for reply in replies if reply[0] == Reply.ERROR]
            code = ErrorCode.TRUNCATED if cut > 0 else ErrorCode.OVERLONG
            assert [reply[2] for reply in errors] == [code]
            assert device.exchange([identify], 1)[0][0] == Reply.IDENTITY
        assert sim.exchange([following], 1) == model.exchange([following], 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_reset_answers_last_and_clears_the_counters(name):
    config = CONFIGS[name]
    packets = Packets(config, 6)
    load, attends = packets.load(0, config.slots), [packets.attend(()) for _ in range(4)]
    reset, counters = (
        packets.pad(encode_header(COUNTERS_FIELDS, COMMAND_BYTES, opcode=opcode, tag=9))
        for opcode in (Opcode.RESET, Opcode.COUNTERS)
    )
    replies = []
    for transport in (
        CompiledTransport(config, stall_seed=1, result_stall=0.7),
        ModelTransport(config),
    ):
        with transport as device:
            replies.append(device.exchange([load, *attends, reset, counters], 6))
            last = parse_statistics(replies[-1][-1][config.words(4) * config.link_bytes :])
            assert not any(last.values())
    assert replies[0] == replies[1]
    assert [reply[0] for reply in replies[0][-2:]] == [Reply.IDENTITY, Reply.STATISTICS]

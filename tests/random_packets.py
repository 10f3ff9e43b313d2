"""Random packets for an accelerator, and the integer model's replies to them."""

import numpy as np

from celosia_hw.arithmetic import Widths
from celosia_hw.protocol import (
    APPEND_FIELDS,
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTERS_FIELDS,
    EXTENSION_FIELDS,
    LOAD_FIELDS,
    Opcode,
    appended_key_words,
    bias_tile_words,
    encode_header,
    interval_words,
    key_tile_words,
    mask_tile_words,
    query_tile_words,
    state_words,
    tile_list_words,
)
from celosia_sim.model_device import ModelTransport

KINDS = ("intervals", "list", "mask", "bias", "slope", "load", "store", "multiply")


class Packets:
    """Random packets for a configuration, of one pair of head dimensions."""

    def __init__(self, config, seed):
        self.config, self.rng = config, np.random.default_rng(seed)
        self.dims = [int(d) for d in self.rng.integers(1, config.max_head_dim + 1, 2)]
        self.tag = 0

    def header(self, fields, **values):
        self.tag = (self.tag + 1) & 255
        dims = {"last_dim": self.dims[0] - 1, "last_value_dim": self.dims[1] - 1}
        data = encode_header(fields, COMMAND_BYTES, tag=self.tag, **{**dims, **values})
        return self.pad(data)

    def pad(self, data):
        return data.ljust(self.config.words(len(data)) * self.config.link_bytes, b"\0")

    def noise(self, words):
        return self.rng.bytes(words * self.config.link_bytes)

    def load(self, slot, tiles):
        fields = {"opcode": Opcode.LOAD, "slot": slot, "tiles": tiles}
        return self.header(LOAD_FIELDS, **fields) + self.noise(
            tiles * key_tile_words(self.config, *self.dims)
        )

    def append(self, slot, key):
        fields = {"opcode": Opcode.APPEND, "slot": slot, "key": key}
        return self.header(APPEND_FIELDS, **fields) + self.noise(
            appended_key_words(self.config, *self.dims)
        )

    def attend(self, kinds, least=1):
        """An ATTEND with what `kinds` names in its extension."""
        config, rng = self.config, self.rng
        tiles = int(rng.integers(least, config.slots + 1))
        slot = int(rng.integers(0, config.slots - tiles + 1))
        keys = tiles * config.key_rows
        low, high = (int(x) for x in rng.integers(-4, keys + 4, 2))
        extension = {name: int(name in kinds) for name in ("intervals", "mask", "bias")}
        listed = 0
        if "list" in kinds and tiles > 1:
            listed = int(rng.integers(min(least, tiles - 1), tiles))
        if "slope" in kinds:
            extension |= {
                "slope": int(rng.integers(0, 1 << 16)),
                "slope_shift": int(rng.integers(0, 12)),
                "anchor": int(rng.integers(-20, keys + 20)),
            }
        header = self.header(
            ATTEND_FIELDS,
            opcode=Opcode.ATTEND,
            slot=slot,
            tiles=tiles,
            score_shift=int(rng.integers(10, 20)),
            result_fraction=8,
            low_step=int(rng.integers(2)),
            high_step=int(rng.integers(2)),
            low=low if rng.integers(2) else 0,
            high=high if rng.integers(2) else keys,
            limit=keys - int(rng.integers(0, config.key_rows)),
            extended=1,
            load_state=int("load" in kinds),
            store_state=int("store" in kinds),
        )
        header += self.pad(
            encode_header(
                EXTENSION_FIELDS,
                COMMAND_BYTES,
                listed=listed,
                bias_shift=int(rng.integers(0, 8)),
                **extension,
            )
        )
        parts = []
        if "intervals" in kinds:
            ends = rng.integers(-3, keys + 3, (config.query_lanes, 2)).astype("<i2")
            parts.append(self.pad(ends.tobytes()))
            assert len(parts[0]) == interval_words(config) * config.link_bytes
        parts.append(self.noise(query_tile_words(config, self.dims[0])))
        if listed:
            offsets = 1 + np.sort(rng.permutation(tiles - 1)[:listed])
            parts.append(self.pad(offsets.astype("<u2").tobytes()))
            assert len(parts[-1]) == tile_list_words(config, listed) * config.link_bytes
        if "load" in kinds:
            parts.append(self.state())
        words = extension["mask"] * mask_tile_words(config)
        words += extension["bias"] * bias_tile_words(config)
        parts.append(self.noise((listed + 1 if listed else tiles) * words))
        return header + b"".join(parts)

    def state(self):
        """Sums and outputs of an eighth of their range, so that no sum overflows."""
        config, widths = self.config, Widths(self.config)
        lanes = config.link_bytes // 2
        words = config.words(2 * config.query_lanes)
        total = self.rng.integers(0, 1 << (widths.total - 3), (words, lanes))
        maximum = self.rng.integers(-30, 30, (words, lanes))
        top = 1 << (widths.accumulator - 4)
        outputs = self.rng.integers(-top, top, (self.dims[1] * words, lanes))
        sums = total | maximum << 48
        parts = [(sums >> 16 * part) & 0xFFFF for part in range(4)]
        rows = [(outputs >> 16 * part) & 0xFFFF for part in range(3)]
        data = np.stack(parts, axis=1).astype("<u2").tobytes()
        data += np.stack(rows, axis=1).astype("<u2").tobytes()
        assert len(data) == state_words(config, self.dims[1]) * config.link_bytes
        return data

    def multiply(self):
        config = self.config
        tiles = int(self.rng.integers(1, config.product_tiles + 1))
        slot = int(self.rng.integers(0, config.slots - tiles + 1))
        header = self.header(
            ATTEND_FIELDS,
            opcode=Opcode.MULTIPLY,
            slot=slot,
            tiles=tiles,
            last_value_dim=tiles * config.key_rows - 1,
        )
        return header + self.noise(self.dims[0] * config.words(config.query_lanes))


def program(config, seed, kinds, count=12):
    packets = Packets(config, seed)
    commands = [packets.load(0, config.slots)]
    for _ in range(count):
        if packets.rng.integers(3) == 0:
            slot = int(packets.rng.integers(config.slots))
            commands.append(packets.append(slot, int(packets.rng.integers(config.key_rows))))
        if packets.rng.integers(4) == 0:
            commands.append(packets.load(int(packets.rng.integers(config.slots)), 1))
        chosen = [kind for kind in kinds if len(kinds) == 1 or packets.rng.integers(2)]
        if "multiply" in chosen and (len(kinds) == 1 or packets.rng.integers(2)):
            commands.append(packets.multiply())
        else:
            commands.append(packets.attend(chosen))
    return commands


def recorded_packets(config, seed, count=12):
    """Packets of all kinds and the replies of the integer model, in the order of both."""
    packets = program(config, seed, KINDS, count)
    header = encode_header(COUNTERS_FIELDS, COMMAND_BYTES, opcode=Opcode.RESET, tag=99)
    packets.append(Packets(config, seed).pad(header))
    with ModelTransport(config) as model:
        return packets, model.exchange(packets, count + 1)

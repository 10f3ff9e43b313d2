"""A device made of the integer model: the wire protocol without clocks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from celosia_hw import VERSION
from celosia_hw.arithmetic import (
    BIAS_BITS,
    OUTPUT_PARTS,
    PART_BITS,
    PRODUCT_PARTS,
    RESULT_BITS,
    SUM_PARTS,
    Widths,
    slope_bias,
    tile_bias,
)
from celosia_hw.config import AcceleratorConfig
from celosia_hw.protocol import (
    APPEND_FIELDS,
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTER_NAMES,
    COUNTERS_FIELDS,
    EXTENSION_FIELDS,
    LOAD_FIELDS,
    REPLY_BYTES,
    REPLY_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
    appended_key_words,
    bias_tile_words,
    decode_header,
    encode_header,
    identity_payload,
    interval_words,
    key_tile_words,
    mask_tile_words,
    part_words,
    query_tile_words,
    state_words,
    tile_list_words,
)

from .model import State, attend

__all__ = ["ModelTransport"]

_BATCH_LANES = 1024
"""Lanes that are gathered before the model runs."""


@dataclass(frozen=True)
class _Extension:
    """What the payload of an ATTEND says of its lanes and key tiles."""

    intervals: npt.NDArray[np.int64] | None
    tiles: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    bias: npt.NDArray[np.int64]
    state: State | None


@dataclass
class _Batch:
    """Query tiles that attend to keys from the same slot on, in the order they came.

    A query tile with an extended header or a state is alone, with what it brought.
    """

    headers: list[dict[str, int]] = field(default_factory=list)
    extension: _Extension | None = None
    factors: list[npt.NDArray[np.uint16]] = field(default_factory=list)
    queries: list[npt.NDArray[np.int8]] = field(default_factory=list)
    replies: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The slot after the last one read."""
        return max(header["slot"] + header["tiles"] for header in self.headers)


class ModelTransport:
    """A transport that executes packets with the integer model.

    Replies equal the hardware's bit for bit, but for the counters that count clocks, which stay
    0. After a malformed LOAD the contents of its slots are unspecified.

    Parameters
    ----------
    config : AcceleratorConfig

    Attributes
    ----------
    config : AcceleratorConfig
    clocks : int
        Always 0: the model has no clock.
    """

    clocks = 0

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        shape = (config.slots, config.max_head_dim, config.key_rows)
        self._keys, self._values = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
        self._key_factors = np.zeros((config.slots, config.key_rows), np.uint16)
        self._value_factors = np.zeros((config.slots, config.key_rows), np.uint16)
        # Replies in order; None until the batch that an ATTEND is part of has run.
        self._replies: list[bytes | None] = []
        self._waiting = 0
        self._batches: dict[tuple[int, ...], _Batch] = {}
        self._counters = dict.fromkeys(COUNTER_NAMES, 0)

    def exchange(
        self,
        commands: Sequence[bytes],
        replies: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[bytes]:
        """Execute commands and return replies.

        Parameters
        ----------
        commands : sequence of bytes
            Packets; each is padded with zeros to whole link words.
        replies : int
            Number of packets to return. Further ones are kept for the next call.
        progress : callable, optional
            Called with the number of finished replies now and then.

        Returns
        -------
        list of bytes
            Whole link words, header included.

        Raises
        ------
        TimeoutError
            If there are fewer replies; the device is reset.
        ValueError
            If a packet is empty.
        """
        for number, command in enumerate(commands):
            if not command:
                raise ValueError(f"packet {number} is empty")
        reported = 0
        for command in commands:
            self._execute(command)
            done = min(len(self._replies) - self._waiting, replies)
            if progress is not None and done > reported:
                progress(done)
                reported = done
        for key in list(self._batches):
            self._flush(key)
        taken = [reply for reply in self._replies[:replies] if reply is not None]
        if len(taken) < replies:
            self.reset()
            raise TimeoutError(f"{len(taken)} of {replies} replies")
        del self._replies[:replies]
        if progress is not None and replies > reported:
            progress(replies)
        return taken

    def reset(self) -> None:
        """Forget replies and counters; keys and values stay."""
        self._replies.clear()
        self._batches.clear()
        self._waiting = 0
        self._counters = dict.fromkeys(COUNTER_NAMES, 0)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def __enter__(self) -> ModelTransport:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _execute(self, packet: bytes) -> None:
        config = self.config
        packet = packet.ljust(config.words(len(packet)) * config.link_bytes, b"\0")
        start = config.words(COMMAND_BYTES) * config.link_bytes
        header = decode_header(ATTEND_FIELDS, packet[:COMMAND_BYTES])
        extended = header["opcode"] == Opcode.ATTEND and header["extended"]
        second = packet[start : start + COMMAND_BYTES] if extended else b""
        header |= decode_header(EXTENSION_FIELDS, second)
        start *= 1 + bool(extended)
        payload = packet[start:]
        size = self._payload_words(header) * config.link_bytes
        if len(packet) < start:
            error = ErrorCode.TRUNCATED
        elif header["opcode"] not in list(Opcode):
            error = ErrorCode.UNKNOWN_OPCODE
        elif self._bad_field(header):
            error = ErrorCode.BAD_FIELD
        elif len(payload) < size:
            error = ErrorCode.TRUNCATED
            self._fill(header, payload)
        elif len(payload) > size:
            error = ErrorCode.OVERLONG
            if header["opcode"] == Opcode.ATTEND and (header["mask"] or header["bias"]):
                self._attend(header, payload[:size])
        else:
            error = ErrorCode.NONE

        if error is not ErrorCode.NONE:
            self._reply(Reply.ERROR, header["tag"], code=error)
        elif header["opcode"] in (Opcode.IDENTIFY, Opcode.RESET):
            if header["opcode"] == Opcode.RESET:
                self._counters = dict.fromkeys(COUNTER_NAMES, 0)
            self._reply(Reply.IDENTITY, header["tag"], identity_payload(config, VERSION))
        elif header["opcode"] == Opcode.COUNTERS:
            values = struct.pack("<4Q", *(self._counters[name] for name in COUNTER_NAMES))
            self._reply(Reply.STATISTICS, header["tag"], values)
            if decode_header(COUNTERS_FIELDS, packet[:COMMAND_BYTES])["clear"]:
                self._counters = dict.fromkeys(COUNTER_NAMES, 0)
        elif header["opcode"] == Opcode.LOAD:
            self._load(decode_header(LOAD_FIELDS, packet[:COMMAND_BYTES]), payload)
        elif header["opcode"] == Opcode.APPEND:
            self._append(decode_header(APPEND_FIELDS, packet[:COMMAND_BYTES]), payload)
        elif header["opcode"] == Opcode.MULTIPLY:
            self._multiply(header, payload)
        else:
            self._attend(header, payload)

    def _payload_words(self, header: dict[str, int]) -> int:
        head_dim, value_dim = header["last_dim"] + 1, header["last_value_dim"] + 1
        if header["opcode"] == Opcode.LOAD:
            return header["tiles"] * key_tile_words(self.config, head_dim, value_dim)
        if header["opcode"] == Opcode.APPEND:
            return appended_key_words(self.config, head_dim, value_dim)
        if header["opcode"] == Opcode.MULTIPLY:
            return head_dim * self.config.words(self.config.query_lanes)
        if header["opcode"] == Opcode.ATTEND:
            tiles = header["listed"] + 1 if header["listed"] else header["tiles"]
            return self._job_words(header) + tiles * self._mask_words(header)
        return 0

    def _job_words(self, header: dict[str, int]) -> int:
        """Words of an ATTEND's payload before its mask tiles."""
        config = self.config
        return (
            header["intervals"] * interval_words(config)
            + query_tile_words(config, header["last_dim"] + 1)
            + tile_list_words(config, header["listed"])
            + header["load_state"] * state_words(config, header["last_value_dim"] + 1)
        )

    def _mask_words(self, header: dict[str, int]) -> int:
        """Words of a mask tile of an ATTEND."""
        mask, bias = mask_tile_words(self.config), bias_tile_words(self.config)
        return header["mask"] * mask + header["bias"] * bias

    def _fill(self, header: dict[str, int], payload: bytes) -> None:
        """Attend all the same where only mask tiles are missing: zeros take their place."""
        link = self.config.link_bytes
        streamed = header["opcode"] == Opcode.ATTEND and (header["mask"] or header["bias"])
        if streamed and len(payload) > self._job_words(header) * link:
            self._attend(header, payload.ljust(self._payload_words(header) * link, b"\0"))

    def _bad_field(self, header: dict[str, int]) -> bool:
        config = self.config
        if header["opcode"] in (Opcode.IDENTIFY, Opcode.COUNTERS, Opcode.RESET):
            return False
        reserved = (
            header["reserved"]
            or header["extension_reserved"]
            or header["listed"] >= max(header["tiles"], 1)
        )
        if header["opcode"] == Opcode.APPEND:  # `tiles` is where it has its key
            out_of_range, tiles = header["tiles"] >= self.config.key_rows, 1
        else:
            out_of_range, tiles = header["tiles"] == 0, header["tiles"]
        most = config.max_head_dim
        if header["opcode"] == Opcode.MULTIPLY:
            most = config.accumulator_depth
            out_of_range |= tiles > config.product_tiles
        return (
            out_of_range
            or header["slot"] + tiles > self.config.slots
            or header["last_dim"] >= self.config.max_head_dim
            or header["last_value_dim"] >= most
            or (header["opcode"] == Opcode.ATTEND and bool(reserved))
        )

    def _reply(
        self, opcode: Reply, tag: int, payload: bytes = b"", code: int = 0, last_value_dim: int = 0
    ) -> None:
        self._replies.append(self._packet(opcode, tag, payload, code, last_value_dim))

    def _packet(
        self, opcode: Reply, tag: int, payload: bytes, code: int = 0, last_value_dim: int = 0
    ) -> bytes:
        fields = {"opcode": opcode, "tag": tag, "code": code, "last_value_dim": last_value_dim}
        header = encode_header(REPLY_FIELDS, REPLY_BYTES, **fields)
        link = self.config.link_bytes
        return b"".join(
            part.ljust(self.config.words(len(part)) * link, b"\0") for part in (header, payload)
        )

    def _rows(
        self, payload: npt.NDArray[np.uint8], count: int, width: int, dtype: npt.DTypeLike
    ) -> tuple[npt.NDArray, npt.NDArray[np.uint8]]:
        """Split `count` rows of `width` numbers off a payload; leading dimensions stay."""
        size = np.dtype(dtype).itemsize * width
        padded = self.config.words(size) * self.config.link_bytes
        rows = payload[..., : count * padded].reshape(*payload.shape[:-1], count, padded)
        return np.ascontiguousarray(rows[..., :size]).view(dtype), payload[..., count * padded :]

    def _load(self, header: dict[str, int], payload: bytes) -> None:
        slots = slice(header["slot"], header["slot"] + header["tiles"])
        self._flush_readers(slots)
        head_dim, value_dim = header["last_dim"] + 1, header["last_value_dim"] + 1
        rows = self.config.key_rows
        data = np.frombuffer(payload, np.uint8).reshape(header["tiles"], -1)
        key_factors, data = self._rows(data, 1, rows, "<u2")
        value_factors, data = self._rows(data, 1, rows, "<u2")
        keys, data = self._rows(data, head_dim, rows, np.int8)
        values, data = self._rows(data, value_dim, rows, np.int8)
        self._key_factors[slots] = key_factors[:, 0]
        self._value_factors[slots] = value_factors[:, 0]
        self._keys[slots, :head_dim] = keys
        self._values[slots, :value_dim] = values

    def _append(self, header: dict[str, int], payload: bytes) -> None:
        slot, key = header["slot"], header["key"]
        self._flush_readers(slice(slot, slot + 1))
        head_dim, value_dim = header["last_dim"] + 1, header["last_value_dim"] + 1
        data = np.frombuffer(payload, np.uint8)
        key_factor, data = self._rows(data, 1, 1, "<u2")
        value_factor, data = self._rows(data, 1, 1, "<u2")
        keys, data = self._rows(data, 1, head_dim, np.int8)
        values, data = self._rows(data, 1, value_dim, np.int8)
        self._key_factors[slot, key] = key_factor[0, 0]
        self._value_factors[slot, key] = value_factor[0, 0]
        self._keys[slot, :head_dim, key] = keys[0]
        self._values[slot, :value_dim, key] = values[0]

    def _flush_readers(self, slots: slice) -> None:
        """Run the batches that read slots which are about to be written."""
        for key, batch in list(self._batches.items()):
            if key[0] < slots.stop and slots.start < batch.end:
                self._flush(key)

    def _attend(self, header: dict[str, int], payload: bytes) -> None:
        head_dim, value_dim = header["last_dim"] + 1, header["last_value_dim"] + 1
        data = np.frombuffer(payload, np.uint8)
        intervals = None
        if header["intervals"]:
            intervals, data = self._rows(data, 1, 2 * self.config.query_lanes, "<i2")
        factors, data = self._rows(data, 1, self.config.query_lanes, "<u2")
        queries, data = self._rows(data, head_dim, self.config.query_lanes, np.int8)
        key: tuple[int, ...] = (header["slot"], head_dim, value_dim)
        extension = None
        if header["extended"] or header["load_state"] or header["store_state"]:
            key = (*key, len(self._replies))
            extension = self._extension(header, intervals, data)
        batch = self._batches.setdefault(key, _Batch(extension=extension))
        batch.headers.append(header)
        batch.factors.append(factors[0])
        batch.queries.append(queries.T)
        batch.replies.append(len(self._replies))
        self._replies.append(None)
        self._waiting += 1
        tiles = header["tiles"] if extension is None else len(extension.tiles)
        self._counters["array_steps"] += tiles * (head_dim + value_dim)
        if extension is not None or len(batch.headers) * self.config.query_lanes >= _BATCH_LANES:
            self._flush(key)

    def _extension(
        self,
        header: dict[str, int],
        intervals: npt.NDArray | None,
        data: npt.NDArray[np.uint8],
    ) -> _Extension:
        """The list of key tiles, the state, mask bits and biases of an ATTEND."""
        config, listed = self.config, header["listed"]
        tiles = np.arange(header["tiles"])
        if listed:
            offsets, data = self._rows(data, 1, listed, "<u2")
            tiles = np.concatenate([[0], offsets[0].astype(np.int64)])
        state = None
        if header["load_state"]:
            state, data = self._state(data, header["last_value_dim"] + 1)
        count = len(tiles)
        lanes, rows, link = config.query_lanes, config.key_rows, config.link_bytes
        data = data[: count * self._mask_words(header) * link].reshape(count, -1)
        mask = np.ones((count * rows, lanes), bool)
        if header["mask"]:
            words = mask_tile_words(config)
            bits = np.unpackbits(data[:, : words * link], axis=1, bitorder="little")
            bits = bits.reshape(count * words, -1)[:, : config.mask_keys * lanes]
            mask = bits.reshape(count, -1, lanes)[:, :rows].reshape(-1, lanes).astype(bool)
            data = data[:, words * link :]
        position = (tiles[:, None] * rows + np.arange(rows)).ravel()
        distance = position - header["anchor"]
        slope = slope_bias(Widths(config), header["slope"], distance, header["slope_shift"])
        bias = np.repeat(slope[:, None], lanes, axis=1)
        if header["bias"]:
            biases, _ = self._rows(data, rows, lanes, f"<i{BIAS_BITS // 8}")
            numbers = biases.reshape(-1, lanes).astype(np.int64)
            bias = tile_bias(Widths(config), numbers, header["bias_shift"])
        limits = None if intervals is None else intervals.reshape(-1, 2).astype(np.int64)
        return _Extension(limits, tiles, mask.T, bias.T, state)

    def _flush(self, key: tuple[int, ...]) -> None:
        """Run a batch and fill its replies in."""
        slot, head_dim, value_dim = key[:3]
        config, batch = self.config, self._batches.pop(key)
        fields = {
            name: np.array([header[name] for header in batch.headers])[:, None]
            for name in ATTEND_FIELDS
        }
        lane = np.arange(config.query_lanes)
        low = fields["low"] + lane * fields["low_step"]
        high = np.minimum(fields["high"] + lane * fields["high_step"], fields["limit"])
        high = np.minimum(high, fields["tiles"] * config.key_rows)
        extension, more = batch.extension, {}
        read = slot + np.arange(batch.end - slot)
        if extension is not None:
            read = slot + extension.tiles
            if extension.intervals is not None:
                low, high = extension.intervals.T
            rows = np.arange(config.key_rows)
            position = (extension.tiles[:, None] * config.key_rows + rows).ravel()
            more = {"mask": extension.mask, "bias": extension.bias, "position": position}
            more["state"] = extension.state
        shift, fraction = (
            np.repeat(fields[name].ravel(), config.query_lanes)
            for name in ("score_shift", "result_fraction")
        )
        result = attend(
            config,
            np.concatenate(batch.queries),
            self._keys[read, :head_dim].swapaxes(1, 2).reshape(-1, head_dim),
            self._values[read, :value_dim].swapaxes(1, 2).reshape(-1, value_dim),
            np.concatenate(batch.factors),
            self._key_factors[read].ravel(),
            self._value_factors[read].ravel(),
            low.ravel(),
            high.ravel(),
            shift,
            fraction,
            **more,
        )
        if batch.headers[0]["store_state"]:
            return self._store_state(batch, result.state)
        result = result.result
        row_bytes = RESULT_BITS // 8 * config.query_lanes
        pad = config.words(row_bytes) * config.link_bytes - row_bytes
        tiles = result.astype("<i2").reshape(-1, config.query_lanes, value_dim).swapaxes(1, 2)
        rows = np.pad(np.ascontiguousarray(tiles).view(np.uint8), ((0, 0), (0, 0), (0, pad)))
        for header, index, tile in zip(batch.headers, batch.replies, rows, strict=True):
            self._replies[index] = self._packet(
                Reply.RESULT,
                header["tag"],
                tile.tobytes(),
                last_value_dim=header["last_value_dim"],
            )
        self._waiting -= len(batch.replies)

    def _store_state(self, batch: _Batch, state: State) -> None:
        """Reply with the state of a query tile."""
        (header,), (index,) = batch.headers, batch.replies
        shift = PART_BITS * (SUM_PARTS - 1)
        sums = state.total | state.maximum << shift
        payload = self._to_parts(sums[None], SUM_PARTS)
        payload += self._to_parts(state.output.T, OUTPUT_PARTS)
        self._replies[index] = self._packet(
            Reply.STATE, header["tag"], payload, last_value_dim=header["last_value_dim"]
        )
        self._waiting -= 1

    def _multiply(self, header: dict[str, int], payload: bytes) -> None:
        """Reply with the dot products of a tile of queries and some key tiles."""
        config, head_dim = self.config, header["last_dim"] + 1
        data = np.frombuffer(payload, np.uint8)
        queries, _ = self._rows(data, head_dim, config.query_lanes, np.int8)
        slots = slice(header["slot"], header["slot"] + header["tiles"])
        keys = self._keys[slots, :head_dim].swapaxes(1, 2).reshape(-1, head_dim)
        products = keys.astype(np.int64) @ queries.astype(np.int64)
        count = header["last_value_dim"] + 1
        rows = np.zeros((count, config.query_lanes), np.int64)
        rows[: len(products)] = products[:count]
        self._counters["array_steps"] += header["tiles"] * head_dim
        self._reply(
            Reply.PRODUCT,
            header["tag"],
            self._to_parts(rows, PRODUCT_PARTS),
            last_value_dim=header["last_value_dim"],
        )

    def _to_parts(self, numbers: npt.NDArray[np.int64], parts: int) -> bytes:
        """Rows of one number a lane as they cross the link."""
        lanes = self.config.link_bits // PART_BITS
        padding = [(0, 0), (0, -numbers.shape[1] % lanes)]
        numbers = np.pad(numbers, padding).reshape(len(numbers), -1, 1, lanes)
        shifts = PART_BITS * np.arange(parts)[:, None]
        return (numbers >> shifts).astype("<u2").tobytes()

    def _state(
        self, data: npt.NDArray[np.uint8], value_dim: int
    ) -> tuple[State, npt.NDArray[np.uint8]]:
        """Split a state off a payload."""
        widths = Widths(self.config)
        sums, data = self._from_parts(data, 1, SUM_PARTS)
        outputs, data = self._from_parts(data, value_dim, OUTPUT_PARTS)
        shift = PART_BITS * (SUM_PARTS - 1)
        # The registers of the hardware take the lowest bits.
        total = sums[0] & ((1 << widths.total) - 1)
        maximum = _signed(sums[0] >> shift, widths.maximum)
        return State(maximum, total, _signed(outputs.T, widths.accumulator)), data

    def _from_parts(
        self, data: npt.NDArray[np.uint8], rows: int, parts: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Split rows of one number a lane off a payload."""
        config = self.config
        size = part_words(config, rows, parts) * config.link_bytes
        words = data[:size].view("<u2").reshape(rows, -1, parts, config.link_bits // PART_BITS)
        numbers = np.zeros(words[:, :, 0].shape, np.int64)
        for part in range(parts):
            numbers |= words[:, :, part].astype(np.int64) << (PART_BITS * part)
        return numbers.reshape(rows, -1)[:, : config.query_lanes], data[size:]


def _signed(numbers: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """The lowest bits of numbers as two's complement."""
    shift = 64 - bits
    return (numbers << shift) >> shift

"""A device made of the integer model: the wire protocol without clocks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from celosia_hw import VERSION
from celosia_hw.arithmetic import RESULT_BITS
from celosia_hw.config import AcceleratorConfig
from celosia_hw.protocol import (
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTER_NAMES,
    COUNTERS_FIELDS,
    LOAD_FIELDS,
    REPLY_BYTES,
    REPLY_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
    decode_header,
    encode_header,
    identity_payload,
    key_tile_words,
    query_tile_words,
)

from .model import attend

__all__ = ["ModelTransport"]

_BATCH_LANES = 1024
"""Lanes that are gathered before the model runs."""


@dataclass
class _Batch:
    """Query tiles that attend to keys from the same slot on, in the order they came."""

    headers: list[dict[str, int]] = field(default_factory=list)
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
        self._batches: dict[tuple[int, int, int], _Batch] = {}
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
        elif len(payload) > size:
            error = ErrorCode.OVERLONG
        else:
            error = ErrorCode.NONE

        if error is not ErrorCode.NONE:
            self._reply(Reply.ERROR, header["tag"], code=error)
        elif header["opcode"] == Opcode.IDENTIFY:
            self._reply(Reply.IDENTITY, header["tag"], identity_payload(config, VERSION))
        elif header["opcode"] == Opcode.COUNTERS:
            values = struct.pack("<4Q", *(self._counters[name] for name in COUNTER_NAMES))
            self._reply(Reply.STATISTICS, header["tag"], values)
            if decode_header(COUNTERS_FIELDS, packet[:COMMAND_BYTES])["clear"]:
                self._counters = dict.fromkeys(COUNTER_NAMES, 0)
        elif header["opcode"] == Opcode.LOAD:
            self._load(decode_header(LOAD_FIELDS, packet[:COMMAND_BYTES]), payload)
        else:
            self._attend(header, payload)

    def _payload_words(self, header: dict[str, int]) -> int:
        head_dim, value_dim = header["last_dim"] + 1, header["last_value_dim"] + 1
        if header["opcode"] == Opcode.LOAD:
            return header["tiles"] * key_tile_words(self.config, head_dim, value_dim)
        if header["opcode"] == Opcode.ATTEND:
            return query_tile_words(self.config, head_dim)
        return 0

    def _bad_field(self, header: dict[str, int]) -> bool:
        if header["opcode"] not in (Opcode.LOAD, Opcode.ATTEND):
            return False
        reserved = header["load_state"] or header["store_state"] or header["reserved"]
        return (
            header["tiles"] == 0
            or header["slot"] + header["tiles"] > self.config.slots
            or header["last_dim"] >= self.config.max_head_dim
            or header["last_value_dim"] >= self.config.max_head_dim
            or (header["opcode"] == Opcode.ATTEND and reserved != 0)
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
        for key, batch in list(self._batches.items()):
            if key[0] < slots.stop and slots.start < batch.end:
                self._flush(key)
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

    def _attend(self, header: dict[str, int], payload: bytes) -> None:
        head_dim, value_dim = header["last_dim"] + 1, header["last_value_dim"] + 1
        data = np.frombuffer(payload, np.uint8)
        factors, data = self._rows(data, 1, self.config.query_lanes, "<u2")
        queries, data = self._rows(data, head_dim, self.config.query_lanes, np.int8)
        key = (header["slot"], head_dim, value_dim)
        batch = self._batches.setdefault(key, _Batch())
        batch.headers.append(header)
        batch.factors.append(factors[0])
        batch.queries.append(queries.T)
        batch.replies.append(len(self._replies))
        self._replies.append(None)
        self._waiting += 1
        self._counters["array_steps"] += header["tiles"] * (head_dim + value_dim)
        if len(batch.headers) * self.config.query_lanes >= _BATCH_LANES:
            self._flush(key)

    def _flush(self, key: tuple[int, int, int]) -> None:
        """Run a batch and fill its replies in."""
        slot, head_dim, value_dim = key
        config, batch = self.config, self._batches.pop(key)
        fields = {
            name: np.array([header[name] for header in batch.headers])[:, None]
            for name in ATTEND_FIELDS
        }
        lane = np.arange(config.query_lanes)
        low = fields["low"] + lane * fields["low_step"]
        high = np.minimum(fields["high"] + lane * fields["high_step"], fields["limit"])
        high = np.minimum(high, fields["tiles"] * config.key_rows)
        shift, fraction = (
            np.repeat(fields[name].ravel(), config.query_lanes)
            for name in ("score_shift", "result_fraction")
        )
        slots = slice(slot, batch.end)
        result = attend(
            config,
            np.concatenate(batch.queries),
            self._keys[slots, :head_dim].swapaxes(1, 2).reshape(-1, head_dim),
            self._values[slots, :value_dim].swapaxes(1, 2).reshape(-1, value_dim),
            np.concatenate(batch.factors),
            self._key_factors[slots].ravel(),
            self._value_factors[slots].ravel(),
            low.ravel(),
            high.ravel(),
            shift,
            fraction,
        ).result
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

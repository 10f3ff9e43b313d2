"""The payloads of packets, byte for byte as `celosia_hw.protocol` defines them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celosia_hw.config import AcceleratorConfig
from celosia_hw.protocol import COMMAND_BYTES, EXTENSION_FIELDS, encode_header

from .quantize import KeyTensor, ValueTensor
from .tiling import QueryTile

__all__ = ["appended_key", "extended", "key_tiles", "padded", "query_tile"]


def extended(config: AcceleratorConfig, tile: QueryTile) -> tuple[bytes, bytes, bytes, bytes]:
    """Second half of the header of a query tile, its intervals, list of key tiles, and masks."""
    offsets = tile.key_tiles - tile.key_tiles[0]
    is_listed = len(offsets) <= offsets[-1]
    fields = {
        **tile.slope,
        "listed": len(offsets) - 1 if is_listed else 0,
        "bias_shift": tile.bias_shift,
        "intervals": tile.intervals is not None,
        "mask": tile.allowed is not None,
        "bias": tile.bias is not None,
    }
    if not any(fields.values()):
        return b"", b"", b"", b""
    header = padded(config, encode_header(EXTENSION_FIELDS, COMMAND_BYTES, **fields))
    intervals = listed = b""
    if tile.intervals is not None:
        intervals = padded(config, _lanes(config, tile.intervals).astype("<i2").tobytes())
    if is_listed:
        listed = padded(config, offsets[1:].astype("<u2").tobytes())
    masks = [np.zeros((len(offsets), 0), np.uint8)]
    if tile.allowed is not None:
        masks.append(_mask_tiles(config, _lanes(config, tile.allowed)))
    if tile.bias is not None:
        masks.append(_bias_tiles(config, _lanes(config, tile.bias)))
    return header, intervals, listed, np.concatenate(masks, axis=1).tobytes()


def appended_key(
    config: AcceleratorConfig, keys: KeyTensor, values: ValueTensor, token: int
) -> bytes:
    """One key as it crosses the link by itself."""
    parts = (
        keys.factors[token].astype("<u2"),
        values.factors[token].astype("<u2"),
        keys.values[token],
        values.values[token],
    )
    return b"".join(padded(config, part.tobytes()) for part in parts)


def _lanes(config: AcceleratorConfig, rows: npt.NDArray) -> npt.NDArray:
    """Rows of a tile, padded with zeros to all lanes."""
    return np.pad(rows, [(0, config.query_lanes - len(rows)), (0, 0)])


def _mask_tiles(config: AcceleratorConfig, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Mask bits, (lanes, keys), as they cross the link, (tiles, bytes)."""
    bits = _split(allowed.T, config.key_rows)
    tiles, keys, lanes = bits.shape
    bits = np.pad(bits, [(0, 0), (0, -keys % config.mask_keys), (0, 0)])
    words = bits.reshape(tiles, -1, config.mask_keys * lanes)
    words = np.pad(words, [(0, 0), (0, 0), (0, config.link_bits - words.shape[-1])])
    return np.packbits(words, axis=-1, bitorder="little").reshape(tiles, -1)


def _bias_tiles(config: AcceleratorConfig, bias: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """Biases, (lanes, keys), as they cross the link, (tiles, bytes)."""
    rows = np.ascontiguousarray(_split(bias.T, config.key_rows).astype("<i2")).view(np.uint8)
    return _pad_words(config, rows).reshape(len(rows), -1)


def key_tiles(
    config: AcceleratorConfig, keys: KeyTensor, values: ValueTensor
) -> npt.NDArray[np.uint8]:
    """Key tiles as they cross the link, (tiles, bytes)."""
    rows = config.key_rows
    parts = [
        _factor_row(config, _split(keys.factors, rows)),
        _factor_row(config, _split(values.factors, rows)),
        _rows(config, _split(keys.values, rows)),
        _rows(config, _split(values.values, rows)),
    ]
    return np.concatenate(parts, axis=-1)


def query_tile(
    config: AcceleratorConfig,
    factors: npt.NDArray[np.uint16] | None,
    queries: npt.NDArray[np.int8],
) -> bytes:
    """A query tile, or without factors the queries alone, as it crosses the link.

    Parameters
    ----------
    config : AcceleratorConfig
    factors : (n,) uint16 or None
    queries : (n, head_dim) int8
        At most as many as there are lanes.
    """
    values = _rows(config, _lanes(config, queries)).tobytes()
    if factors is None:
        return values
    return _factor_row(config, _lanes(config, factors[:, None])[:, 0]).tobytes() + values


def _split(x: npt.NDArray, rows: int) -> npt.NDArray:
    """Cut (tokens, ...) into tiles (tiles, rows, ...), the last one padded with zeros."""
    padding = [(0, -len(x) % rows)] + [(0, 0)] * (x.ndim - 1)
    return np.pad(x, padding).reshape(-1, rows, *x.shape[1:])


def _factor_row(config: AcceleratorConfig, factors: npt.NDArray) -> npt.NDArray[np.uint8]:
    """(..., tokens) factors as (..., bytes)."""
    return _pad_words(config, np.ascontiguousarray(factors.astype("<u2")).view(np.uint8))


def _rows(config: AcceleratorConfig, values: npt.NDArray) -> npt.NDArray[np.uint8]:
    """(..., tokens, dim) values as (..., bytes): for each of dim, a padded row of tokens."""
    rows = np.ascontiguousarray(values.swapaxes(-1, -2)).view(np.uint8)
    return _pad_words(config, rows).reshape(*values.shape[:-2], -1)


def _pad_words(config: AcceleratorConfig, data: npt.NDArray) -> npt.NDArray:
    """Pad the last axis, in bytes, to whole link words."""
    size = data.shape[-1]
    padding = config.words(size) * config.link_bytes - size
    return np.pad(data, [(0, 0)] * (data.ndim - 1) + [(0, padding)])


def padded(config: AcceleratorConfig, data: bytes) -> bytes:
    return data.ljust(config.words(len(data)) * config.link_bytes, b"\0")

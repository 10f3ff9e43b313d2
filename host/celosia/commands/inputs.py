"""The tensors that ``celosia run`` takes: of a file, random, or those in the package."""

from __future__ import annotations

import argparse
import zipfile
import zlib
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .common import InputError, count, natural

__all__ = ["Input", "add_options", "read_input", "read_npz"]

_SAMPLE = "smollm2_layer17.npz"


@dataclass(frozen=True)
class Input:
    """Tensors to run.

    Parameters
    ----------
    name : str
    query : (H, L, E) float32
    key : (Hk, S, E) float32
    value : (Hk, S, Ev) float32
    mask : dict
        What `plan_attention` takes of masks.
    """

    name: str
    query: npt.NDArray[np.float32]
    key: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]
    mask: dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_input` reads."""
    parser.add_argument(
        "--input",
        metavar="FILE.npz",
        help="query (H, L, E), key (Hk, S, E), value (Hk, S, Ev), optional is_causal, key_length, "
        "attn_mask",
    )
    for name, text in (
        ("heads", "heads of random N(0, 1) input (1)"),
        ("queries", "queries of random input (128)"),
        ("keys", "keys of random input (as many as queries)"),
        ("head-dim", "head dimension of random input (64)"),
        ("kv-heads", "heads of keys and values of random input (as many as heads)"),
    ):
        parser.add_argument(f"--{name}", metavar="N", type=count, help=text)
    parser.add_argument("--seed", metavar="N", type=natural, help="seed of random input (0)")
    parser.add_argument("--causal", action="store_true", help="query i attends to keys 0 ... i")
    parser.add_argument(
        "--window", metavar="N", type=count, help="query i attends to the keys i-N+1 ... i"
    )
    parser.add_argument(
        "--key-length", metavar="N", type=natural, help="attend to the first N keys only"
    )
    parser.add_argument(
        "--bias", choices=["alibi"], help="add a bias: alibi, slope 2^(-8h/H) for head h of H"
    )


def read_input(arguments: argparse.Namespace) -> Input:
    """The tensors and the mask that the options of `add_options` describe."""
    tensors = _read_tensors(arguments)
    mask = {**tensors.mask, "window": arguments.window}
    if arguments.causal:
        mask["is_causal"] = True
    if arguments.bias == "alibi":
        heads = len(tensors.query)
        mask["alibi_slopes"] = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    if arguments.key_length is not None:
        mask["key_length"] = arguments.key_length
    return replace(tensors, mask=mask)


def _read_tensors(arguments: argparse.Namespace) -> Input:
    sizes = (
        *(arguments.heads, arguments.queries, arguments.keys, arguments.head_dim),
        arguments.kv_heads,
    )
    random = any(size is not None for size in (*sizes, arguments.seed))
    if arguments.input is not None:
        if random:
            raise InputError("--input and the sizes or seed of random input exclude each other")
        return read_npz(arguments.input, Path(arguments.input).name)
    if not random:
        with (files("celosia") / "data" / _SAMPLE).open("rb") as file:
            return read_npz(file, "SmolLM2-135M, part of layer 17")
    queries = arguments.queries or 128
    heads, keys, head_dim = (
        arguments.heads or 1,
        arguments.keys or queries,
        arguments.head_dim or 64,
    )
    seed = arguments.seed or 0
    rng = np.random.default_rng(seed)
    kv_heads = arguments.kv_heads or heads
    if heads % kv_heads:
        raise InputError(f"--heads ({heads}) must be a multiple of --kv-heads ({kv_heads})")
    query, key, value = (
        rng.standard_normal((number, tokens, head_dim), dtype=np.float32)
        for number, tokens in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    )
    return Input(f"N(0, 1), seed {seed}", query, key, value, {"is_causal": False})


def read_npz(source: Any, name: str) -> Input:
    """The tensors of an .npz file.

    Parameters
    ----------
    source : str or binary file
    name : str
        What errors call it.

    Raises
    ------
    InputError
        If it is no such file or does not hold the tensors.
    """
    try:
        if not zipfile.is_zipfile(source):
            if not hasattr(source, "read"):
                open(source, "rb").close()  # says why, if it cannot be read
            raise InputError(f"{name} is no .npz file")
        with np.load(source, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data}
    except (EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{name} is a broken .npz file: {error}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} holds more than plain arrays: {error}") from None
    tensors = {}
    for part in ("query", "key", "value"):
        if part not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise InputError(f"{name} has no array {part!r}, only {found}")
        array = np.asarray(arrays[part])
        if array.ndim != 3:
            raise InputError(f"{part} of {name} has shape {array.shape}: it needs 3 dimensions")
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"{part} of {name} is {array.dtype}: it must be floating point")
        tensors[part] = array.astype(np.float32)
    is_causal = arrays.get("is_causal")
    if is_causal is not None and is_causal.size != 1:
        raise InputError(f"is_causal of {name} has shape {is_causal.shape}: it must be one bool")
    mask = {"is_causal": is_causal is not None and bool(is_causal.item())}
    for part in ("key_length", "attn_mask"):
        if part in arrays:
            mask[part] = arrays[part]
    return Input(name, **tensors, mask=mask)

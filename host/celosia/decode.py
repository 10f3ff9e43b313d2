"""Decoding with a cache on the device: a prefill, then a token at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cache import KeyValueCache
from .device import Device, RunReport

__all__ = ["Decoded", "decode"]


@dataclass(frozen=True)
class Decoded:
    """What `decode` returns.

    Parameters
    ----------
    output : (H, L, Ev) float32
        Causal attention.
    prefill : RunReport
        Of the first tokens, without loading the cache.
    steps : list of RunReport
        Of each later token: appending it and attending with it.
    """

    output: npt.NDArray[np.float32]
    prefill: RunReport
    steps: list[RunReport]


def decode(
    device: Device,
    query: npt.NDArray[np.float32],
    key: npt.NDArray[np.float32],
    value: npt.NDArray[np.float32],
    steps: int,
    *,
    window: int | None = None,
) -> Decoded:
    """Causal attention, the last `steps` tokens one at a time.

    Parameters
    ----------
    device : Device
    query : (H, L, E) float32
    key : (Hk, L, E) float32
    value : (Hk, L, Ev) float32
    steps : int
        Fewer than L.
    window : int, optional
        Attend only to so many tokens up to the query's own.

    Raises
    ------
    ValueError
        If there are not as many queries as keys, or not more than steps; or as `KeyValueCache`.
    """
    tokens = query.shape[-2]
    if tokens != key.shape[-2]:
        raise ValueError(f"decoding needs as many queries ({tokens}) as keys ({key.shape[-2]})")
    if not 1 <= steps < tokens:
        raise ValueError(
            f"steps must be between 1 and {tokens - 1} for {tokens} tokens, not {steps}"
        )
    first = tokens - steps
    with KeyValueCache(
        key[:, :first],
        value[:, :first],
        capacity=tokens,
        device=device,
        query=query[:, :first],
    ) as cache:
        outputs = [cache.attend(query[:, :first], window=window)]
        prefill, reports = _report(device), []
        for token in range(first, tokens):
            step = slice(token, token + 1)
            cache.append(key[:, step], value[:, step])
            appended = _report(device)
            outputs.append(cache.attend(query[:, step], window=window))
            attended = _report(device)
            reports.append(attended.followed(appended, device.config.multipliers))
    return Decoded(np.concatenate(outputs, axis=1), prefill, reports)


def _report(device: Device) -> RunReport:
    assert device.report is not None
    return device.report

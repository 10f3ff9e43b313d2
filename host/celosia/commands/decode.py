"""``celosia run --decode``: attention with a cache on the device, the last tokens one by one."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from ..decode import decode
from ..device import open_device
from ..evaluate import metrics, reference_attention, reference_name
from ..text import aligned
from .common import InputError, Progress, to_json, write_output
from .inputs import Input

__all__ = ["run_decode"]


def run_decode(arguments: argparse.Namespace, tensors: Input, spec: str) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : Namespace
        Those of ``celosia run``.
    tensors : Input
    spec : str
        Of the device.

    Returns
    -------
    int
        Exit status.
    """
    others = {name for name, value in tensors.mask.items() if value is not None}
    if others - {"is_causal", "window"}:
        raise InputError("--decode goes with --causal and --window only")
    mask = {"is_causal": True, "window": tensors.mask["window"]}
    parts = (tensors.query, tensors.key, tensors.value)
    with Progress() as progress:
        with open_device(spec, progress=progress, waveform=arguments.waveform) as device:
            config = device.config
            decoded = decode(device, *parts, arguments.decode, window=mask["window"])
        progress("comparing with the integer model")
        with open_device("model", config=config) as model:
            expected = decode(model, *parts, arguments.decode, window=mask["window"]).output
        reference = reference_attention(*parts, **mask)
    mismatches = int(np.count_nonzero(decoded.output != expected))
    if arguments.output is not None:
        write_output(arguments.output, decoded.output)
    last = decoded.steps[-1]
    result = {
        "device": spec,
        "input": tensors.name,
        "heads": len(tensors.query),
        "key_heads": len(tensors.key),
        "prefill": tensors.query.shape[1] - arguments.decode,
        "steps": arguments.decode,
        "prefill_clocks": decoded.prefill.clocks,
        "first_step_clocks": decoded.steps[0].clocks,
        "last_step_clocks": last.clocks,
        "step_link_bytes_sent": last.bytes_sent,
        "step_link_bytes_received": last.bytes_received,
        **metrics(reference, decoded.output),
        "model_mismatches": mismatches,
        "reference": reference_name(),
        "config": config.to_dict(),
    }
    if arguments.json:
        print(to_json(result))
    else:
        print(_table(result))
    return 1 if mismatches else 0


def _table(result: dict[str, Any]) -> str:
    clocks = "none: the device has no clock"
    if result["prefill_clocks"]:
        clocks = (
            f"{result['prefill_clocks']:,} for the prefill, "
            f"{result['first_step_clocks']:,} for the first step, "
            f"{result['last_step_clocks']:,} for the last"
        )
    return aligned(
        [
            ("device", result["device"]),
            (
                "input",
                f"{result['input']}: {result['heads']} heads on {result['key_heads']}, "
                f"{result['prefill']} tokens and {result['steps']} steps",
            ),
            (f"against float32 {result['reference']}", f"{result['sqnr_db']:.2f} dB"),
            ("mismatches, integer model", str(result["model_mismatches"])),
            ("clocks", clocks),
            (
                "link bytes of a step",
                f"{result['step_link_bytes_sent']:,} sent, "
                f"{result['step_link_bytes_received']:,} received",
            ),
        ]
    )

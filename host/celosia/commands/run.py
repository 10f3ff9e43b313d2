"""``celosia run``: attention, compared with PyTorch and the integer model."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.config import PRESETS, AcceleratorConfig, preset

from ..attention import plan_attention
from ..device import RunReport, open_device
from ..evaluate import ideal_attention, metrics, reference_attention, reference_name
from ..text import aligned
from .common import Progress, count, to_json, write_output
from .decode import run_decode
from .inputs import add_options, read_input

__all__ = ["add_parser"]

_DEFAULT_DEVICE = "sim:small"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "run",
        help="run attention and compare it with PyTorch and the integer model",
        description="Run attention on a device and compare it with float32 attention, with int8 "
        "rounding alone, and with the integer model. Without --input and sizes it runs a part of "
        "a real layer of SmolLM2-135M.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_run)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--device",
        metavar="SPEC",
        help="sim[:NAME], model[:NAME], pysim[:NAME] or serial:PORT[@BAUD]; "
        f"{_DEFAULT_DEVICE} if absent",
    )
    where.add_argument(
        "--config", metavar="NAME", help=f"short for --device sim:NAME; {', '.join(PRESETS)}"
    )
    add_options(parser)
    parser.add_argument(
        "--decode",
        metavar="N",
        type=count,
        help="causal, with a cache on the device: all but N tokens at once, then one at a time",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    parser.add_argument(
        "--output", metavar="FILE.npz", help="write the result as output (H, L, Ev), float32"
    )
    parser.add_argument(
        "--waveform", metavar="FILE", help="write the simulation's signals (.fst or .vcd)"
    )


def _run(arguments: argparse.Namespace) -> int:
    tensors = read_input(arguments)
    spec = arguments.device or _DEFAULT_DEVICE
    if arguments.config is not None:
        preset(arguments.config)  # its error names the configurations, not the devices
        spec = f"sim:{arguments.config}"
    if arguments.decode is not None:
        return run_decode(arguments, tensors, spec)
    with Progress() as progress:
        with open_device(spec, progress=progress, waveform=arguments.waveform) as device:
            job = plan_attention(
                device.config,
                tensors.query,
                tensors.key,
                tensors.value,
                **tensors.mask,
                enable_gqa=len(tensors.key) != len(tensors.query),
            )
            raw = job.run(device)
            report, config = device.report, device.config
        assert report is not None
        is_model = spec.partition(":")[0] == "model"
        mismatches = 0
        if not is_model:
            progress("comparing with the integer model")
            with open_device("model", config=config) as model:
                mismatches = int(np.count_nonzero(job.run(model).values != raw.values))
        progress(f"comparing with float32 {reference_name()}")
        reference = reference_attention(
            tensors.query,
            tensors.key,
            tensors.value,
            **tensors.mask,
        )
        output = raw.dequantize().astype(np.float32)
        if arguments.output is not None:
            write_output(arguments.output, output)
        result = {
            "device": spec,
            "input": tensors.name,
            "heads": len(tensors.query),
            "key_heads": len(tensors.key),
            "queries": tensors.query.shape[1],
            "keys": tensors.key.shape[1],
            "head_dim": tensors.query.shape[2],
            "value_dim": tensors.value.shape[2],
            "is_causal": tensors.mask["is_causal"],
            "window": tensors.mask["window"],
            "bias": arguments.bias,
            "reference": reference_name(),
            **_figures(report, reference, output, ideal_attention(job)),
            "model_mismatches": mismatches,
            "config": config.to_dict(),
        }
    print(to_json(result) if arguments.json else _table(result, config, is_model))
    return 1 if mismatches else 0


def _figures(
    report: RunReport, reference: npt.NDArray, output: npt.NDArray, ideal: npt.NDArray
) -> dict[str, Any]:
    return {
        "clocks": report.clocks,
        "macs": report.useful_macs,
        "utilization": report.utilization,
        "busy_clocks": report.busy,
        "stalled_input_clocks": report.stalled_input,
        "stalled_output_clocks": report.stalled_output,
        **metrics(reference, output),
        **{f"ideal_{name}": value for name, value in metrics(reference, ideal).items()},
        "link_bytes": report.bytes_sent + report.bytes_received,
        "link_bytes_sent": report.bytes_sent,
        "link_bytes_received": report.bytes_received,
        "seconds": report.seconds,
        "sim_clocks_per_second": report.clocks / report.seconds if report.clocks else None,
    }


def _table(result: dict[str, Any], config: AcceleratorConfig, is_model: bool) -> str:
    reference = f"float32 {result['reference']}"
    heads = f"{result['heads']} heads"
    if result["key_heads"] != result["heads"]:
        heads += f" on {result['key_heads']}"
    shape = f"{heads}, {result['queries']} x {result['keys']} tokens, head dim {result['head_dim']}"
    if result["value_dim"] != result["head_dim"]:
        shape += f" and {result['value_dim']}"
    if result["is_causal"]:
        shape += ", causal"
    if result["window"] is not None:
        shape += f", window {result['window']}"
    if result["bias"] is not None:
        shape += f", {result['bias']}"
    link = 8 * config.link_bytes
    clocks, rate = result["clocks"], result["sim_clocks_per_second"]
    rows = [
        (
            "device",
            f"{result['device']}: {config.key_rows} x {config.query_lanes}, {link}-bit link",
        ),
        ("input", f"{result['input']}: {shape}"),
        (f"against {reference}", "this run        int8 rounding alone"),
    ]
    for label, key, form in (
        ("  signal to noise", "sqnr_db", "{:.2f} dB"),
        ("  cosine", "cosine", "{:.6f}"),
        ("  root mean square error", "rmse", "{:.3g}"),
        ("  largest error", "max_abs_error", "{:.3g}"),
    ):
        ours, ideal = (form.format(result[name]) for name in (key, f"ideal_{key}"))
        rows.append((label, f"{ours:<16}{ideal}"))
    note = " (the device is the model)" if is_model else ""
    unclocked = "the device has no clock" if is_model else "the device does not tell"
    rows += [
        ("mismatches, integer model", f"{result['model_mismatches']}{note}"),
        ("clocks", f"{clocks:,}" if clocks else f"none: {unclocked}"),
    ]
    if clocks:
        rows.append(
            (
                "MAC utilization",
                f"{result['utilization']:.3f} of {config.multipliers} per clock, {link}-bit link",
            )
        )
    rows += [
        ("useful MACs", f"{result['macs']:,}"),
        (
            "link bytes",
            f"{result['link_bytes_sent']:,} sent, {result['link_bytes_received']:,} received",
        ),
    ]
    if not clocks and not is_model:
        rows.append(("time", f"{result['seconds']:.3f} s"))
    if clocks:
        rows.append(("simulated clocks per second", f"{rate:,.0f}"))
    return aligned(rows)

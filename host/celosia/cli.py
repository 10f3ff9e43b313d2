"""The command ``celosia``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import Widths
from celosia_hw.config import PRESETS, AcceleratorConfig, preset

from . import __version__
from .attention import plan_attention
from .bench import bench, format_table
from .decode import decode
from .device import RunReport, open_device
from .evaluate import ideal_attention, metrics, reference_attention, reference_name

__all__ = ["main"]

_DEFAULT_DEVICE = "sim:small"
_SAMPLE = "smollm2_layer17.npz"


class _InputError(ValueError):
    """Input that cannot be run."""


@dataclass(frozen=True)
class _Input:
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


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"celosia: error: {message}\n")


class _Progress:
    """One line on standard error that changes; in a log file, a line now and then."""

    INTERVAL = 5.0

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._printed = -math.inf

    def __call__(self, message: str) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[K{message}")
        elif not message.endswith("query tiles"):
            self._stream.write(f"{message}\n")
        elif time.monotonic() - self._printed >= self.INTERVAL:
            self._printed = time.monotonic()
            self._stream.write(f"{message}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Remove the line."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if absent.

    Returns
    -------
    int
        Exit status: 0, 1 if a result differs from the integer model's, 2 for an error. Wrong
        usage raises SystemExit with status 2.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.function(arguments)
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130


def _fail(error: BaseException) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"celosia: error: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="celosia",
        description="Run attention on an int8 accelerator, simulated cycle by cycle.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"celosia {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run attention and compare it with PyTorch and the integer model",
        description="Run attention on a device and compare it with float32 attention, with int8 "
        "rounding alone, and with the integer model. Without --input and sizes it runs a part of "
        "a real layer of SmolLM2-135M.",
        allow_abbrev=False,
    )
    run.set_defaults(function=_run)
    where = run.add_mutually_exclusive_group()
    where.add_argument(
        "--device",
        metavar="SPEC",
        help=f"sim[:NAME], model[:NAME] or pysim[:NAME]; {_DEFAULT_DEVICE} if absent",
    )
    where.add_argument(
        "--config", metavar="NAME", help=f"short for --device sim:NAME; {', '.join(PRESETS)}"
    )
    run.add_argument(
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
        run.add_argument(f"--{name}", metavar="N", type=_count, help=text)
    run.add_argument("--seed", metavar="N", type=_seed, help="seed of random input (0)")
    run.add_argument("--causal", action="store_true", help="query i attends to keys 0 ... i")
    run.add_argument(
        "--window", metavar="N", type=_count, help="query i attends to the keys i-N+1 ... i"
    )
    run.add_argument(
        "--key-length", metavar="N", type=_seed, help="attend to the first N keys only"
    )
    run.add_argument(
        "--bias", choices=["alibi"], help="add a bias: alibi, slope 2^(-8h/H) for head h of H"
    )
    run.add_argument(
        "--decode",
        metavar="N",
        type=_count,
        help="causal, with a cache on the device: all but N tokens at once, then one at a time",
    )
    run.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    run.add_argument(
        "--output", metavar="FILE.npz", help="write the result as output (H, L, Ev), float32"
    )
    run.add_argument(
        "--waveform", metavar="FILE", help="write the simulation's signals (.fst or .vcd)"
    )

    bench_parser = commands.add_parser(
        "bench",
        help="print utilization and accuracy over shapes and masks",
        description="Run 8 heads of N(0, 1) input over shapes and masks, and compare them with "
        "float32 attention and with the integer model.",
        allow_abbrev=False,
    )
    bench_parser.set_defaults(function=_bench)
    bench_parser.add_argument(
        "--device", metavar="SPEC", default="sim:default", help="as for run; sim:default if absent"
    )
    bench_parser.add_argument("--json", action="store_true", help="print JSON, not a table")

    info = commands.add_parser(
        "info",
        help="print what follows from a configuration",
        description="Print parameters, derived widths, memories and peak rate of a configuration.",
        allow_abbrev=False,
    )
    info.set_defaults(function=_info)
    info.add_argument(
        "--config", metavar="NAME", default="default", help=f"{', '.join(PRESETS)} (default)"
    )

    cache = commands.add_parser(
        "cache",
        help="show or clear the built simulations",
        description="Show the folder of built simulations ($CELOSIA_CACHE_DIR).",
        allow_abbrev=False,
    )
    cache.set_defaults(function=_cache)
    cache.add_argument("--clear", action="store_true", help="delete them")
    return parser


def _count(text: str) -> int:
    return _at_least(text, 1)


def _seed(text: str) -> int:
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {number}")
    return number


def _run(arguments: argparse.Namespace) -> int:
    tensors = _read_input(arguments)
    spec = arguments.device or _DEFAULT_DEVICE
    if arguments.config is not None:
        preset(arguments.config)  # its error names the configurations, not the devices
        spec = f"sim:{arguments.config}"
    if arguments.decode is not None:
        return _decode(arguments, tensors, spec)
    progress = _Progress(sys.stderr)
    try:
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
            with Path(arguments.output).open("wb") as file:
                np.savez(file, output=output)
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
    finally:
        progress.clear()
    print(json.dumps(_jsonable(result)) if arguments.json else _table(result, config, is_model))
    return 1 if mismatches else 0


def _decode(arguments: argparse.Namespace, tensors: _Input, spec: str) -> int:
    others = {name for name, value in tensors.mask.items() if value is not None}
    if others - {"is_causal", "window"}:
        raise _InputError("--decode goes with --causal and --window only")
    mask = {"is_causal": True, "window": tensors.mask["window"]}
    parts = (tensors.query, tensors.key, tensors.value)
    progress = _Progress(sys.stderr)
    try:
        with open_device(spec, progress=progress, waveform=arguments.waveform) as device:
            config = device.config
            decoded = decode(device, *parts, arguments.decode, window=mask["window"])
        progress("comparing with the integer model")
        with open_device("model", config=config) as model:
            expected = decode(model, *parts, arguments.decode, window=mask["window"]).output
        reference = reference_attention(*parts, **mask)
    finally:
        progress.clear()
    mismatches = int(np.count_nonzero(decoded.output != expected))
    if arguments.output is not None:
        with Path(arguments.output).open("wb") as file:
            np.savez(file, output=decoded.output)
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
        print(json.dumps(_jsonable(result)))
    else:
        print(_decode_table(result))
    return 1 if mismatches else 0


def _decode_table(result: dict[str, Any]) -> str:
    clocks = "none: the device has no clock"
    if result["prefill_clocks"]:
        clocks = (
            f"{result['prefill_clocks']:,} for the prefill, "
            f"{result['first_step_clocks']:,} for the first step, "
            f"{result['last_step_clocks']:,} for the last"
        )
    return _aligned(
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
        "sim_clocks_per_second": report.clocks / report.seconds if report.clocks else None,
    }


def _read_input(arguments: argparse.Namespace) -> _Input:
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


def _read_tensors(arguments: argparse.Namespace) -> _Input:
    sizes = (
        *(arguments.heads, arguments.queries, arguments.keys, arguments.head_dim),
        arguments.kv_heads,
    )
    random = any(size is not None for size in (*sizes, arguments.seed))
    if arguments.input is not None:
        if random:
            raise _InputError("--input and the sizes or seed of random input exclude each other")
        return _read_npz(arguments.input, Path(arguments.input).name)
    if not random:
        with (files("celosia") / "data" / _SAMPLE).open("rb") as file:
            return _read_npz(file, "SmolLM2-135M, part of layer 17")
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
        raise _InputError(f"--heads ({heads}) must be a multiple of --kv-heads ({kv_heads})")
    query, key, value = (
        rng.standard_normal((number, count, head_dim), dtype=np.float32)
        for number, count in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    )
    return _Input(f"N(0, 1), seed {seed}", query, key, value, {"is_causal": False})


def _read_npz(source: Any, name: str) -> _Input:
    try:
        if not zipfile.is_zipfile(source):
            if not hasattr(source, "read"):
                open(source, "rb").close()  # says why, if it cannot be read
            raise _InputError(f"{name} is no .npz file")
        with np.load(source, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data}
    except (EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise _InputError(f"{name} is a broken .npz file: {error}") from None
    except ValueError as error:
        if isinstance(error, _InputError):
            raise
        raise _InputError(f"{name} holds more than plain arrays: {error}") from None
    tensors = {}
    for part in ("query", "key", "value"):
        if part not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise _InputError(f"{name} has no array {part!r}, only {found}")
        array = np.asarray(arrays[part])
        if array.ndim != 3:
            raise _InputError(f"{part} of {name} has shape {array.shape}: it needs 3 dimensions")
        if not np.issubdtype(array.dtype, np.floating):
            raise _InputError(f"{part} of {name} is {array.dtype}: it must be floating point")
        tensors[part] = array.astype(np.float32)
    is_causal = arrays.get("is_causal")
    if is_causal is not None and is_causal.size != 1:
        raise _InputError(f"is_causal of {name} has shape {is_causal.shape}: it must be one bool")
    mask = {"is_causal": is_causal is not None and bool(is_causal.item())}
    for part in ("key_length", "attn_mask"):
        if part in arrays:
            mask[part] = arrays[part]
    return _Input(name, **tensors, mask=mask)


def _jsonable(x: Any) -> Any:
    """Without the infinities and NaN that JSON does not have."""
    if isinstance(x, list):
        return [_jsonable(value) for value in x]
    if isinstance(x, dict):
        return {key: _jsonable(value) for key, value in x.items()}
    return None if isinstance(x, float) and not math.isfinite(x) else x


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
    rows += [
        ("mismatches, integer model", f"{result['model_mismatches']}{note}"),
        ("clocks", f"{clocks:,}" if clocks else "none: the device has no clock"),
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
    if clocks:
        rows.append(("simulated clocks per second", f"{rate:,.0f}"))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in rows) + 2
    return "\n".join(f"{label:<{width}}{text}".rstrip() for label, text in rows)


def _bench(arguments: argparse.Namespace) -> int:
    progress = _Progress(sys.stderr)
    try:
        with open_device(arguments.device, progress=progress) as device:
            rows = bench(device, progress=progress)
    finally:
        progress.clear()
    print(json.dumps(_jsonable(rows)) if arguments.json else format_table(rows))
    return 1 if any(row["model_mismatches"] for row in rows) else 0


def _info(arguments: argparse.Namespace) -> int:
    config = preset(arguments.config)
    memories = config.memory_bits
    dim = config.max_head_dim
    sections = {
        f"configuration {arguments.config}": config.to_dict(),
        "derived widths (bits)": vars(Widths(config)),
        "memories (bits)": {**memories, "total": sum(memories.values())},
        "rate": {
            "multipliers": f"{config.multipliers} in the arrays",
            "peak MACs per clock": config.multipliers,
            "clocks per key tile": f"{config.pitch(dim, dim)} at head dim {dim}",
            "results per clock": config.output_lanes,
            "link": f"{config.link_bits} bits per clock each way",
            "key capacity": f"{config.key_capacity} in {config.key_banks} banks",
        },
    }
    for number, (title, values) in enumerate(sections.items()):
        rows = [
            (f"  {name}", f"{value:,}" if isinstance(value, int) else str(value))
            for name, value in values.items()
        ]
        print(("\n" if number else "") + title + "\n" + _aligned(rows))
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    from celosia_sim import cache

    if arguments.clear:
        print(f"{cache.clear():,} bytes freed in {cache.location()}")
        return 0
    entries = cache.entries()
    for entry in entries:
        print(f"{entry.modified:%Y-%m-%d %H:%M}  {entry.size:>12,}  {entry.name}")
    total = sum(entry.size for entry in entries)
    print(f"{total:,} bytes in {len(entries)} files in {cache.location()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

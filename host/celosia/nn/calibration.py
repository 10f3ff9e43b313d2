"""Static scales observed on sample data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..arrays import array_of
from ..transforms import Rounding
from .functional import float_attention, float_linear
from .layers import LayerStack
from .routing import AttentionMode, routed
from .scales import AttentionScales, Float, heads_of, rotated

__all__ = ["Calibration", "calibrate"]

_FORMAT = "celosia-calibration-1"
_FIELDS = tuple(field.name for field in fields(AttentionScales))


@dataclass
class Calibration:
    """Static scales of the layers of a model.

    Parameters
    ----------
    attentions : dict of str to AttentionScales
        By name of the module that calls attention.
    inputs : dict of str to float
        Scales of the inputs of linear layers that run on the accelerator, by name.
    """

    attentions: dict[str, AttentionScales] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)

    def apply_to(self, model: nn.Module) -> None:
        """Make a model use these scales on an accelerator, instead of such as fit each tensor.

        Raises
        ------
        ValueError
            If the model lacks a module of these names. It is as it was then.
        """
        modules = dict(model.named_modules())
        missing = sorted({*self.attentions, *self.inputs} - set(modules))
        if missing:
            raise ValueError(f"the model has no module {missing[0]!r}, but it has static scales")
        for name, scales in {**self.attentions, **self.inputs}.items():
            modules[name].celosia_scales = scales  # type: ignore

    @staticmethod
    def remove_from(model: nn.Module) -> None:
        """Make a model use scales that fit each tensor again."""
        for module in model.modules():
            module.__dict__.pop("celosia_scales", None)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a ``.safetensors`` or ``.json`` file.

        Raises
        ------
        ValueError
            If the name ends in neither.
        ImportError
            If the package safetensors is missing.
        """
        tensors = {
            f"{name}:{part}": np.asarray(getattr(scales, part))
            for name, scales in self.attentions.items()
            for part in _FIELDS
        }
        tensors |= {f"{name}:input": np.array([scale]) for name, scale in self.inputs.items()}
        if _is_json(path):
            numbers = {name: tensor.tolist() for name, tensor in tensors.items()}
            Path(path).write_text(json.dumps({"format": _FORMAT, "scales": numbers}, indent=1))
        else:
            _safetensors().numpy.save_file(tensors, fspath(path), metadata={"format": _FORMAT})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Calibration:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it holds something else.
        ImportError
            If the package safetensors is missing.
        """
        tensors, found = _read(path)
        if found != _FORMAT:
            raise ValueError(f"{fspath(path)} holds no calibration: format {found!r}")
        calibration = cls()
        groups: dict[str, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition(":")
            groups.setdefault(name, {})[part] = np.asarray(tensor, np.float64)
        for name, parts in groups.items():
            if not all(np.isfinite(part).all() for part in parts.values()):
                raise ValueError(f"{fspath(path)}: scales of {name!r} are not finite")
            if set(parts) == {"input"}:
                calibration.inputs[name] = float(parts["input"].item())
            elif set(parts) == set(_FIELDS):
                calibration.attentions[name] = AttentionScales(**parts)
            else:
                raise ValueError(f"{fspath(path)}: {name!r} has the parts {sorted(parts)}")
        return calibration


@contextlib.contextmanager
def calibrate(model: nn.Module, *, headroom: float = 1.0) -> Iterator[Calibration]:
    """Context in which calls of a model with sample data are observed, in floating point.

    Parameters
    ----------
    model : Module
    headroom : float
        How many times the largest number seen int8 shall hold.

    Yields
    ------
    Calibration
        Complete at the end of the context.

    Raises
    ------
    ValueError
        At the end, if the model computed no attention; or if it has dropout.

    Examples
    --------
    >>> with celosia.calibrate(model) as calibration:  # doctest: +SKIP
    ...     for batch in samples:
    ...         model(batch)
    >>> calibration.save("model.scales.safetensors")  # doctest: +SKIP
    >>> calibration.apply_to(model)  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not (np.isfinite(headroom) and headroom > 0):
        raise ValueError(f"headroom must be positive and finite, not {headroom}")
    layers = LayerStack(model)
    session = _Observer(layers, headroom)
    with routed(session, AttentionMode(session, layers, _reraise), layers):
        yield session.calibration
    if not session.calibration.attentions:
        raise ValueError("calibrate saw no attention: call the model with sample data inside")


def _reraise(module: Any, tensors: Any, error: Exception) -> None:
    raise error


class _Observer:
    """A session that computes in PyTorch and keeps the largest numbers."""

    def __init__(self, layers: LayerStack, headroom: float) -> None:
        self.calibration = Calibration()
        self._layers, self._factor = layers, headroom / Rounding.LEVELS

    def attention(
        self,
        module: nn.Module | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        **settings: Any,
    ) -> Tensor:
        name = self._layers.name(module)
        if name is not None:
            q, k, v = (array_of(x) for x in (query, key, value))
            known = self.calibration.attentions
            seen = self._scales(q, k, v, known.get(name))
            known[name] = _larger(name, known.get(name), seen)
        return float_attention(query, key, value, attn_mask, **settings)

    def linear(self, module: nn.Module, layer: str, input: Tensor) -> Tensor:
        name = self._layers.name(module)
        part: Any = getattr(module, layer)
        if name is not None:
            name = f"{name}.{layer}" if name else layer
            peak = _peaks(array_of(input).reshape(1, -1))
            known = self.calibration.inputs
            known[name] = max(known.get(name, 0.0), float(self._scale(peak)[0]))
        return float_linear(input, part.weight, part.bias)

    def _scales(self, q: Any, k: Any, v: Any, known: AttentionScales | None) -> AttentionScales:
        if known is None:
            # Any mean serves, as long as it is the same for all keys: that of the first tensors.
            axes = (*range(k.ndim - 3), -2) if k.ndim > 3 else tuple(range(k.ndim - 1))
            mean = k.astype(np.float64).mean(axis=axes).reshape(heads_of(k), -1)
        else:
            mean = known.key_mean
        return AttentionScales(
            self._scale(_peaks(rotated(q))),
            self._scale(_peaks(rotated(k, mean))),
            self._scale(_peaks(rotated(v))),
            mean,
        )

    def _scale(self, peaks: Float) -> Float:
        # A tensor of zeros says nothing: any scale holds it.
        return np.where(peaks > 0, peaks, 1.0) * self._factor


def _peaks(array: Float) -> Float:
    """The largest magnitudes, per head."""
    if not np.isfinite(array).all():
        raise ValueError("a tensor contains NaN or infinity")
    axes = (*range(array.ndim - 3), -2, -1) if array.ndim > 3 else None
    return np.abs(array).max(axis=axes).reshape(-1).astype(np.float64)


def _larger(name: str, known: AttentionScales | None, seen: AttentionScales) -> AttentionScales:
    if known is None:
        return seen
    pairs = [(getattr(known, part), getattr(seen, part)) for part in _FIELDS]
    if any(one.shape != other.shape for one, other in pairs):
        raise ValueError(f"{name!r} calls attention with different numbers of heads")
    query, key, value = (np.maximum(*pair) for pair in pairs[:3])
    return AttentionScales(query, key, value, known.key_mean)


def _is_json(path: str | PathLike[str]) -> bool:
    suffix = Path(path).suffix
    if suffix not in (".json", ".safetensors"):
        raise ValueError(f"a calibration is a .json or .safetensors file, not {fspath(path)!r}")
    return suffix == ".json"


def _read(path: str | PathLike[str]) -> tuple[dict[str, Any], Any]:
    """Tensors by name, and the format that a file says it has."""
    if _is_json(path):
        content = json.loads(Path(path).read_text())
        if not isinstance(content, dict) or not isinstance(content.get("scales"), dict):
            return {}, None
        return content["scales"], content.get("format")
    safetensors = _safetensors()
    with open(path, "rb"):  # OSError, not one of the library's own
        pass
    try:
        with safetensors.safe_open(fspath(path), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, (file.metadata() or {}).get("format")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{fspath(path)} is no safetensors file: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ImportError(
            'a .safetensors file needs the package safetensors: pip install "celosia[torch]"'
        ) from error
    return safetensors

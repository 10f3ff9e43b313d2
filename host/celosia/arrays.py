"""Arrays of any library: into NumPy, and results back in the caller's kind.

A library is never imported here: an array of it can only come from a caller who did that.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .quantize import Quantized

__all__ = ["array_of", "is_tensor", "like", "most_negative"]

_ARRAY_PROTOCOL = ("__array__", "__array_interface__", "__array_struct__", "__buffer__")


def is_tensor(x: Any) -> bool:
    """Whether `x` is a torch tensor; if torch is not imported, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def array_of(x: Any) -> npt.NDArray[Any]:
    """What `x` holds, as a NumPy array; bfloat16, which NumPy lacks, as float32.

    Parameters
    ----------
    x : array, tensor or sequence
        A torch tensor, or anything that speaks the array protocol (``__array__``: TensorFlow, JAX)
        or DLPack (``__dlpack__``: CuPy and others on a GPU).

    Raises
    ------
    TypeError
        If it cannot be read: a tensor without data, or one of a graph that is being traced.
    """
    if is_tensor(x):
        return _of_tensor(x)
    try:
        array = _of_library(x)
    except Exception as error:  # each library has its own
        raise TypeError(f"{_kind(x)} cannot be read as an array: {_line(error)}") from error
    if array.dtype.name == "bfloat16":  # of ml_dtypes, as JAX and TensorFlow have it
        array = array.astype(np.float32)
    return array


def _of_library(x: Any) -> npt.NDArray[Any]:
    if not hasattr(x, "__dlpack__"):
        return np.asarray(x)
    if any(hasattr(x, name) for name in _ARRAY_PROTOCOL):
        try:
            return np.asarray(x)
        except TypeError:
            if hasattr(x, "get"):  # CuPy: an array leaves the GPU only if it is told to
                return x.get()
            raise
    if x.__dlpack_device__()[0] == 1:  # kDLCPU
        return np.from_dlpack(x)
    return np.from_dlpack(x, device="cpu")  # NumPy 2.1 and newer


def _of_tensor(x: Any) -> npt.NDArray[Any]:
    torch = sys.modules["torch"]
    if x.device.type == "meta":
        raise TypeError("a tensor on the device 'meta' holds no data")
    if x.is_nested or x.layout is not torch.strided:
        raise TypeError(
            f"a {'nested' if x.is_nested else str(x.layout)} tensor: only dense ones are supported"
        )
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        x = x.float()
    try:
        return x.numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(f"{_kind(x)} cannot be read as an array: {_line(error)}") from error


def most_negative(x: Any) -> float | None:
    """The most negative number of the dtype of `x`, if `array_of` may change the dtype."""
    if is_tensor(x) and x.dtype.is_floating_point:
        return float(sys.modules["torch"].finfo(x.dtype).min)
    if str(getattr(x, "dtype", "")).endswith("bfloat16"):
        return -float.fromhex("0x1.fep127")
    return None


def like(query: Any, result: npt.NDArray, dtype: Any = None) -> Any:
    """`result` in the kind and on the device of `query`.

    Parameters
    ----------
    query : array or tensor, or Quantized
    result : ndarray
    dtype : NumPy dtype, optional
        That of `query` if absent, and float32 if that is `Quantized`.
    """
    template = query
    if isinstance(query, Quantized):
        template, dtype = query.values, np.dtype(np.float32) if dtype is None else dtype
    if is_tensor(template):
        torch = sys.modules["torch"]
        if dtype is not None:
            return torch.from_numpy(result.astype(dtype)).to(template.device)
        limits = torch.finfo(template.dtype)
        # Rounding may carry the largest number of a type just beyond it.
        clipped = result.clip(limits.min, limits.max)
        return torch.from_numpy(clipped).to(template.device, template.dtype)
    wanted = np.dtype(array_of(template).dtype if dtype is None else dtype)
    if np.issubdtype(wanted, np.floating):
        lowest = most_negative(template) if dtype is None else None
        lowest = float(np.finfo(wanted).min) if lowest is None else lowest
        result = result.clip(lowest, -lowest)
    return _as_kind(template, np.asarray(result.astype(wanted)), keeps_dtype=dtype is None)


def _as_kind(template: Any, result: npt.NDArray, *, keeps_dtype: bool) -> Any:
    """A NumPy array as an array of the library that `template` is of."""
    if isinstance(template, (np.ndarray, np.generic)) or not hasattr(template, "dtype"):
        return result
    library = type(template).__module__.partition(".")[0]
    if library == "tensorflow":
        return sys.modules["tensorflow"].convert_to_tensor(
            result, dtype=template.dtype if keeps_dtype else None
        )
    namespace = getattr(template, "__array_namespace__", None)
    if namespace is None:
        return result
    # On the device of the template, where the library has several.
    device = getattr(template, "device", None)
    options = {} if device is None else {"device": device}
    if keeps_dtype:
        options["dtype"] = template.dtype
    try:
        return namespace().asarray(result, **options)
    except (TypeError, ValueError, AttributeError):
        # CuPy's asarray, for one, knows no device: it takes the current one.
        options.pop("device", None)
        return namespace().asarray(result, **options)


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__name__}"


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

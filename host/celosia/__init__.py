"""Celosia: attention on an int8 accelerator, simulated or real.

>>> import numpy as np, celosia
>>> q = k = v = np.random.default_rng(0).normal(size=(2, 8, 16))
>>> celosia.run_attention(q, k, v, device="model").shape
(2, 8, 16)
"""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from celosia_hw.config import AcceleratorConfig

from .attention import RawResult, run_attention, run_attention_raw
from .cache import KeyValueCache
from .device import Device, DeviceError, RunReport, VersionMismatch, open_device
from .matmul import run_matmul
from .options import AttentionOptions
from .parallel import DevicePool
from .quantize import Quantized
from .serial_link import BoardReset, CableLost, DeviceBusy, LinkTimeout

if _TYPE_CHECKING:
    from .nn import Calibration as Calibration
    from .nn import MultiHeadAttention as MultiHeadAttention
    from .nn import attention_on as attention_on
    from .nn import calibrate as calibrate

__all__ = [
    "AcceleratorConfig",
    "AttentionOptions",
    "BoardReset",
    "CableLost",
    "Device",
    "DeviceBusy",
    "DeviceError",
    "DevicePool",
    "KeyValueCache",
    "LinkTimeout",
    "Quantized",
    "RawResult",
    "RunReport",
    "VersionMismatch",
    "__version__",
    "open_device",
    "run_attention",
    "run_attention_raw",
    "run_matmul",
]

__version__ = _version("celosia")

# What needs torch, imported at the first use. Not in `__all__`: "import *" must not need it.
_LAZY = {
    "Calibration": "nn",
    "MultiHeadAttention": "nn",
    "attention_on": "nn",
    "calibrate": "nn",
}


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'celosia' has no attribute {name!r}")
    return getattr(_importlib.import_module(f"celosia.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

"""Celosia: attention on an int8 accelerator, simulated or real.

>>> import numpy as np, celosia
>>> q = k = v = np.random.default_rng(0).normal(size=(2, 8, 16))
>>> celosia.run_attention(q, k, v, device="model").shape
(2, 8, 16)
"""

from importlib.metadata import version as _version

from celosia_hw.config import AcceleratorConfig

from .attention import RawResult, run_attention, run_attention_raw
from .cache import KeyValueCache
from .device import Device, DeviceError, RunReport, open_device
from .matmul import run_matmul
from .options import AttentionOptions
from .quantize import Quantized
from .serial_link import BoardReset, CableLost, DeviceBusy, LinkTimeout, VersionMismatch

__all__ = [
    "AcceleratorConfig",
    "AttentionOptions",
    "BoardReset",
    "CableLost",
    "Device",
    "DeviceBusy",
    "DeviceError",
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

"""The PyTorch side: models whose attention runs on an accelerator. Needs torch.

`attention_on` routes what PyTorch code calls, `MultiHeadAttention` is a layer whose projections run
there as well, `attention` and `linear` are the functions below them, and `calibrate` observes
static scales. All have gradients: the forward pass is the accelerator's, in integers, and the
backward pass that of the same formula in floating point (a straight-through estimator).
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "torch":
        raise
    raise ImportError(
        'this part of celosia needs the package torch: pip install "celosia[torch]"'
    ) from _error

from .calibration import Calibration, calibrate
from .context import attention_on
from .functional import attention, linear
from .module import MultiHeadAttention
from .report import Call, CallLog

__all__ = [
    "Calibration",
    "Call",
    "CallLog",
    "MultiHeadAttention",
    "attention",
    "attention_on",
    "calibrate",
    "linear",
]

"""Options of the quantization."""

from __future__ import annotations

from dataclasses import dataclass

from celosia_hw.arithmetic import MAX_RESULT_FRACTION

__all__ = ["AttentionOptions"]


@dataclass(frozen=True)
class AttentionOptions:
    """How `run_attention` turns floating point into int8; the defaults are the most accurate.

    Parameters
    ----------
    per_token_query, per_token_key, per_token_value : bool
        One scale per token; else one per head.
    smooth_keys : bool
        Subtract from K its mean over the keys, which softmax does not see.
    smooth_values : bool
        Subtract from V its mean over the keys and add it to the result: weights sum to 1.
    result_fraction : int
        Fraction bits of the int16 result, in units of the largest V scale. 8 never saturates;
        more suits heads whose results stay small, as an average over many keys does.

    Raises
    ------
    TypeError
        If `result_fraction` is not an integer.
    ValueError
        If `result_fraction` is out of range.
    """

    per_token_query: bool = True
    per_token_key: bool = True
    per_token_value: bool = True
    smooth_keys: bool = True
    smooth_values: bool = False
    result_fraction: int = 8

    def __post_init__(self) -> None:
        fraction = self.result_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int):
            raise TypeError(f"result_fraction must be an int, not {fraction!r}")
        if not 0 <= fraction <= MAX_RESULT_FRACTION:
            raise ValueError(
                f"result_fraction must be between 0 and {MAX_RESULT_FRACTION}, not {fraction}"
            )

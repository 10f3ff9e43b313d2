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
        Subtract from V its mean over the keys and add it to the result: weights sum to 1. Not by
        default: language models attend to a first token whose V is tiny, and then is no longer.
    rotate_keys : bool
        Multiply Q and K by one orthogonal matrix, which spreads outliers over the channels.
    balance_keys : bool
        Multiply Q and K by a matrix and its transposed inverse that make their covariances equal.
    rotate_values, balance_values : bool
        Multiply V by a matrix, and the result by its inverse: orthogonal, and the covariance of V
        to the power of -1/4 (scaling per channel, along the principal axes).
    error_feedback : bool
        Round Q and K so that the errors of a token's elements cancel in its logits, and V in the
        result, and multiply Q by the matrix that fits it to the rounded K.
    search_scales : bool
        Try some scales per token, and keep the one with the least error.
    result_fraction : int or None
        Fraction bits of the int16 result, in units of the largest V scale. 8 never saturates;
        more suits heads whose results stay small, as an average over many keys does. With None
        each head gets, unless its queries are masked, what twice the results of a sample of them
        need; where results saturate with more than 8, the head runs again with 8.

    Notes
    -----
    Only `result_fraction` and the scales per token apply to `Quantized` operands, and neither
    rotation nor balance to a float Q with a `Quantized` K or the other way round. The transforms
    are those of `celosia.transforms`; docs/accuracy.md says what each is worth.

    Raises
    ------
    TypeError
        If `result_fraction` is neither an integer nor None.
    ValueError
        If `result_fraction` is out of range.
    """

    per_token_query: bool = True
    per_token_key: bool = True
    per_token_value: bool = True
    smooth_keys: bool = True
    smooth_values: bool = False
    rotate_keys: bool = True
    balance_keys: bool = True
    rotate_values: bool = True
    balance_values: bool = True
    error_feedback: bool = True
    search_scales: bool = True
    result_fraction: int | None = None

    def __post_init__(self) -> None:
        fraction = self.result_fraction
        if fraction is None:
            return
        if isinstance(fraction, bool) or not isinstance(fraction, int):
            raise TypeError(f"result_fraction must be an int, not {fraction!r}")
        if not 0 <= fraction <= MAX_RESULT_FRACTION:
            raise ValueError(
                f"result_fraction must be between 0 and {MAX_RESULT_FRACTION}, not {fraction}"
            )

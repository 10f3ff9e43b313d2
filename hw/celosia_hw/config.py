"""The one object that describes an accelerator to gateware, simulation and driver."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PRESETS", "AcceleratorConfig", "ConfigError", "load", "preset"]


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names the value and the limit."""


@dataclass(frozen=True)
class AcceleratorConfig:
    """Parameters of an accelerator, from which every width and depth is derived.

    Parameters
    ----------
    key_rows : int
        Rows of processing elements, R: the keys of one tile.
    query_lanes : int
        Columns of processing elements, C: the queries of one tile.
    max_head_dim : int
        Largest head dimension of queries and keys, and of values.
    max_keys : int
        Keys that one bank holds; a multiple of `key_rows`.
    key_banks : int
        Banks of key and value memory. A bank can be loaded while another is attended to.
    max_sequence : int
        Largest number of keys that one softmax may run over, in chunks if need be.
        Sizes the row sums and the accumulators.
    max_inner : int or None
        Largest inner dimension of one dot product; sizes the score accumulators.
        ``None`` means `max_head_dim`.
    probability_bits : int
        P, the bits of an unnormalised probability.
    score_fraction_bits, score_integer_bits : int
        Format of a score in the base-2 logarithmic domain, beside its sign.
    normalizer_lanes : int or None
        N, the results made per clock; divides `query_lanes` and ``link_bytes // 2``.
        ``None`` means the largest such number.
    link_bytes : int
        Bytes of a word of the command and result streams.
    multiplier_stages : int
        Registers between the operands of a multiplier and its product.

    Raises
    ------
    TypeError
        If a parameter is not an integer.
    ConfigError
        If a parameter is out of its range, or a combination cannot be built.
    """

    key_rows: int = 16
    query_lanes: int = 16
    max_head_dim: int = 128
    max_keys: int = 1024
    key_banks: int = 2
    max_sequence: int = 32768
    max_inner: int | None = None
    probability_bits: int = 16
    score_fraction_bits: int = 10
    score_integer_bits: int = 12
    normalizer_lanes: int | None = None
    link_bytes: int = 16
    multiplier_stages: int = 2

    def __post_init__(self) -> None:
        _fill(self, "max_inner", self.max_head_dim)
        _fill(self, "normalizer_lanes", math.gcd(self.link_bytes // 2, self.query_lanes))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {value!r}")
            if not low <= value <= high:
                raise ConfigError(f"{name} must be between {low} and {high}, not {value}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.link_bytes & (self.link_bytes - 1):
            raise ConfigError(f"link_bytes must be a power of two, not {self.link_bytes}")
        if self.query_lanes > self.link_bits:
            raise ConfigError(
                f"query_lanes ({self.query_lanes}) must be at most the {self.link_bits} bits of a "
                "link word"
            )
        if self.max_keys % self.key_rows:
            raise ConfigError(
                f"max_keys ({self.max_keys}) must be a multiple of key_rows ({self.key_rows})"
            )
        if self.key_capacity > _MAX_POSITION:
            raise ConfigError(
                f"max_keys x key_banks ({self.key_capacity}) must be at most {_MAX_POSITION}"
            )
        if self.max_sequence < self.max_keys:
            raise ConfigError(
                f"max_sequence ({self.max_sequence}) must be at least max_keys ({self.max_keys})"
            )
        if self.inner < self.max_head_dim:
            raise ConfigError(
                f"max_inner ({self.inner}) must be at least max_head_dim ({self.max_head_dim})"
            )
        for name, value in (
            ("query_lanes", self.query_lanes),
            ("link_bytes // 2", self.link_bytes // 2),
        ):
            if value % self.output_lanes:
                raise ConfigError(
                    f"normalizer_lanes ({self.output_lanes}) must divide {name} ({value})"
                )

    @property
    def inner(self) -> int:
        """`max_inner` as an integer."""
        assert self.max_inner is not None
        return self.max_inner

    @property
    def output_lanes(self) -> int:
        """`normalizer_lanes` as an integer."""
        assert self.normalizer_lanes is not None
        return self.normalizer_lanes

    @property
    def slots_per_bank(self) -> int:
        """Key tiles that one bank holds."""
        return self.max_keys // self.key_rows

    @property
    def slots(self) -> int:
        """Key tiles that all banks hold."""
        return self.key_banks * self.slots_per_bank

    @property
    def key_capacity(self) -> int:
        """Keys that all banks hold."""
        return self.key_banks * self.max_keys

    @property
    def accumulator_depth(self) -> int:
        """Accumulators of a bank and lane: a value dimension, or at least one tile of products."""
        return max(self.max_head_dim, self.key_rows)

    @property
    def product_tiles(self) -> int:
        """Key tiles that one MULTIPLY may take."""
        return self.accumulator_depth // self.key_rows

    @property
    def mask_keys(self) -> int:
        """Keys whose mask bits, one per lane, share a link word."""
        return self.link_bits // self.query_lanes

    @property
    def link_bits(self) -> int:
        """Bits of the data of a link word."""
        return 8 * self.link_bytes

    @property
    def tile_latency(self) -> int:
        """Smallest number of clocks between two tiles (the accumulators' read-modify-write)."""
        return 8

    def words(self, count: int) -> int:
        """Link words that `count` bytes take, padded to whole words."""
        return -(-count // self.link_bytes)

    def pitch(self, head_dim: int, value_dim: int) -> int:
        """Clocks from one key tile to the next.

        Parameters
        ----------
        head_dim, value_dim : int
            Head dimensions of queries and keys, and of values.
        """
        return max(head_dim, value_dim, self.key_rows, self.tile_latency)

    @property
    def multipliers(self) -> int:
        """Processing elements of both arrays: the peak multiply-accumulates per clock."""
        return 2 * self.key_rows * self.query_lanes

    @property
    def memory_bits(self) -> dict[str, int]:
        """Bits of each memory, by name."""
        from .arithmetic import BIAS_BITS, MASK_TILES, Widths

        widths = Widths(self)
        words = self.slots * self.max_head_dim
        return {
            "keys": words * 8 * self.key_rows,
            "values": words * 8 * self.key_rows,
            "factors": self.slots * 32 * self.key_rows,
            "queries": 2 * self.max_head_dim * 8 * self.query_lanes,
            "accumulators": 2 * self.accumulator_depth * widths.accumulator * self.query_lanes,
            "masks": MASK_TILES * self.key_rows * self.query_lanes * (1 + BIAS_BITS),
        }

    def to_dict(self) -> dict[str, int]:
        """The parameters as a dictionary that ``AcceleratorConfig(**d)`` takes back."""
        return dataclasses.asdict(self)


_MAX_POSITION = 16384
"""Key positions of one attend travel as signed 16-bit numbers, with room for the lanes."""

_RANGES = {
    "key_rows": (2, 64),
    "query_lanes": (2, 64),
    "max_head_dim": (1, 256),
    "max_keys": (2, _MAX_POSITION),
    "key_banks": (1, 16),
    "max_sequence": (2, 1 << 20),
    "max_inner": (1, 1 << 16),
    "probability_bits": (8, 16),
    "score_fraction_bits": (4, 12),
    "score_integer_bits": (10, 13),
    "normalizer_lanes": (1, 32),
    "link_bytes": (4, 64),
    "multiplier_stages": (1, 4),
}


def _fill(config: AcceleratorConfig, name: str, value: int) -> None:
    if getattr(config, name) is None:
        object.__setattr__(config, name, value)


PRESETS: dict[str, AcceleratorConfig] = {
    # Odd on purpose: rows, lanes and head dimension differ and two are no powers of two.
    "tiny": AcceleratorConfig(
        key_rows=4, query_lanes=3, max_head_dim=10, max_keys=24, link_bytes=4, normalizer_lanes=1
    ),
    # Fits an ECP5-85F: 155 of its 156 multipliers, with all their registers in use.
    "small": AcceleratorConfig(
        key_rows=8,
        query_lanes=8,
        max_head_dim=64,
        max_keys=1024,
        link_bytes=8,
        normalizer_lanes=2,
        multiplier_stages=3,
    ),
    "default": AcceleratorConfig(),
}
"""Named configurations: for unit tests, for the quick start, and the 16 x 16 reference."""


def preset(name: str) -> AcceleratorConfig:
    """Look a preset up.

    Raises
    ------
    ConfigError
        If there is no preset of that name; the message lists the presets.
    """
    try:
        return PRESETS[name]
    except KeyError:
        known = ", ".join(PRESETS)
        raise ConfigError(f"unknown configuration {name!r}: choose one of {known}") from None


def load(name: str) -> AcceleratorConfig:
    """A preset by its name, or a configuration from a JSON file.

    Parameters
    ----------
    name : str
        A preset, or the path of a file that ends in ``.json``: an object of parameters, or one
        with such an object as ``parameters``, as ``celosia verilog`` writes it.

    Raises
    ------
    ConfigError
        If there is no such preset or the file does not describe a configuration.
    OSError
        If the file cannot be read.
    """
    if not name.endswith(".json"):
        return preset(name)
    try:
        values = json.loads(Path(name).read_text())
        return AcceleratorConfig(**values.get("parameters", values))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} is not a configuration: {error}") from None

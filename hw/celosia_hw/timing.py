"""When everything happens: the fixed latencies of the pipeline, defined once.

Nothing between the sequencer and the accumulators ever stalls, so every step of a tile happens a
fixed number of clocks after the sequencer has issued the last element of the tile's inner
dimension. `Timing` counts from that clock, for lane (column) 0 and key 0; lane c is c clocks later,
key r is r clocks later.
"""

from __future__ import annotations

from .config import AcceleratorConfig

__all__ = ["Timing"]

MEMORY_READ = 2
"""Clocks from an address to the row it reads: block RAM and its output register."""
MASK_READ = 3
"""Clocks from a mask step to its mask bit and bias in lane 0."""
FACTOR_READ = 3
"""Clocks from a tile's event to its first factor: block RAM, its register, the choice."""
LOG_SCORE = 4
"""Registers of a log score after its multiplier: two of the shifter, rounding, bias."""
MAXIMUM = 3
"""Clocks from a tile's last log score to its new running maximum."""
PROBABILITY = 6
"""Registers from a log score beside its maximum to a probability."""
ACCUMULATOR_READ = 5
"""Clocks from an accumulator's address to its rescaled value: memory, its register, the choice of
the bank, two shifts."""


class Timing:
    """Latencies of a configuration, in clocks.

    Parameters
    ----------
    config : AcceleratorConfig

    Attributes
    ----------
    score : int
        The lane's input holds the score.
    key_factor, load_factor : int
        The key factor is at the lane; the clock before, the lane takes its query factor.
    score_shift, position, load_interval : int
        The score shift is at the lane; the key's position, mask bit and bias are; the lane takes
        its key interval and the state that it starts from.
    mask, slope : int
        The mask step of the key is at the mask memory; its distance from the anchor is known
        one clock later.
    log_score : int
        The log score is at the maximum.
    probability : int
        The probability is at the row sum and meets the value factor.
    weight : int
        The weight is at the top of the value array.
    value : int
        The first value row is at the left of the value array.
    partial : int
        The first partial sum is at the accumulator.
    state_gap : int
        Clocks from the start of a query tile to the next, if one of them starts from a state: a
        lane keeps that until its first tile has been added up.
    delay_line : int
        Clocks a log score waits for its tile's maximum.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        stages, rows = config.multiplier_stages, config.key_rows
        # Operand register, product, accumulator, output register of the score array.
        self.score = MEMORY_READ + stages + 3
        self.key_factor = self.score - stages
        self.load_factor = self.key_factor - 1
        self.score_shift = self.score + 1 + stages
        self.position = self.score_shift + LOG_SCORE - 1
        self.load_interval = self.position - 1
        self.mask = self.position - MASK_READ
        # Distance, product in two parts, their sum, two shifts and saturation of a linear bias.
        self.slope = self.mask - stages - 6
        self.log_score = self.position + 1
        self.delay_line = rows - 1 + MAXIMUM
        self.probability = self.log_score + self.delay_line + PROBABILITY
        self.state_gap = self.probability + rows + 3 - self.load_interval
        self.weight = self.probability + stages + 1
        # All rows of the value array hold the tile's weights one clock after the last one.
        self.value = self.weight + rows
        self.partial = self.value + rows + stages + 1

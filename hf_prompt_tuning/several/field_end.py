"""Decide what a field ends with: the better of its last two prompts, their average, or their vote."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CHANCE = 0.05
"""A vote is taken if a prompt as good as it would do as badly less often than this."""


@dataclass(frozen=True)
class FieldEnd:
    """What a field ended with.

    Attributes:
        kind: "one", "average" or "vote".
        prompt: the name of the prompt that is kept, which also holds the average; of a vote, the better one.
        losses: the losses that were compared, on the rows held apart, by "average" and the prompts' names.
        rows: the number of these rows.
        wins: of them, those that only the vote has right, and those that only the prompt has right; None without a
            vote.
    """

    kind: str
    prompt: str
    losses: Mapping[str, float]
    rows: int
    wins: tuple[int, int] | None = None


def chance_of(wins: int, losses: int) -> float:
    """Return how likely so many wins, or more, are if each of the wins and losses is one with probability 1/2."""
    rows = wins + losses
    return sum(math.comb(rows, i) for i in range(wins, rows + 1)) / 2**rows


def wins_of(vote: np.ndarray, prompt: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Return on how many rows only the vote is right, and on how many only the prompt; all are label indices, [N]."""
    of_vote, of_prompt = vote == labels, prompt == labels
    return int((of_vote & ~of_prompt).sum()), int((of_prompt & ~of_vote).sum())


def is_clear(wins: tuple[int, int]) -> bool:
    """Tell whether a vote with these wins (see `wins_of`) is clearly better than the prompt."""
    return chance_of(*wins) < CHANCE

"""Compare the prompts of a field by their losses on the rows held apart."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

CLEAR = 2.0
"""A prompt is clearly worse than another if its loss is higher by more standard errors than this."""


def order(losses: Mapping[str, float]) -> list[str]:
    """Return names by their losses, the lowest first. A loss that is not finite comes last."""
    return sorted(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf)


def best_first(
    losses: Mapping[str, float], of_rows: Mapping[str, np.ndarray], distances: Mapping[str, Any]
) -> list[str]:
    """Return names, the best first.

    First come those that are not clearly worse than the one with the lowest loss, by their `distances` from the
    default, and then by loss: where losses cannot tell, what is known to work can. The others follow by loss.

    Args:
        losses: each prompt's loss.
        of_rows: each prompt's losses on the rows, [N], the same rows for all.
        distances: what tells how near a prompt is to the default; lower is nearer.
    """
    by_loss = order(losses)
    best = of_rows[by_loss[0]]
    alike = [name for name in by_loss if not is_clearly_worse(of_rows[name], best)]
    alike.sort(key=lambda name: distances[name])
    return alike + [name for name in by_loss if name not in alike]


def is_clearly_worse(losses: np.ndarray, than: np.ndarray) -> bool:
    """Tell whether the first losses are clearly higher; both are of the same rows, [N]. One row tells nothing."""
    difference = losses - than
    if not np.isfinite(difference).all():
        return True
    if len(difference) < 2:
        return False
    return bool(difference.mean() > CLEAR * difference.std(ddof=1) / math.sqrt(len(difference)))

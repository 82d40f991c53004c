"""Run all prompts of an ensemble in one call of the backbone: each row is repeated for every prompt."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def for_members(batch: dict[str, Tensor], members: Sequence[str]) -> dict[str, Any]:
    """Return the batch of B rows repeated for each of G prompts, [G * B, …], with the prompt of each row."""
    repeated = {name: value.repeat(len(members), *[1] * (value.ndim - 1)) for name, value in batch.items()}
    return repeated | {"adapter_names": [name for name in members for _ in batch["input_ids"]]}


def by_member(values: Tensor, members: Sequence[str]) -> Tensor:
    """Return the results of `for_members`, [G * B, …], by row and prompt, [B, G, …]."""
    return values.unflatten(0, (len(members), -1)).transpose(0, 1)

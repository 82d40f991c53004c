"""Compute the loss of each prompt in a mixed batch, and its mean over the steps between two logs."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..layouts.base import nll_by_row, token_nll
from ..models.outputs import LabelledOutput


class PromptLosses:
    """The losses of the prompts with these names."""

    def __init__(self, names: Iterable[str]):
        self._place_of = {name: place for place, name in enumerate(names)}
        self._forget()

    def _forget(self) -> None:
        self._totals = torch.zeros(len(self._place_of))
        self._steps = dict.fromkeys(self._place_of, 0)

    def add(
        self, predictions: LabelledOutput, prompts: Sequence[str], tokens: Tensor, label_smoothing: float
    ) -> Tensor:
        """Return what a micro-batch adds to each prompt's loss, a mean over its labelled tokens in the step, [G].

        `prompts` [B] are the names of the rows' prompts, and `tokens` [B] their labelled tokens in the whole step.
        """
        nll = token_nll(predictions.logits, predictions.targets, label_smoothing)
        prompt_of = torch.tensor([self._place_of[name] for name in prompts], device=nll.device)
        losses = nll_by_row(nll / tokens[predictions.rows], prompt_of[predictions.rows], len(self._place_of))
        self._totals = self._totals.to(nll.device) + losses.detach()
        return losses

    def count_step(self, names: Iterable[str]) -> None:
        """Count an update step for each of these prompts."""
        for name in names:
            self._steps[name] += 1

    def so_far(self) -> tuple[Tensor, dict[str, int]]:
        """Return what was added since the last log, for `go_back`."""
        return self._totals, dict(self._steps)

    def go_back(self, totals: Tensor, steps: dict[str, int]) -> None:
        """Forget what was added after `so_far`, which returned these values."""
        self._totals, self._steps = totals, dict(steps)

    def take_means(self) -> dict[str, float]:
        """Return the mean loss of each prompt that made a step since the last call."""
        totals = zip(self._totals.tolist(), self._steps.items(), strict=True)
        means = {name: total / steps for total, (name, steps) in totals if steps}
        self._forget()
        return means

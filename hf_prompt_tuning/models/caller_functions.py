"""Show the ids of the caller's rows to the caller's own functions in a call of `generate`.

The backbone's `generate` is given fewer columns than the caller has: no pads that no row needs, and no head, behind
which the prompt stands. A function that counts columns would look at the wrong tokens. For T = 5, a head of one token,
and N = 3 columns that `generate` is given:

    the caller's ids      h a0 a1 ·  ·      h b0 b1 b2 ·
    generate's            ·  a0 a1 | new    b0 b1 b2 | new
    what a function sees  ·  ·  h  a0 a1 | new      ·  h  b0 b1 b2 | new
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)

FUNCTIONS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
"""The options of `generate` that are functions of a row's ids."""


@dataclass(frozen=True)
class _Shown:
    """What functions see in place of the first columns.

    Attributes:
        ids: the caller's, [B, T] long, each row's real tokens at the right.
        width: N, the number of columns that `generate` is given.
    """

    ids: Tensor
    width: int

    def rows(self, input_ids: Tensor) -> Tensor:
        """Return rows of `generate` as functions see them; each of B is continued equally often."""
        given = self.ids.repeat_interleave(len(input_ids) // len(self.ids), dim=0).to(input_ids.device)
        return torch.cat([given, input_ids[:, self.width :]], dim=1)

    def row(self, number: int, input_ids: Tensor) -> Tensor:
        """Return a row of `generate`, [N'], as functions see it."""
        return torch.cat([self.ids[number].to(input_ids.device), input_ids[self.width :]])


class _Processor(LogitsProcessor):
    def __init__(self, processor: Callable[..., Tensor], shown: _Shown):
        self._processor, self._shown = processor, shown

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._processor(self._shown.rows(input_ids), scores)


class _Criterion(StoppingCriteria):
    def __init__(self, criterion: Callable[..., Tensor], shown: _Shown):
        self._criterion, self._shown = criterion, shown

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self._criterion(self._shown.rows(input_ids), scores, **kwargs)


def seeing_callers_ids(options: dict[str, Any], ids: Tensor, mask: Tensor, given: Tensor) -> dict[str, Any]:
    """Return options of `generate` whose processors, stopping criteria and prefix function see the caller's ids.

    Args:
        options: those of the caller.
        ids: the caller's, [B, T] long.
        mask: [B, T] bool, True on real tokens.
        given: the ids that `generate` is given, [B, N] long, each row's real tokens at the right.
    """
    shown = _Shown(ids.gather(1, mask.long().argsort(dim=1, stable=True)), given.shape[1])
    if torch.equal(shown.ids, given):
        return options
    options = dict(options)
    if processors := options.get("logits_processor"):
        options["logits_processor"] = LogitsProcessorList(_Processor(one, shown) for one in processors)
    if criteria := options.get("stopping_criteria"):
        options["stopping_criteria"] = StoppingCriteriaList(_criterion(one, shown) for one in criteria)
    if (allowed := options.get("prefix_allowed_tokens_fn")) is not None:
        options["prefix_allowed_tokens_fn"] = lambda row, tokens: allowed(row, shown.row(row, tokens))
    return options


def _criterion(criterion: Any, shown: _Shown) -> StoppingCriteria:
    """Return a criterion that sees the caller's ids. One of a length keeps its class, as `generate` looks for it."""
    if type(criterion) is not MaxLengthCriteria:
        return _Criterion(criterion, shown)
    criterion = copy.copy(criterion)
    criterion.max_length += shown.width - shown.ids.shape[1]
    return criterion

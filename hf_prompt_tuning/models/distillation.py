"""Compare a student's predictions with a teacher's: the Kullback-Leibler divergence of tokens and of labels.

The loss is that of Hinton et al. 2015 (section 2). In context distillation (Askell et al. 2021, section 2.2) the
teacher is the same model behind a text:

    weight * T² * KL(teacher ‖ student) + (1 - weight) * usual loss        both distributions at temperature T
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import PromptTuningError
from ..layouts.base import LabelledLogits, nll_by_row, token_nll

NUMBERS_AT_ONCE = 2**22
"""How many numbers of the vocabulary's width are held in fp32 at once: 16 MiB, whatever the batch."""


def chunks(count: int, width: int) -> Iterator[slice]:
    """Yield slices of `count` positions, each of as many as fit in `NUMBERS_AT_ONCE` numbers."""
    size = max(NUMBERS_AT_ONCE // max(width, 1), 1)
    return (slice(start, start + size) for start in range(0, count, size))


def _wide(logits: Tensor, temperature: float) -> Tensor:
    """Return logits in fp32 (or wider), divided by the temperature."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits / temperature


def divergence(student: Tensor, teacher: Tensor, ids: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher ‖ student) in nats at each of K positions, [K], from logits [K, V].

    With `ids` ([K, k] long), the teacher's logits are those of these tokens alone, [K, k].
    """
    own = _wide(student, temperature).log_softmax(-1)
    given = _wide(teacher, temperature).log_softmax(-1)
    own = own if ids is None else own.gather(-1, ids)
    # A token that the teacher excludes (a logit of -inf) adds nothing, whatever the student says of it.
    return torch.where(given == -math.inf, 0.0, given.exp() * (given - own)).sum(-1)


class _TokenKL(torch.autograd.Function):
    """The divergence of each position. Neither pass holds more than some positions of the vocabulary in fp32.

    Autograd would keep both distributions of all positions in fp32 for the backward pass, which computes them again
    here. The gradient of the student's logits is (q - p) / T. The teacher gets none. With `reuse`, the gradient takes
    the place of the teacher's logits in memory, which the backward pass is the last to read.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, ids: Tensor | None, temperature: float, reuse: bool
    ) -> Tensor:
        ctx.save_for_backward(student, teacher, ids)
        ctx.temperature, ctx.reuse = temperature, reuse
        return positionwise(student, teacher, ids, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        student, teacher, ids = ctx.saved_tensors
        fits = ids is None and (teacher.shape, teacher.dtype) == (student.shape, student.dtype)
        result = teacher if ctx.reuse and fits else torch.empty_like(student)
        for part in chunks(*student.shape):
            difference = _wide(student[part], ctx.temperature).softmax(-1)
            given = _wide(teacher[part], ctx.temperature).softmax(-1)
            if ids is None:
                difference -= given
            else:
                difference.scatter_add_(-1, ids[part], -given)
            result[part] = difference.mul_(gradient[part, None] / ctx.temperature)
        return result, None, None, None, None


def positionwise(student: Tensor, teacher: Tensor, ids: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Return `divergence`, computed some positions at a time."""
    parts = [
        divergence(student[part], teacher[part], None if ids is None else ids[part], temperature)
        for part in chunks(*student.shape)
    ]
    return torch.cat(parts) if parts else student.new_zeros(0, dtype=torch.float32)


def token_kl(
    student: Tensor, teacher: Tensor, ids: Tensor | None = None, temperature: float = 1.0, reuse: bool = False
) -> Tensor:
    """Return `divergence`, with a gradient for the student. No pass holds all positions in fp32.

    With `reuse`, the backward pass overwrites the teacher's logits.
    """
    return _TokenKL.apply(student, teacher, ids, temperature, reuse)


def in_row_order(predictions: LabelledLogits) -> LabelledLogits:
    """Return predictions in the order of the rows and, within a row, of the columns. Layouts differ in the order."""
    rows = predictions.rows
    if not len(rows) or bool((rows[1:] >= rows[:-1]).all()):
        return predictions
    order = torch.argsort(rows, stable=True)
    return LabelledLogits(predictions.logits[order], predictions.targets[order], rows[order])


@dataclass(frozen=True)
class TokenDistillation:
    """What a teacher predicts at the K labelled positions of a batch, in the order of `in_row_order`.

    Attributes:
        logits: [K, V], without a gradient; or the k largest of each position, [K, k]. A backward pass overwrites them.
        targets: [K] long, the labelled tokens, which are also the student's.
        ids: [K, k] long, the tokens of the k largest logits; None for all of the vocabulary.
        temperature: T.
        weight: the share of the teacher in the loss, 0 to 1.
    """

    logits: Tensor
    targets: Tensor
    ids: Tensor | None = None
    temperature: float = 1.0
    weight: float = 1.0

    def total(self, predictions: LabelledLogits, label_smoothing: float = 0.0) -> Tensor:
        """Return the loss, summed over the positions.

        Raises:
            PromptTuningError: the student's labelled tokens are others.
        """
        student = in_row_order(predictions)
        check_same_targets(student.targets, self.targets)
        total = student.logits.new_zeros((), dtype=torch.float32)
        if self.weight:
            kl = token_kl(student.logits, self.logits, self.ids, self.temperature, reuse=True)
            total = total + self.weight * self.temperature**2 * kl.sum()
        if self.weight < 1:
            total = total + (1 - self.weight) * token_nll(student.logits, student.targets, label_smoothing).sum()
        return total


@dataclass(frozen=True)
class LabelDistillation:
    """What a teacher says of the L labels of B rows.

    Attributes:
        scores: [B, L] fp32, the teacher's log-likelihoods of the labels, without a gradient.
        rows: [B] bool, the rows that count.
        labels: [B] long, the right labels, -1 for a row without one. They are read if `weight` is below 1.
        lengths: [L] long, the number of tokens of each label.
        temperature, weight: as in `TokenDistillation`.
    """

    scores: Tensor
    rows: Tensor
    labels: Tensor
    lengths: Tensor
    temperature: float = 1.0
    weight: float = 1.0

    def total(self, scores: Tensor) -> Tensor:
        """Return the loss of a student's scores [B, L], summed over the rows.

        The usual loss of a row is the mean of its right label's tokens.
        """
        kl = divergence(scores, self.scores, None, self.temperature)
        total = (self.weight * self.temperature**2 * kl * self.rows).sum()
        if self.weight < 1:
            index = self.labels.clamp(min=0)
            nll = -scores.gather(1, index[:, None])[:, 0] / self.lengths[index]
            total = total + (1 - self.weight) * (nll * (self.rows & (self.labels >= 0))).sum()
        return total


def comparison(student: LabelledLogits, teacher: LabelledLogits, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compare two sets of predictions for the labelled tokens of a batch of `size` rows, each in any order.

    Return, for each row, the sum of KL(teacher ‖ student) at temperature 1, the number of tokens whose most likely
    one is the same, and the number of labelled tokens: [B] each.

    Raises:
        PromptTuningError: the labelled tokens differ.
    """
    student, teacher = in_row_order(student), in_row_order(teacher)
    counts = [torch.bincount(each.rows, minlength=size) for each in (student, teacher)]
    if len(student.rows) < len(teacher.rows):
        # Without a prompt, nothing stands before a row's first token to predict it.
        rows, lacking = teacher.rows, counts[1] > counts[0]
        is_first = torch.ones_like(rows, dtype=torch.bool)
        is_first[1:] = rows[1:] != rows[:-1]
        kept = ~(is_first & lacking[rows])
        teacher = LabelledLogits(teacher.logits[kept], teacher.targets[kept], rows[kept])
    check_same_targets(student.targets, teacher.targets)
    kl = positionwise(student.logits, teacher.logits).float()
    same = (student.logits.argmax(-1) == teacher.logits.argmax(-1)).to(kl.dtype)
    return nll_by_row(kl, student.rows, size), nll_by_row(same, student.rows, size), counts[0]


def label_comparison(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `comparison` returns of the softmax of the labels' scores, [B, L] each: one position a row."""
    same = student.argmax(-1) == teacher.argmax(-1)
    return divergence(student, teacher), same.float(), torch.ones_like(same, dtype=torch.long)


def comparison_metrics(kl: np.ndarray, agreed: np.ndarray, compared: np.ndarray) -> dict[str, float]:
    """Return the mean divergence and the share of equal most likely tokens of all rows; empty if nothing is compared.

    The arguments are those that `comparison` returns, of all rows, [N].
    """
    if not (count := int(compared.sum())):
        return {}
    return {name: float(values.sum(dtype=np.float64) / count) for name, values in (("kl", kl), ("agreement", agreed))}


def check_same_targets(student: Tensor, teacher: Tensor) -> None:
    """Raise PromptTuningError if the labelled tokens of a student and its teacher differ."""
    if not torch.equal(student, teacher.to(student.device)):
        raise PromptTuningError(
            f"the teacher predicts {len(teacher)} labelled tokens and the student {len(student)}, or other ones; give "
            "rows whose labels the teacher has, too."
        )


def mean_distribution(logits: list[Tensor]) -> Tensor:
    """Return the logits of the mean of several distributions, [K, V] fp32, from the logits of each, [K, V].

    The first tensor may be overwritten. A single one is returned as it is.
    """
    if len(logits) == 1:
        return logits[0]
    total = logits[0].float()
    for part in chunks(*total.shape):
        own = torch.stack([each[part].float().log_softmax(-1) for each in logits])
        total[part] = own.logsumexp(0) - math.log(len(logits))
    return total

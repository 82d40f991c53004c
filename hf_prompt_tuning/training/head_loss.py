"""Compute the loss of a classification head in training, with the weights of its classes."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig, TrainingArguments

from ..data.backbone_classes import classes_of_backbone
from ..data.class_names import MULTI, SINGLE
from ..data.head_template import HeadTemplate
from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..models.class_labels import checked_labels, checked_tags, problem_type
from ..models.classifiers import QUESTION_ANS, TOKEN_CLS
from ..models.head_scoring import losses
from ..models.recording import OF_HEADS
from .answer_loss import AnswerLoss
from .head_optimizer import head_rate
from .token_rows import RowEncoder

BALANCED = "balanced"


@dataclass
class HeadLoss:
    """The loss of a head, a mean over the labels of an update step.

    Attributes:
        task_type: SEQ_CLS or TOKEN_CLS.
        config: the backbone's, of which nothing is changed.
        template: turns the rows into text; None for rows of token ids.
        label_smoothing: share of the loss that all classes have alike.
        class_weights: [L] fp32 or None, each class's weight in the sum and in the mean.
        pos_weight: [L] fp32 or None, with several labels the weight of one that a row has.
    """

    task_type: str
    config: PreTrainedConfig
    template: HeadTemplate | None
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    pos_weight: Tensor | None = None

    @property
    def tags(self) -> bool:
        """Whether labels are of tokens."""
        return self.task_type == TOKEN_CLS

    @property
    def classes(self) -> list[str]:
        """The names of the head's labels."""
        if self.template is not None and self.template.labels is not None:
            return list(self.template.labels)
        return classes_of_backbone(self.config) or [str(index) for index in range(self.config.num_labels)]

    def kind(self, labels: Tensor) -> str:
        """Return the problem type of a batch's labels."""
        if self.template is not None:
            return self.template.problem_type
        return SINGLE if self.tags else problem_type(self.config, labels)

    def parts(self, logits: Tensor, labels: Tensor, weighted: bool = False) -> tuple[Tensor, Tensor]:
        """Return the loss of each label and what it counts in the mean (`losses`), with the weights if `weighted`."""
        kind = self.kind(labels)
        if not weighted:
            return losses(logits, labels, kind)
        weights = [None if each is None else each.to(logits.device) for each in (self.class_weights, self.pos_weight)]
        return losses(logits, labels, kind, *weights, self.label_smoothing)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the loss of a batch as `Trainer` asks for it.

        It is the sum of the labels' losses, divided by `num_items_in_batch`, which is what `items` counts in the whole
        update step; without it, by what this batch's labels count.
        """
        logits = outputs["logits"]
        if self.template is None:  # with one, all rows were checked
            labels = self._checked(labels)
        values, counts = self.parts(logits, labels, weighted=True)
        items = counts.sum() if num_items_in_batch is None else num_items_in_batch
        # A step whose labels count nothing has the loss 0, not 0/0.
        items = torch.as_tensor(items, device=logits.device, dtype=torch.float32)
        return values.sum() / torch.where(items > 0, items, 1.0)

    def _checked(self, labels: Tensor) -> Tensor:
        if self.tags:
            return checked_tags(labels, self.config, torch.ones_like(labels, dtype=torch.bool))
        return checked_labels(labels, self.config, len(labels))

    def items(self, labels: Tensor) -> Tensor:
        """Return what the labels of a batch count in the mean of an update step, as a tensor of one number."""
        if self.kind(labels) != SINGLE:
            # A float of -100 is a number to learn, which `Trainer` would not count.
            return (~labels.isnan()).sum()
        if self.class_weights is None:
            return (labels != IGNORED).sum()
        return (self.class_weights.to(labels.device)[labels.clamp(min=0)] * (labels != IGNORED)).sum()

    def without_label(self, rows: int, tokens: int) -> Tensor:
        """Return the labels of rows that have none: [B, T], [B] or [B, L]."""
        if self.tags:
            return torch.full((rows, tokens), IGNORED)
        kind = self.kind(torch.zeros(1, dtype=torch.long))
        if kind == SINGLE:
            return torch.full((rows,), IGNORED)
        count = self.config.num_labels
        return torch.full((rows,) if kind != MULTI and count == 1 else (rows, count), math.nan)


def head_loss(
    task_type: str | None, rows: RowEncoder, args: TrainingArguments, train: Any
) -> HeadLoss | AnswerLoss | None:
    """Return the loss of a head, None for a language model.

    `rows` are of a head's rows (`HeadRows`), and `train` are the encoded training rows, or None.

    Raise PromptTuningError if an argument of heads is given for a language model, or weights are not for the labels.
    """
    if task_type is None:
        if given := [name for name in OF_HEADS if getattr(args, name, None) is not None]:
            raise PromptTuningError(
                f"{given[0]} is given, and is for a backbone with a classification head; leave it out, or load the "
                "backbone with AutoModelForSequenceClassification or AutoModelForTokenClassification."
            )
        return None
    if task_type == QUESTION_ANS:
        return AnswerLoss.of_run(args)
    head_rate(args)  # raises here, before training
    template = None if rows.tokenizer is None else rows.tokenizer.template
    loss = HeadLoss(task_type, rows.config, template, args.label_smoothing_factor)
    weights = {name: getattr(args, name, None) for name in ("class_weights", "pos_weight")}
    if args.label_smoothing_factor or any(value is not None for value in weights.values()):
        labels = _labels(train)
        kind = template.problem_type if template is not None else loss.kind(_sample(labels))
        _check_kind(kind, args, weights)
        loss.class_weights = _weights("class_weights", weights["class_weights"], loss, labels)
        loss.pos_weight = _weights("pos_weight", weights["pos_weight"], loss, labels)
    return loss


def _check_kind(kind: str, args: TrainingArguments, weights: Mapping[str, Any]) -> None:
    wrong = {
        "class_weights": weights["class_weights"] is not None and kind != SINGLE,
        "pos_weight": weights["pos_weight"] is not None and kind != MULTI,
        "label_smoothing_factor": args.label_smoothing_factor and kind != SINGLE,
    }
    if given := [name for name, is_wrong in wrong.items() if is_wrong]:
        need = MULTI if given[0] == "pos_weight" else SINGLE
        instead = {
            ("class_weights", MULTI): "give pos_weight in its place, which weighs the labels that a row has",
            ("pos_weight", SINGLE): "give class_weights in its place, which weighs each row by its label",
        }.get((given[0], kind), "leave it out")
        raise PromptTuningError(
            f"{given[0]} is given, which is for the problem type {need}, and that of the labels is {kind}; {instead}."
        )


def _labels(train: Any) -> Any:
    """Return all labels of the training rows; None if they are not known before."""
    return train.with_format(None)["labels"][:] if isinstance(train, Dataset) else None


def _sample(labels: Any) -> Tensor:
    return torch.as_tensor(labels[0] if labels else 0)


def _weights(name: str, given: Any, loss: HeadLoss, labels: Any) -> Tensor | None:
    """Return an argument's weight for each class, [L] fp32; None if there is none."""
    classes = loss.classes
    given = _parsed(name, given)
    if given is None:
        return None
    if given == BALANCED:
        return _balanced(name, loss, labels)
    if isinstance(given, Mapping):
        missing = [label for label in classes if label not in given]
        unknown = [label for label in given if label not in classes]
        if missing or unknown:
            what = f"has no weight for {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is no class"
            raise PromptTuningError(f"{name} {what}; give a weight for each of {', '.join(map(repr, classes))}.")
        given = [given[label] for label in classes]
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    numbers = is_list and all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
    if not numbers or len(given) != len(classes) or not all(0 <= value < math.inf for value in given):
        raise PromptTuningError(
            f"{name} is {given!r:.80}; give {BALANCED!r}, or a number, 0 or more, for each of "
            f"{', '.join(map(repr, classes))}: a list of {len(classes)}, or a mapping."
        )
    if not any(given):
        raise PromptTuningError(f"{name} is {given!r:.80}, with which no label counts; give one above 0.")
    return torch.tensor([float(value) for value in given])


def _parsed(name: str, given: Any) -> Any:
    """Return a value that the command gives as JSON."""
    if not isinstance(given, str) or given == BALANCED:
        return given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    try:
        return json.loads(given)
    except ValueError as error:
        raise PromptTuningError(
            f"{name} is {given!r:.80}, neither {BALANCED!r} nor JSON ({error}); write e.g. [1, 2.5] or a mapping of "
            "class to number."
        ) from error


def _balanced(name: str, loss: HeadLoss, labels: Any) -> Tensor:
    """Return weights with which all classes count alike: N / (L · n) for one of n labels, of several absent / present.

    Raise PromptTuningError if the training rows are not known, or a class has none.
    """
    if labels is None:
        raise PromptTuningError(f"{name} is {BALANCED!r}, and the training rows are a stream; give numbers.")
    classes = loss.classes
    if name == "class_weights":
        flat = np.concatenate([np.atleast_1d(row) for row in labels]).astype(int)
        counts = np.bincount(flat[flat != IGNORED], minlength=len(classes)).astype(float)
        values = counts.sum() / len(classes) / np.maximum(counts, 1)
    else:
        rows = np.asarray(labels, dtype=float)
        counts = rows.sum(0)
        values = (len(rows) - counts) / np.maximum(counts, 1)
    if not counts.all():
        lacking = classes[int(counts.argmin())]
        raise PromptTuningError(
            f"{name} is {BALANCED!r}, and no training row has the label {lacking!r}; give a weight for each class."
        )
    return torch.tensor(values, dtype=torch.float32)

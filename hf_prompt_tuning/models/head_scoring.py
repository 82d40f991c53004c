"""Compute the losses and the metrics of a classification head's predictions."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from ..layouts.base import IGNORED
from .class_labels import MULTI, REGRESSION, SINGLE
from .scoring import metric

SPAN_TAG = re.compile(r"O|[BIES]-.+")


def losses(
    logits: Tensor,
    labels: Tensor,
    kind: str,
    class_weights: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each label, 0 where none is given, and what it counts in a mean, of the same shape.

    The sum of the losses, divided by the sum of the counts, is the mean of torch's own loss.

    Args:
        logits: [B, L] or [B, T, L].
        labels: [B] or [B, T] long (-100: none), [B] floats (L = 1) or [B, L] floats (NaN: none).
        kind: the problem type.
        class_weights: [L], a label's weight in the loss and in the mean (one label).
        pos_weight: [L], the weight of a label that a row has (several labels).
        label_smoothing: share of the loss that all classes have alike (one label).

    Returns:
        Two tensors of fp32, of [B] or [B, T] (one label), [B, L] (several labels), or of `labels` (numbers).
    """
    logits = logits.float()
    if kind == SINGLE:
        given = labels != IGNORED
        options = {"weight": class_weights, "label_smoothing": label_smoothing, "ignore_index": IGNORED}
        flat = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", **options)
        counts = given.float() if class_weights is None else class_weights[labels.clamp(min=0)] * given
        return flat.view(labels.shape), counts
    given = ~labels.isnan()
    labels = labels.nan_to_num().float()
    if kind == MULTI:
        values = functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=pos_weight, reduction="none")
    else:
        values = (logits.view(labels.shape) - labels) ** 2
    return values * given, given.float()


def head_metrics(
    predictions: np.ndarray | list[np.ndarray], references: Any, kind: str, classes: Sequence[str], tags: bool
) -> dict[str, float]:
    """Return the metrics of the rows that have a label; empty if none has.

    One label: accuracy, macro F1 (`f1`) and micro F1. Several: the same, a label being predicted if its probability is
    above a half; the accuracy is that of whole rows. Numbers: Pearson's and Spearman's correlation. Tags: precision,
    recall and F1 of spans if the classes are named B-X, I-X and O, else those of one label, of all words together.

    Args:
        predictions: logits [N, L], or the predicted tags [N, T] long.
        references: labels as in `losses`, of N rows.
        kind: the problem type.
        classes: the names of the L labels.
        tags: whether the labels are of tokens.
    """
    if tags:
        return _metrics_of_tags(predictions, references, classes)
    if kind == SINGLE:
        rows = references != IGNORED
        return _metrics_of_labels(predictions[rows].argmax(1), references[rows])
    rows = ~np.isnan(references.reshape(len(references), -1)).any(1)
    if not rows.any():
        return {}
    predictions, references = predictions[rows], references[rows]
    if kind == REGRESSION:
        if predictions.size != len(references):
            return {}  # several numbers for a row, of which no correlation is the one
        return metric("numbers.py").compute(predictions=predictions.reshape(-1), references=references.reshape(-1))
    return metric("several_labels.py").compute(predictions=predictions > 0, references=references > 0.5)


def _metrics_of_labels(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Return accuracy, macro and micro F1 of label indices, which are all given."""
    if not len(references):
        return {}
    metrics = metric("classification.py").compute(predictions=predictions, references=references)
    # Each row has one label and gets one, so that false positives and false negatives are as many.
    return metrics | {"f1_micro": metrics["accuracy"]}


def _metrics_of_tags(predictions: Any, references: Any, classes: Sequence[str]) -> dict[str, float]:
    given = references != IGNORED
    if not given.any():
        return {}
    if not are_spans(classes):
        return _metrics_of_labels(predictions[given], references[given])
    rows = [row for row in range(len(references)) if given[row].any()]
    named = {
        name: [[classes[tag] for tag in values[row][given[row]]] for row in rows]
        for name, values in (("predictions", predictions), ("references", references))
    }
    return metric("spans.py").compute(**named)


def are_spans(classes: Sequence[str]) -> bool:
    """Tell whether tags mark spans: all are O or B-X, I-X (also E-X, S-X), and one at least is not O."""
    return all(SPAN_TAG.fullmatch(name) for name in classes) and any(name != "O" for name in classes)

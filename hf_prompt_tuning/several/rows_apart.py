"""Hold rows apart from a training set, to compare prompts by."""

import random
from collections import defaultdict
from collections.abc import Sequence, Sized
from typing import Any

from datasets import Dataset

from ..errors import PromptTuningError
from ..layouts.base import IGNORED

SHARE = 0.2
LEAST_OF_A_LABEL, LEAST_OF_TEXTS = 4, 8
MOST = 1000
FEW = 500
"""With fewer training rows, about 100 or fewer are held apart."""


def rows_apart(labels: Sequence[Any], least: int, seed: int) -> list[int]:
    """Return the numbers of the rows to hold apart, in order.

    A fifth of the rows of each label, but at least `least` of them, and never more than half. Of many rows, about
    1,000 in all. A label with a single row keeps it for training.
    """
    by_label: dict[Any, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        by_label[label].append(row)
    share, drawn, held = min(SHARE, MOST / max(len(labels), 1)), random.Random(seed), []
    for label in sorted(by_label):
        rows = by_label[label]
        held += drawn.sample(rows, min(max(round(share * len(rows)), least), len(rows) // 2))
    return sorted(held)


def check_is_no_stream(rows: Any, name: str) -> None:
    """Raise PromptTuningError if the data `name` is a stream, whose rows cannot be counted or chosen."""
    if rows is not None and not isinstance(rows, Sized):
        raise PromptTuningError(
            f"the {name} data is a {type(rows).__name__}, and recipe auto chooses among rows; give a list of them, or "
            "a Dataset of the datasets library."
        )


def divide(labels: Sequence[Any], seed: int, are_texts: bool) -> tuple[list[int], list[int]]:
    """Return the numbers of the rows to train on, and of those to hold apart, in order.

    `labels` has one entry for each row; of free texts, all the same. Raise PromptTuningError if there are too few.
    """
    held = rows_apart(labels, LEAST_OF_TEXTS if are_texts else LEAST_OF_A_LABEL, seed)
    if not held:
        raise PromptTuningError(
            f"recipe auto holds training rows apart to compare prompts by, and there are too few, {len(labels)}; give "
            "two rows of each label or more, or evaluation data."
        )
    return sorted(set(range(len(labels))) - set(held)), held


def are_learned_later(train: Any, evaluation: Any) -> bool:
    """Tell whether the rows held apart are learned from, too, once they have chosen a prompt.

    They are if they are of the training rows, and these are few: then each row counts, and those held apart are too
    few to tell an average or a vote from one prompt.
    """
    return evaluation is None and isinstance(train, Sized) and len(train) < FEW


def check_labelled(rows: Dataset) -> None:
    """Raise PromptTuningError if no row of token ids has a labelled token."""
    if not any(token != IGNORED for labels in rows["labels"] for token in labels):
        raise PromptTuningError(
            "no row of the evaluation data has a label or a target, and recipe auto chooses by its loss there; leave "
            "it out, and training rows are held apart, or give rows with labels."
        )

"""Check the labels of a classification head, and decide as transformers does which loss they have."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..prompts.info import PROBLEM_TYPES

REGRESSION, SINGLE, MULTI = PROBLEM_TYPES
WHOLE = (torch.long, torch.int32)


def problem_type(config: PreTrainedConfig, labels: Tensor) -> str:
    """Return the problem type of a batch's labels: the config's, or else by the number of labels and their dtype.

    transformers writes what it decides for the first batch into the config. A backbone is shared, so it is decided for
    each batch here, and always by this rule (DeBERTa in transformers has another one).
    """
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return REGRESSION
    return SINGLE if labels.dtype in WHOLE else MULTI


def checked_labels(labels: Tensor, config: PreTrainedConfig, rows: int) -> Tensor:
    """Return the labels of B = `rows` rows in the form that transformers' losses take.

    They are [B] long indices (single label), [B, L] floats of 0 to 1 (several labels), or [B] or [B, L] floats
    (regression). Raise PromptTuningError if they are not.
    """
    kind, count = problem_type(config, labels), config.num_labels
    if kind == SINGLE:
        _check_whole(labels, [rows], count, kind)
        return labels.reshape(rows).long()
    shape = [rows] if kind == REGRESSION and count == 1 else [rows, count]
    if list(labels.shape) not in (shape, [rows, count]) or not labels.is_floating_point():
        raise PromptTuningError(
            f"labels has shape {list(labels.shape)} and dtype {labels.dtype}, and the problem type is {kind} with "
            f"{count} labels; give floats of {shape}, or set the backbone's config.problem_type to what they are."
        )
    if kind == MULTI and bool(((labels < 0) | (labels > 1)).any()):
        raise PromptTuningError(
            f"labels hold {labels[(labels < 0) | (labels > 1)][0].item():g}, and the problem type is {kind}; give a "
            "number from 0 to 1 for each label."
        )
    return labels.reshape(shape).float()


def checked_tags(labels: Tensor, config: PreTrainedConfig, mask: Tensor) -> Tensor:
    """Return the labels of tokens, [B, T] long; -100 on pads, which `mask` [B, T] bool tells.

    Raise PromptTuningError if they are of another shape or dtype, or a label does not exist.
    """
    _check_whole(labels, list(mask.shape), config.num_labels, "a label for each token")
    return labels.reshape(mask.shape).long().masked_fill(~mask, IGNORED)


def _check_whole(labels: Tensor, shape: list[int], count: int, kind: str) -> None:
    if list(labels.shape) not in (shape, [*shape, 1]) or labels.dtype not in WHOLE:
        raise PromptTuningError(
            f"labels has shape {list(labels.shape)} and dtype {labels.dtype}; give whole numbers (torch.long) of "
            f"{shape} ({kind})."
        )
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= count))
    if bool(wrong.any()):
        raise PromptTuningError(
            f"labels hold {labels[wrong][0].item()}, and the head has {count} labels; give 0 to {count - 1} (-100 "
            "where there is none), or load the backbone with num_labels."
        )

"""What a prompt-tuning model gives: of labelled tokens or candidates only, or all that its backbone gives."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig
from transformers.modeling_outputs import ModelOutput

from ..errors import PromptTuningError
from ..layouts import Examples, Prompts
from ..layouts.base import take_columns
from ..layouts.padded import as_it_came, row_mask


@dataclasses.dataclass
class RankingOutput(ModelOutput):
    """What `forward(..., candidates=…)` gives.

    Attributes:
        scores: [B, L] fp32, the log-likelihood of each candidate's words behind each row.
    """

    scores: Tensor | None = None


@dataclasses.dataclass
class LabelledOutput(ModelOutput):
    """What `forward(..., only_labelled=True)` gives: the loss and the predictions of the K labelled tokens.

    Attributes:
        loss: scalar.
        logits: [K, V].
        targets: [K] long, the tokens that stand there.
        rows: [K] long, the example of each.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None
    rows: Tensor | None = None


def check_has_place(output_attentions: bool | None, config: PretrainedConfig) -> None:
    """Refuses attentions, which cannot be brought back into the caller's columns.

    Raises:
        PromptTuningError: they are asked for, by argument or by config.
    """
    if config.output_attentions if output_attentions is None else output_attentions:
        raise PromptTuningError(
            "output_attentions is given for rows padded at the left, or for prompts of several lengths; "
            "pad rows at the right, and give prompts of one length."
        )


def came_back(value: Any, prompts: Prompts, examples: Examples) -> Any:
    """What the backbone gives for each token of padded rows, in the columns of the batch as it came.

    Args:
        value: logits [B, P+T, V], hidden states [B, P+T, H] (or a tuple of them, with streams [S, B, P+T, H] in a
            backbone that has several), or a router's scores, a tuple of [B*(P+T), E]; anything else stays as it is.
        prompts: those in front of the rows.
        examples: [B, T].
    """
    if isinstance(value, tuple):
        return tuple(came_back(v, prompts, examples) for v in value)
    batch, length = examples.mask.shape
    shape = (batch, length + max(map(len, prompts.vectors)))
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 3 and value.shape[:2] == shape:
        return as_it_came(value, prompts, examples)
    if value.dim() == 2 and value.shape[0] == shape[0] * shape[1]:
        return as_it_came(value.unflatten(0, shape), prompts, examples).flatten(0, 1)
    if value.dim() == 4 and value.shape[1:3] == shape:
        return torch.stack([as_it_came(stream, prompts, examples) for stream in value])
    return value


def check_even(asked: GenerationConfig, config: PretrainedConfig) -> None:
    """Refuses attentions of generated rows that are not of one length, where columns have other places than theirs.

    Raises:
        PromptTuningError: they are asked for, by argument or by config.
    """
    if asked.return_dict_in_generate and (asked.output_attentions or config.output_attentions):
        raise PromptTuningError(
            "output_attentions is given to generate for rows with pads, or for prompts of several lengths; give rows "
            "of one length, or one at a time."
        )


def first_came_back(steps: Any, prompts: Prompts, examples: Examples) -> Any:
    """Hidden states of each step of `generate`, those of the first, [B', P+N, H], in the columns of the batch, P+T.

    Args:
        steps: for each step a tuple of [B', …, H], of rows `[pads | prompt | text]`, each row as often as it is
            continued.
        prompts: those in front of the rows.
        examples: [B, T].
    """
    came = dataclasses.replace(examples, mask=examples.mask_as_it_came())
    to_mask = row_mask(prompts, came)

    def moved(states: Tensor) -> Tensor:
        if states.dim() == 4:
            return torch.stack(tuple(map(moved, states)))
        copies = states.shape[0] // len(to_mask)
        taken = to_mask.sum(1)[:, None] > torch.arange(states.shape[1], device=states.device).flip(0)
        found = states.new_zeros(states.shape[0], to_mask.shape[1], states.shape[2])
        found[to_mask.repeat_interleave(copies, 0)] = states[taken.repeat_interleave(copies, 0)]
        return found

    return (tuple(map(moved, steps[0])), *steps[1:])


def targets_came_back(value: Any, order: Tensor) -> Any:
    """What a decoder gives for each label ([B, T', ...], or a tuple of such) in the columns that the labels had."""
    if isinstance(value, tuple):
        return tuple(targets_came_back(v, order) for v in value)
    return take_columns(value, torch.argsort(order, dim=1))


def routing_loss(outputs: ModelOutput, config: PretrainedConfig) -> Tensor | float:
    """What a backbone of experts adds to its loss, where its routers' scores are asked for."""
    if (balance := outputs.get("aux_loss")) is None:
        return 0.0
    return getattr(config.get_text_config(), "router_aux_loss_coef", 0.0) * balance

"""Define the outputs of a prompt-tuning model, and move a backbone's outputs to the caller's columns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig
from transformers.modeling_outputs import ModelOutput

from ..errors import PromptTuningError
from ..layouts import Examples, Prompts
from ..layouts.base import take_columns
from ..layouts.padded import in_caller_columns, row_mask

ROUTING_LOSSES = {
    **dict.fromkeys(("aux_loss", "encoder_aux_loss", "decoder_aux_loss"), "router_aux_loss_coef"),
    **dict.fromkeys(("encoder_z_loss", "decoder_z_loss"), "router_z_loss_coef"),
}
"""A mixture of experts' outputs that are part of its loss, with the config's factor for each."""


@dataclasses.dataclass
class RankingOutput(ModelOutput):
    """Output of `forward(..., candidates=…)`.

    Attributes:
        scores: [B, L] fp32, the log-likelihood of each candidate's words after each row. After a search, -inf for a
            candidate that was left out.
        loss: scalar, if a teacher's scores are given.
        nodes: [B] long, after a search: how many tokens of the candidates were computed behind each row. Tokens that
            candidates share at their beginning count once, and a candidate's last token is predicted, not computed.
            None if all were computed without a search.
    """

    scores: Tensor | None = None
    loss: Tensor | None = None
    nodes: Tensor | None = None


@dataclasses.dataclass
class LabelledOutput(ModelOutput):
    """Output of `forward(..., only_labelled=True)`: the loss and the predictions of the K labelled tokens.

    Attributes:
        loss: scalar.
        logits: [K, V].
        targets: [K] long, the token ids at the labelled positions.
        rows: [K] long, the example of each labelled token.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None
    rows: Tensor | None = None


def check_no_attentions(output_attentions: bool | None, config: PretrainedConfig) -> None:
    """Raise PromptTuningError if argument or config ask for attentions, which cannot be moved to caller's columns."""
    if config.output_attentions if output_attentions is None else output_attentions:
        raise PromptTuningError(
            "output_attentions is given for rows padded at the left, or for prompts of several lengths, or for rows "
            "with a token before the prompt; pad rows at the right, and give prompts of one length that stand at the "
            "start."
        )


def outputs_in_caller_columns(value: Any, prompts: Prompts, examples: Examples) -> Any:
    """Move what the backbone returns for each token of padded rows to the columns of the caller's batch.

    It is logits [B, P+T, V]; hidden states [B, P+T, H], or a tuple of them (with streams [S, B, P+T, H] in a backbone
    that has several); or a tuple of router scores [B*(P+T), E]. Anything else is returned unchanged.
    """
    batch, length = examples.mask.shape
    shape = (batch, length + max(map(len, prompts.vectors)))
    return moved(value, shape, lambda x: in_caller_columns(x, prompts, examples))


def moved(value: Any, shape: tuple[int, int], move: Callable[[Tensor], Tensor]) -> Any:
    """Apply `move` to what belongs to each token of rows of `shape`, [B, N, ...]; see `outputs_in_caller_columns`."""
    if isinstance(value, tuple):
        return tuple(moved(v, shape, move) for v in value)
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 3 and value.shape[:2] == shape:
        return move(value)
    if value.dim() == 2 and value.shape[0] == shape[0] * shape[1]:
        return move(value.unflatten(0, shape)).flatten(0, 1)
    if value.dim() == 4 and value.shape[1:3] == shape:
        return torch.stack([move(stream) for stream in value])
    return value


def check_no_attentions_of_steps(options: GenerationConfig, config: PretrainedConfig) -> None:
    """Raise PromptTuningError if argument or config ask for attentions of generated rows of different lengths."""
    if options.return_dict_in_generate and (options.output_attentions or config.output_attentions):
        raise PromptTuningError(
            "output_attentions is given to generate for rows with pads, or for prompts of several lengths; give rows "
            "of one length, or one at a time."
        )


def first_step_in_caller_columns(steps: Any, prompts: Prompts, examples: Examples) -> Any:
    """Move the first step's hidden states of `generate`, [B', P+N, H], to the P+T columns of the caller's batch.

    `steps` is for each step a tuple of [B', …, H], of rows `[pads | prompt | text]`. Each row is repeated as often as
    it is continued.
    """
    to_mask = row_mask(prompts, dataclasses.replace(examples, mask=examples.caller_mask()))

    def moved(states: Tensor) -> Tensor:
        if states.dim() == 4:
            return torch.stack(tuple(map(moved, states)))
        copies = states.shape[0] // len(to_mask)
        taken = to_mask.sum(1)[:, None] > torch.arange(states.shape[1], device=states.device).flip(0)
        result = states.new_zeros(states.shape[0], to_mask.shape[1], states.shape[2])
        result[to_mask.repeat_interleave(copies, 0)] = states[taken.repeat_interleave(copies, 0)]
        return result

    return (tuple(map(moved, steps[0])), *steps[1:])


def in_label_columns(value: Any, order: Tensor) -> Any:
    """Move what a decoder returns for each label ([B, T', ...], or a tuple of them) to the labels' own columns."""
    if isinstance(value, tuple):
        return tuple(in_label_columns(v, order) for v in value)
    return take_columns(value, torch.argsort(order, dim=1))


def routing_loss(outputs: ModelOutput, config: PretrainedConfig) -> Tensor | float:
    """Return what a mixture-of-experts backbone adds to its loss, if the routers' scores are asked for; else 0.

    In encoder-decoders it is the sum over both halves.
    """
    text_config = config.get_text_config()
    found = {name: outputs[name] for name in ROUTING_LOSSES if outputs.get(name) is not None}
    return sum(getattr(text_config, ROUTING_LOSSES[name], 0.0) * loss for name, loss in found.items())

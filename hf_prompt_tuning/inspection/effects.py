"""What each vector of a prompt does to text: the attention that it gets, and what the answers are without it."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import PromptTuningError, first_line
from ..models.scoring import label_nll, rank_labels
from ..models.soft_prompts import SoftPrompts


class Quality(NamedTuple):
    """How well a prompt does on some rows.

    Attributes:
        loss: per token of the targets, as `eval_loss`.
        accuracy: the share of rows whose label ranks first; None for free text.
    """

    loss: float
    accuracy: float | None


@torch.no_grad()
def attention_to_prompt(model: SoftPrompts, rows: Sequence[dict[str, Any]]) -> Tensor:
    """The share of a text's attention that each prompt vector gets, in each layer: [layers, P] fp32, on the CPU.

    The mean over heads and over the text's tokens, source and target, and then over rows. A token's shares of the
    prompt and of the text add up to 1. Of an encoder-decoder model it is the encoder's self-attention.

    Args:
        model: in eval mode. Its attention is computed by transformers' `eager` code meanwhile, which alone tells it.
        rows: token ids as the template makes them (`input_ids`). One is run at a time: attention takes
            layers · heads · (P+T)² numbers.

    Raises:
        PromptTuningError: the backbone gives no attentions, or its eager code is not the model that it is used as.
    """
    backbone, length = model.get_base_model(), len(model.prompt)
    total: Tensor | None = None
    for number, row in enumerate(rows):
        expected = None if number else _run(model, row).logits
        with _eager(backbone):
            output = _run(model, row, output_attentions=True)
        if expected is not None:
            _check_agreement(backbone, output.logits, expected)
        layers = _layers(output, length + len(row["input_ids"]))
        if not layers:
            raise PromptTuningError(f"{type(backbone).__name__} gives no attentions.")
        share = torch.stack([layer[0, :, length:, :length].float().mean((0, 1)).cpu() for layer in layers])
        total = share if total is None else total + share
    if total is None:
        raise PromptTuningError("there are no rows to look at; give some.")
    return total / len(rows)


def _run(model: SoftPrompts, row: dict[str, Any], **kwargs: Any) -> Any:
    backbone = model.get_base_model()
    if backbone.config.is_encoder_decoder:
        start = backbone.config.decoder_start_token_id or 0
        kwargs["decoder_input_ids"] = torch.tensor([[start]], device=model.prompt.device)
    elif "use_cache" in inspect.signature(backbone.forward).parameters:
        kwargs["use_cache"] = False
    return model(input_ids=torch.tensor([row["input_ids"]], device=model.prompt.device), **kwargs)


def _layers(output: Any, width: int) -> list[Tensor]:
    """The attentions of those layers that have any ([1, heads, P+T, P+T]); a hybrid model's others have none."""
    name = "encoder_attentions" if "encoder_last_hidden_state" in output else "attentions"
    return [layer for layer in getattr(output, name, None) or () if layer is not None and layer.shape[-1] == width]


@contextmanager
def _eager(backbone: PreTrainedModel) -> Iterator[None]:
    """Within this context attention is computed by plain matrix products, and can be given back."""
    before = backbone.config._attn_implementation
    if before == "eager":
        yield
        return
    try:
        backbone.set_attn_implementation("eager")
    except ValueError as error:
        raise PromptTuningError(f"{type(backbone).__name__} gives no attentions: {first_line(error)}") from error
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)


def _check_agreement(backbone: PreTrainedModel, got: Tensor, expected: Tensor) -> None:
    """Some models' eager code is not quite the model (Falcon's adds ALiBi twice); its attentions would mislead."""
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not error <= (1e-3 if expected.dtype == torch.float32 else 5e-2):
        raise PromptTuningError(
            f"{type(backbone).__name__} predicts otherwise when its attention is computed so that it can be looked at "
            f"(logits differ by {error:.1e})."
        )


def quality(
    model: SoftPrompts, batches: Sequence[dict[str, Tensor]], label_token_ids: Sequence[Sequence[int]]
) -> Quality:
    """Loss and accuracy of the active prompt on labelled rows.

    Args:
        model: in eval mode.
        batches: as the collator makes them, every row with a target; `label` [B] where labels are ranked.
        label_token_ids: the L labels' tokens; empty for free text.
    """
    device = model.prompt.device
    lost, tokens, right, rows = 0.0, 0, 0, 0
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.items()}
        gold = inputs.pop("label", None)
        if label_token_ids:
            scores = rank_labels(model, inputs, label_token_ids, model.config.is_encoder_decoder)
            sizes = torch.tensor([len(ids) for ids in label_token_ids], device=device)
            nll, counted = -scores.gather(1, gold[:, None])[:, 0], sizes[gold]
            right += int((scores.argmax(1) == gold).sum())
        else:
            nll, counted = label_nll(model, inputs)
        lost, tokens, rows = lost + float(nll.double().sum()), tokens + int(counted.sum()), rows + len(nll)
    return Quality(lost / tokens, right / rows if label_token_ids else None)


def quality_without_each(
    model: SoftPrompts, batches: Sequence[dict[str, Tensor]], label_token_ids: Sequence[Sequence[int]]
) -> list[Quality]:
    """P times loss and accuracy: with one vector removed, those behind it move up (P-1 are left).

    Each of the P shorter prompts goes before all rows in turn. Behind another prompt every hidden state of a row is
    another, so there would be nothing to share between them but a pass, and the rows fill those.

    Args:
        model: as in `quality`.
        batches: as in `quality`.
        label_token_ids: as in `quality`.
    """
    found, vectors = [], model.prompt.detach()
    for left_out in range(len(vectors)):
        with model.replaced_prompt(torch.cat([vectors[:left_out], vectors[left_out + 1 :]])):
            found.append(quality(model, batches, label_token_ids))
    return found

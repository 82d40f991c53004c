"""Measure the effect of each prompt vector: the attention that it gets, and loss and accuracy without it."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.collator import DataCollatorForPromptTuning, beside_texts
from ..data.heads import without_head
from ..errors import PromptTuningError, first_line
from ..layouts.label_search import LabelSearch
from ..layouts.sharing import of_all_parts
from ..models.scoring import label_losses, label_nll, search_labels
from ..models.soft_prompts import SoftPrompts


class Quality(NamedTuple):
    """Loss and accuracy of a prompt on rows of data.

    Attributes:
        loss: mean loss per target token, as in `eval_loss`.
        accuracy: share of rows whose label ranks first; None for free text.
    """

    loss: float
    accuracy: float | None


@torch.no_grad()
def attention_to_prompt(
    model: SoftPrompts, rows: Sequence[dict[str, Any]], collate: DataCollatorForPromptTuning
) -> Tensor:
    """Return the share of the text's attention that each prompt vector gets in each layer, [layers, P] fp32, on CPU.

    It is the mean over heads and over the text's tokens (source and target), then over rows. The shares that a token
    gives to the prompt, to its head and to the text add up to 1. For an encoder-decoder model it is the encoder's
    self-attention. Each row runs on its own, with its pictures, because attention takes layers · heads · (P+T)²
    numbers. `collate` makes a batch of it. The model is in eval mode, and is not changed. Raise PromptTuningError if
    there are no rows, the backbone returns no attentions, or its eager code computes other logits than its usual code.
    """
    if not rows:
        raise PromptTuningError("there are no rows to look at; give some.")
    head = model.active_peft_config.head
    first, text, eager = len(head), len(head) + len(model.prompt), _in_eager(model)
    shares = []
    for number, row in enumerate(rows):
        batch = collate([row])
        batch = {name: batch[name].to(model.prompt.device) for name in ("input_ids", *beside_texts(batch))}
        output = _run(eager, batch, output_attentions=True)
        if not number:
            _check_agreement(model.get_base_model(), output.logits, _run(model, batch).logits)
        layers = _layers(output, text + len(without_head(row["input_ids"], head)))
        if not layers:
            raise PromptTuningError(f"{type(model.get_base_model()).__name__} gives no attentions.")
        shares.append(torch.stack([layer[0, :, text:, first:text].float().mean((0, 1)).cpu() for layer in layers]))
    return sum(shares) / len(rows)


def _in_eager(model: SoftPrompts) -> SoftPrompts:
    """Return a stand-in that computes attention by plain matrix products: only they return attentions."""
    eager = of_all_parts(model)
    backbone = eager.get_base_model()
    try:
        backbone.set_attn_implementation("eager")
    except ValueError as error:
        raise PromptTuningError(f"{type(backbone).__name__} gives no attentions: {first_line(error)}") from error
    return eager


def _run(model: SoftPrompts, batch: dict[str, Tensor], **kwargs: Any) -> Any:
    backbone = model.get_base_model()
    if backbone.config.is_encoder_decoder:
        start = backbone.config.decoder_start_token_id or 0
        kwargs["decoder_input_ids"] = torch.tensor([[start]], device=model.prompt.device)
    elif "use_cache" in inspect.signature(backbone.forward).parameters:
        kwargs["use_cache"] = False
    return model(**batch, **kwargs)


def _layers(output: Any, width: int) -> list[Tensor]:
    """Return the attentions of the layers, [1, heads, P+T, P+T] each. Some layers of hybrid models have none."""
    name = "encoder_attentions" if "encoder_last_hidden_state" in output else "attentions"
    return [layer for layer in getattr(output, name, None) or () if layer is not None and layer.shape[-1] == width]


def _check_agreement(backbone: PreTrainedModel, got: Tensor, expected: Tensor) -> None:
    """Raise PromptTuningError if the eager code computes other logits than the usual code.

    This happens for some models (Falcon's eager code adds ALiBi twice). Their attentions would be misleading.
    """
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not error <= (1e-3 if expected.dtype == torch.float32 else 5e-2):
        raise PromptTuningError(
            f"{type(backbone).__name__} predicts otherwise when its attention is computed so that it can be looked at "
            f"(logits differ by {error:.1e})."
        )


def quality(
    model: SoftPrompts, batches: Sequence[dict[str, Tensor]], label_token_ids: Sequence[Sequence[int]]
) -> Quality:
    """Return loss and accuracy of the active prompt, of a model in eval mode, on labelled rows.

    Every row has a target, and for classification the batches have `label` [B]. `label_token_ids` are those of the L
    labels; empty for free text.
    """
    device = model.prompt.device
    nll_sum, tokens, right, rows = 0.0, 0, 0, 0
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.items()}
        gold = inputs.pop("label", None)
        if label_token_ids:
            search = LabelSearch(required=gold)
            scores = search_labels(model, inputs, label_token_ids, model.config.is_encoder_decoder, search).scores
            nll, counted = label_losses(scores, gold, label_token_ids)
            right += int((scores.argmax(1) == gold).sum())
        else:
            nll, counted = label_nll(model, inputs)
        nll_sum, tokens, rows = nll_sum + float(nll.double().sum()), tokens + int(counted.sum()), rows + len(nll)
    return Quality(nll_sum / tokens, right / rows if label_token_ids else None)


def quality_without_each(
    model: SoftPrompts, batches: Sequence[dict[str, Tensor]], label_token_ids: Sequence[Sequence[int]]
) -> list[Quality]:
    """Return loss and accuracy for each of the P prompts with one vector removed. Arguments are those of `quality`.

    A shorter prompt has P-1 vectors; those behind the removed one move up. Each shorter prompt is evaluated on all
    rows in turn. Every hidden state of a row depends on the prompt, so the shorter prompts have no computation in
    common. Joining them in one batch would save nothing, because the rows already fill the batches.
    """
    results, vectors = [], model.prompt.detach()
    for left_out in range(len(vectors)):
        with model.replaced_prompt(torch.cat([vectors[:left_out], vectors[left_out + 1 :]])):
            results.append(quality(model, batches, label_token_ids))
    return results

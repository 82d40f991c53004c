"""What is right: the bare backbone, one row at a time, on `[prompt | text]`. Nothing here knows of the package."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel as Backbone

from tests.shared.versions import per_layer_inputs

IGNORED = -100


def inputs(backbone: Backbone, prompt: Tensor | None, ids: Tensor) -> dict[str, Tensor]:
    """A row for the backbone: a prompt's vectors [P, H] and the embedded text; without a prompt the text's ids."""
    if prompt is None:
        return {"input_ids": ids[None]}
    text = embedded(backbone, ids)
    row = {"inputs_embeds": torch.cat([prompt.to(text.dtype), text])[None]}
    if hasattr(backbone.base_model, "get_per_layer_inputs"):
        # A virtual token has the pad token's.
        pads = torch.full((len(prompt),), backbone.config.pad_token_id or 0)
        row["per_layer_inputs"] = per_layer_inputs(backbone.base_model, torch.cat([pads, ids])[None])
    return row


def embedded(backbone: Backbone, ids: Tensor) -> Tensor:
    """Token vectors [T, H] as the first layer gets them, or what stands for them in `inputs_embeds`."""
    scale = getattr(backbone.get_encoder(), "embed_scale", 1.0) if backbone.config.is_encoder_decoder else 1.0
    table = backbone.get_input_embeddings()
    return table(ids) * (1.0 if hasattr(table, "embed_scale") else scale)


def logits(backbone: Backbone, prompt: Tensor | None, ids: Tensor) -> Tensor:
    """[P+T, V] of a causal model."""
    return backbone(**inputs(backbone, prompt, ids), use_cache=False).logits[0]


def predictions(backbone: Backbone, prompt: Tensor | None, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """[K, V] and [K]: the predictions of a row's labelled tokens, and the labels.

    Of a causal model the labels are [T], and the prompt's last vector predicts the first token (without a prompt
    nothing does); of an encoder-decoder they are a whole text.
    """
    if not backbone.config.is_encoder_decoder:
        found, first = logits(backbone, prompt, ids), 1 if prompt is None else 0
        found, labels = found[len(found) - len(ids) - 1 + first : -1], labels[first:]
        return found[labels != IGNORED], labels[labels != IGNORED]
    labels = labels[labels != IGNORED]
    if not len(labels):
        return torch.zeros(0, backbone.config.vocab_size), labels
    row = inputs(backbone, prompt, ids)
    return backbone(**row, labels=labels[None].clone(), use_cache=False).logits[0], labels


def nll(backbone: Backbone, prompt: Tensor | None, ids: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """The summed negative log-likelihood of a row's labelled tokens, and how many there are."""
    found, targets = predictions(backbone, prompt, ids, labels)
    return torch.nn.functional.cross_entropy(found.float(), targets, reduction="sum"), len(targets)


def score(backbone: Backbone, prompt: Tensor | None, ids: Tensor, words: Tensor) -> Tensor:
    """The log-likelihood of `words` [W] behind a row."""
    if backbone.config.is_encoder_decoder:
        return -nll(backbone, prompt, ids, words)[0]
    return -nll(backbone, prompt, torch.cat([ids, words]), torch.cat([torch.full_like(ids, IGNORED), words]))[0]


def step_logits(backbone: Backbone, prompt: Tensor | None, ids: Tensor, new: Tensor) -> Tensor:
    """[N, V]: what each of the `new` tokens [N] was chosen from (of an encoder-decoder, they are the decoder's)."""
    if not backbone.config.is_encoder_decoder:
        return logits(backbone, prompt, torch.cat([ids, new]))[-len(new) - 1 : -1]
    start = torch.tensor([backbone.generation_config.decoder_start_token_id])
    decoded = torch.cat([start, new[:-1]])[None]
    return backbone(**inputs(backbone, prompt, ids), decoder_input_ids=decoded, use_cache=False).logits[0]


def generated(backbone: Backbone, prompt: Tensor | None, ids: Tensor, **options: Any) -> Any:
    """What the backbone's own `generate` gives for the row alone; its sequences begin with the text's ids."""
    row = inputs(backbone, prompt, ids)
    size = (len(prompt) if prompt is not None else 0) + len(ids)
    options |= {"attention_mask": torch.ones(1, size, dtype=torch.long), "return_dict_in_generate": True}
    options |= {} if backbone.config.is_encoder_decoder else {"input_ids": ids[None]}
    options |= {name: value for name, value in row.items() if name != "per_layer_inputs"}

    def add(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Gemma 3n's and 4's outermost `forward` takes no vectors of their layers, so `generate` hands none on."""
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and "per_layer_inputs" in row and embeds.shape[1] == size:
            kwargs["per_layer_inputs"] = row["per_layer_inputs"].expand(len(embeds), *[-1] * 3)
        return args, kwargs

    handle = backbone.base_model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        return backbone.generate(output_scores=True, **options)
    finally:
        handle.remove()

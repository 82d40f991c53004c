"""Prompts at the places where they can stand, and their rows by hand: embeddings put together, one row at a time."""

import torch
from torch import Tensor

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model
from hf_prompt_tuning.layouts.base import IGNORED
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.tiny_models import tiny_model

HEADS = {"start": (), "after_bos": (1,), "system": (1, 7, 9)}
"""The head at each place."""


def place_config(place: str, **values) -> PromptTuningConfig:
    """The config of a random prompt at a place."""
    values = dict(num_virtual_tokens=4, prompt_tuning_init="RANDOM", random_range=1.0) | values
    return PromptTuningConfig(prompt_position=place, head_token_ids=HEADS[place] or None, **values)


def placed_model(name: str, place: str, seed: int = 0, dtype: torch.dtype = torch.float32, **values):
    """A tiny backbone with a random prompt at a place."""
    torch.manual_seed(seed + 1)
    backbone = tiny_backbone(name) if name in ARCHITECTURES else tiny_model(name, seed)
    return get_prompt_tuning_model(backbone.to(dtype), place_config(place, **values))


def assembled(model, text: Tensor, name: str | None = None, vectors: Tensor | None = None) -> dict[str, Tensor]:
    """The backbone's input for one text [T] behind a prompt: head, vectors and text as embeddings."""
    backbone = model.get_base_model()
    prompt = model.prompt_encoder[name or model.active_adapter]
    head = torch.tensor(model.peft_config[name or model.active_adapter].head, dtype=torch.long)
    embed = backbone.get_input_embeddings()
    scale = 1.0 if hasattr(embed, "embed_scale") else getattr(_encoder(backbone), "embed_scale", 1.0)
    vectors = prompt.embedding.weight if vectors is None else vectors
    embeds = torch.cat([embed(head) * scale, vectors.to(embed.weight.dtype), embed(text) * scale])
    inputs = {"inputs_embeds": embeds[None]}
    if hasattr(getattr(backbone, "model", None), "get_per_layer_inputs"):
        ids = torch.cat([head, torch.zeros(len(vectors), dtype=torch.long), text])
        inputs["per_layer_inputs"] = backbone.model.get_per_layer_inputs(ids[None])
    return inputs


def _encoder(backbone):
    return backbone.get_encoder() if backbone.config.is_encoder_decoder else None


def real_logits(model, text: Tensor, name: str | None = None) -> Tensor:
    """The logits of [head | prompt | text] by hand, [h+P+T, V]."""
    return model.get_base_model()(**assembled(model, text, name), use_cache=False).logits[0]


def loss_by_hand(model, rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean loss of labelled tokens, each row alone."""
    before = len(model.peft_config[model.active_adapter].head) + len(model.prompt)
    total, count = 0.0, 0
    for ids, labels in rows:
        logits, keep = real_logits(model, ids)[before - 1 : -1], labels != IGNORED
        total = total + torch.nn.functional.cross_entropy(logits[keep].float(), labels[keep], reduction="sum")
        count += int(keep.sum())
    return total / count


@torch.no_grad()
def greedy_by_hand(model, text: Tensor, steps: int, name: str | None = None) -> list[int]:
    """The next tokens behind a text, each from a pass over the whole row."""
    new: list[int] = []
    for _ in range(steps):
        row = torch.cat([text, torch.tensor(new, dtype=torch.long)])
        new.append(int(real_logits(model, row, name)[-1].argmax()))
    return new


def in_front(head: tuple[int, ...], rows: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The rows with a head's ids in front, which have no labels."""
    ids = torch.tensor(head, dtype=torch.long)
    return [(torch.cat([ids, text]), torch.cat([torch.full_like(ids, IGNORED), labels])) for text, labels in rows]


def expected_columns(model, text: Tensor, has_head: bool) -> Tensor:
    """The logits of a row in the columns of its caller, [P+T, V]: what is left over, and what predicts each token."""
    logits, h, p = real_logits(model, text), len(model.peft_config["default"].head), len(model.prompt)
    if not h or not has_head:
        return logits[h:]
    rest, own, last = logits[h - 1 : h + p - 1], logits[: h - 1], logits[h + p - 1 : h + p]
    return torch.cat([rest, own, last, logits[h + p :]])


def whole_loss_by_hand(model, rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean loss of rows that begin with the head, in which tokens of the head may have labels, too."""
    head, total, count = len(model.peft_config["default"].head), 0.0, 0
    for ids, labels in rows:
        logits, keep = expected_columns(model, ids[head:], True)[len(model.prompt) : -1], labels[1:] != IGNORED
        total = total + torch.nn.functional.cross_entropy(logits[keep], labels[1:][keep], reduction="sum")
        count += int(keep.sum())
    return total / count

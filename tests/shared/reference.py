"""The slow reference that fast code is compared with, and batches to compare on."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model
from hf_prompt_tuning.layouts.base import IGNORED
from tests.shared.tiny_models import VOCAB, tiny_model
from tests.shared.versions import per_layer_inputs


def tiny_prompt_model(name: str, num_virtual_tokens: int = 5, seed: int = 0, backbone=None, **config):
    """A tiny backbone (or the one given) behind a random prompt."""
    config = {"prompt_tuning_init": "RANDOM"} | config
    torch.manual_seed(seed + 1)
    return get_prompt_tuning_model(
        tiny_model(name, seed) if backbone is None else backbone,
        PromptTuningConfig(num_virtual_tokens=num_virtual_tokens, **config),
    )


def row_encoder_of(trainer):
    """What turns the rows of a trainer's template into token ids."""
    return trainer.model.row_encoder(trainer.processing_class)


def ragged_rows(lengths: list[int], seed: int = 0, first_labelled: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Token ids and labels of rows of these lengths; the first row's first token is labelled too."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i, length in enumerate(lengths):
        ids = torch.randint(4, VOCAB, (length,), generator=generator)
        start = 0 if i == 0 and first_labelled else length // 2
        rows.append((ids, torch.where(torch.arange(length) >= start, ids, IGNORED)))
    return rows


def pad(rows: list[tuple[Tensor, Tensor]], side: str) -> dict[str, Tensor]:
    """A batch of rows, padded at one side."""
    longest = max(len(ids) for ids, _ in rows)

    def together(tensors: list[Tensor], value: int) -> Tensor:
        pads = [torch.full((longest - len(tensor),), value) for tensor in tensors]
        pairs = zip(pads, tensors, strict=True) if side == "left" else zip(tensors, pads, strict=True)
        return torch.stack([torch.cat(pair) for pair in pairs])

    return {
        "input_ids": together([ids for ids, _ in rows], 0),
        "attention_mask": together([torch.ones_like(ids) for ids, _ in rows], 0),
        "labels": together([labels for _, labels in rows], IGNORED),
    }


def reference_loss(model, rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean over labelled tokens, each example alone, unpadded, straight through the backbone."""
    backbone, total, count = model.get_base_model(), 0.0, 0
    for ids, labels in rows:
        text = backbone.get_input_embeddings()(ids[None])
        embeds = torch.cat([model.prompt[None].to(text.dtype), text], dim=1)
        extra = {}
        if hasattr(getattr(backbone, "model", None), "get_per_layer_inputs"):
            pads = torch.zeros(1, len(model.prompt), dtype=torch.long)
            extra["per_layer_inputs"] = per_layer_inputs(backbone.model, torch.cat([pads, ids[None]], dim=1))
        logits = backbone(inputs_embeds=embeds, use_cache=False, **extra).logits[0, len(model.prompt) - 1 : -1]
        keep = labels != IGNORED
        total = total + torch.nn.functional.cross_entropy(logits[keep].float(), labels[keep], reduction="sum")
        count += int(keep.sum())
    return total / count


@torch.no_grad()
def greedy(model, ids: Tensor, steps: int, adapter: str | None = None) -> list[int]:
    """The next tokens behind one row, each from a pass over all before it: no cache, no pads, no `generate`."""
    with behind(model, adapter):
        new: list[int] = []
        for _ in range(steps):
            row = torch.cat([ids, torch.tensor(new, dtype=torch.long)])[None]
            new.append(int(model(input_ids=row).logits[0, -1].argmax()))
    return new


@contextmanager
def behind(model, adapter: str | None) -> Iterator[None]:
    """Within this context a prompt is the active one, "__base__" for none; None changes nothing."""
    before = model.active_adapter
    if adapter not in (None, "__base__"):
        model.set_adapter(adapter)
    with model.disable_adapter() if adapter == "__base__" else nullcontext():
        yield
    model.set_adapter(before)


def with_prompts(model, *, seed: int = 7, **lengths: int):
    """The model with more prompts, of these names and lengths; the first stays active."""
    torch.manual_seed(seed)
    for name, length in lengths.items():
        kind = model.peft_config["default"].task_type
        config = dict(task_type=kind, prompt_tuning_init="RANDOM", random_range=1.0)
        model.add_adapter(name, PromptTuningConfig(num_virtual_tokens=length, **config))
    return model


def loss_and_gradient(model, loss: Tensor) -> tuple[float, Tensor]:
    """The loss as a number and the prompt's gradient, which is cleared."""
    model.prompt.grad = None
    loss.backward()
    gradient = model.prompt.grad.clone()
    model.prompt.grad = None
    return loss.item(), gradient


def require_exact(model, rows: list[tuple[Tensor, Tensor]], *sides: str, only_labelled: bool = True) -> None:
    """Assert that a batch has the loss and the prompt's gradient of its rows alone, whichever side is padded."""
    expected_loss, expected = loss_and_gradient(model, reference_loss(model, rows))
    for side in sides or ("right", "left"):
        loss, gradient = loss_and_gradient(model, model(**pad(rows, side), only_labelled=only_labelled).loss)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert relative_error(gradient, expected) < 1e-5


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, against the largest expected number."""
    return float((got - expected).abs().max() / expected.abs().max())

"""Ragged rows for models with a head, in a batch and each alone by hand."""

import pytest
import torch
from torch import Tensor

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model
from tests.shared import classifiers
from tests.shared.classifiers import hidden_by_hand, tokenizer_with_cls
from tests.shared.reference import relative_error
from tests.shared.tiny_models import VOCAB

LENGTHS = (7, 12, 1, 4)
P = 5


def with_prompt(backbone, position: str = "start", **config):
    torch.manual_seed(1)
    config = PromptTuningConfig(
        num_virtual_tokens=P, prompt_tuning_init="RANDOM", random_range=1.0, prompt_position=position, **config
    )
    return get_prompt_tuning_model(backbone, config, tokenizer_with_cls() if position != "start" else None)


def rows_of(name: str, seed: int = 0, ends: bool = False) -> list[dict[str, Tensor]]:
    """Ragged rows that begin with the token 1; pads of the model's id are among their tokens.

    With `ends` each has EOS for a last token, and two have one more in the middle.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(0, VOCAB, (length,), generator=generator)
        ids[0] = 1
        if length > 2:
            ids[-1] = 0  # what is a token is told by the mask, not by the id
        if ends:
            ids[length // 2 : length // 2 + (length > 5)] = 2
            ids = torch.cat([ids, torch.tensor([2])])
        row = {"input_ids": ids}
        if name in classifiers.TOKEN_TYPES:
            row["token_type_ids"] = (torch.arange(length) >= max(length // 2, 1)).long()
        rows.append(row)
    return rows


def batch_of(rows: list[dict[str, Tensor]], side: str) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(tensor: Tensor, value: int) -> Tensor:
        pads = torch.full((longest - len(tensor),), value)
        return torch.cat([pads, tensor] if side == "left" else [tensor, pads])

    batch = {key: torch.stack([padded(row[key], 3) for row in rows]) for key in rows[0] if key != "token_type_ids"}
    batch["attention_mask"] = torch.stack([padded(torch.ones_like(row["input_ids"]), 0) for row in rows])
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = torch.stack([padded(row["token_type_ids"], 0) for row in rows])
    return batch


def alone(model, rows: list[dict[str, Tensor]], behind: int) -> list[Tensor]:
    """The logits of each row by hand, [L] or [n, L]."""
    backbone, head = model.get_base_model(), model.prompt_encoder["default"].classifier
    read = classifiers.logits_by_hand(model.task_type)
    logits = []
    for row in rows:
        types = {key: value for key, value in row.items() if key == "token_type_ids"}
        hidden = hidden_by_hand(backbone, model.prompt, row["input_ids"], behind, **types)
        logits.append(read(backbone, head, hidden))
    return logits


def gradients(model, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of the prompt and its head by name, which are cleared."""
    model.zero_grad()
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    return found


def adds_to_all_columns(model, weight: Tensor) -> bool:
    """Whether it is the bias of an answer's two scores, which changes no probability: its gradient is 0."""
    return model.task_type == "QUESTION_ANS" and weight.shape == (2,)


def require_equal(model, loss: Tensor, expected: Tensor) -> None:
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, by_hand = gradients(model, loss), gradients(model, expected)
    assert {name.rpartition(".")[0] for name in ours} > {"prompt_encoder.default.embedding"}
    for name, gradient in by_hand.items():
        if adds_to_all_columns(model, gradient):
            assert max(float(values.abs().max()) for values in (gradient, ours[name])) < 1e-6, name
            continue
        assert relative_error(ours[name], gradient) < 1e-5, name

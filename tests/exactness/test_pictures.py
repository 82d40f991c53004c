"""Batches of ragged rows, of which some have pictures: each row alone, unpadded, straight through the backbone."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_prompt_tuning.layouts.label_search import LabelSearch
from tests.shared.reference import tiny_prompt_model, with_prompts
from tests.shared.tiny_pictures import KINDS, batch_of, by_hand, greedy_by_hand, picture_rows, tiny_picture_model

ROWS = [(11, 1), (6, 0), (17, 2), (9, 1)]
NAMES = ["default", "other", "default", "__base__"]
LABELS = [[5, 6], [7], [5, 9, 11], [8, 4]]
OPTIONS = dict(
    max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0, suppress_tokens=list(range(390, 400))
)


def model_of(name):
    torch.manual_seed(1)
    return with_prompts(tiny_prompt_model("", 5, backbone=tiny_picture_model(name), random_range=1.0), other=3)


def trained(model):
    return [model.prompt_encoder[name].embedding.weight.requires_grad_() for name in ("default", "other")]


def vectors_of(model, name):
    if name == "__base__":
        return torch.zeros(0, 32)
    return model.prompt_encoder[name].embedding.weight


@pytest.fixture(params=[(name, side) for name in KINDS for side in ("left", "right")], ids="-".join)
def case(request):
    """A model, ragged rows with and without pictures, and their batch."""
    name, side = request.param
    rows = picture_rows(name, ROWS)
    return model_of(name), rows, batch_of(name, rows, side)


def test_logits_loss_and_gradient(case):
    model, rows, batch = case
    prompts, backbone = trained(model.train()), model.base_model
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for b, row in enumerate(rows):  # the last three tokens of each row
        real = batch["attention_mask"][b].nonzero()[:, 0]
        labels[b, real[:-3]] = -100
        assert torch.equal(batch["input_ids"][b, real], row["input_ids"][0])
    alone = [by_hand(backbone, vectors_of(model, name), row)[0] for name, row in zip(NAMES, rows, strict=True)]
    losses = [cross_entropy(logits[-4:-1], row["input_ids"][0, -3:]) for logits, row in zip(alone, rows, strict=True)]
    expected = sum(losses) / len(ROWS)
    gradients = torch.autograd.grad(expected, prompts)
    assert all(bool((gradient != 0).any()) for gradient in gradients)
    for layout in ("whole rows", "auto", "cached", "padded"):
        only_labelled = layout != "whole rows"
        if only_labelled:
            model.use_layout(layout)
        out = model(**batch, labels=labels, adapter_names=NAMES, only_labelled=only_labelled)
        torch.testing.assert_close(out.loss, expected, rtol=1e-4, atol=1e-4)
        for got, right in zip(torch.autograd.grad(out.loss, prompts), gradients, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-4)
        for b, logits in enumerate(alone):
            real = batch["attention_mask"][b].nonzero()[:, 0]
            if only_labelled:
                got, right = out.logits[out.rows == b], logits[-4:-1]
            else:
                got, right = out.logits[b, 5 + real], logits[-len(real) :]
            torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-4)
        if layout == "auto":
            # A mask or positions of the pictures' own go with the tokens in padded rows alone.
            moves_freely = batch.keys().isdisjoint({"token_type_ids", "mm_token_type_ids"})
            assert model.chosen_layouts == (["packed"] if moves_freely else [])


def test_ranked_labels(case):
    model, rows, batch = case
    model.eval()
    scores = model(**batch, candidates=LABELS, adapter_names=NAMES).scores
    best = model(**batch, candidates=LABELS, adapter_names=NAMES, search=LabelSearch(top_k=1)).scores
    for b, row in enumerate(rows):
        for label, words in enumerate(LABELS):
            whole = dict(row)
            for key in ("input_ids", "token_type_ids", "mm_token_type_ids"):
                if key in row:
                    new = torch.tensor([words]) * (key == "input_ids")
                    whole[key] = torch.cat([row[key], new], 1)
            with torch.no_grad():
                logits = by_hand(model.base_model, vectors_of(model, NAMES[b]), whole)[0, -len(words) - 1 : -1]
            expected = -cross_entropy(logits, torch.tensor(words), reduction="sum")
            torch.testing.assert_close(scores[b, label], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(best.argmax(1), scores.argmax(1))


def test_generated_tokens(case):
    model, rows, batch = case
    model.eval()
    width = batch["input_ids"].shape[1]
    written = model.generate(**batch, adapter_names=NAMES, **OPTIONS)
    assert torch.equal(written[:, :width], batch["input_ids"])
    for b, row in enumerate(rows):
        expected = greedy_by_hand(model.base_model, vectors_of(model, NAMES[b]), row, 4)
        assert written[b, width:].tolist() == expected
        assert model.generate(**row, adapter_names=[NAMES[b]], **OPTIONS)[0, -4:].tolist() == expected

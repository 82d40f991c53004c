"""Whatever `forward` gives is in the order, the width and the columns in which it was asked for."""

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from hf_prompt_tuning import PromptTuningError

from .conftest import tiny_model
from .helpers import loss_and_gradient, tiny_prompt_model, with_prompts

LENGTHS = [6, 3, 1, 4]
SIDES = ["right", "left", "both", "scattered"]
NAMES = {"one prompt": None, "several": ["short", "default", "__base__", "long"]}
FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def batch_of(side, labelled=2, lengths=LENGTHS):
    """Rows with pads at one side, at both, or in between, in 8 columns; the last tokens of each are labelled."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.zeros(len(lengths), 8, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, length in enumerate(lengths):
        start = {"right": 0, "left": 8 - length, "both": (8 - length) // 2, "scattered": 0}[side]
        places = torch.arange(start, start + length)
        if side == "scattered":
            places = torch.randperm(8, generator=generator)[:length].sort().values
        ids[row, places] = torch.randint(4, 400, (length,), generator=generator)
        mask[row, places] = 1
        labels[row, places[-labelled:]] = ids[row, places[-labelled:]]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def model_of(name, names, **changes):
    model = tiny_prompt_model(name, backbone=tiny_model(name, **changes), random_range=1.0)
    return model if names is None else with_prompts(model, short=2, long=9)


def alone(model, batch, row, names, **kwargs):
    """The backbone's output of [prompt | text] of one row, by hand; and how long the prompt is."""
    name = "default" if names is None else names[row]
    vectors = model.prompt[:0] if name == "__base__" else model.prompt_encoder[name].embedding.weight
    backbone = model.get_base_model()
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    embeds = torch.cat([vectors, backbone.get_input_embeddings()(ids)])[None]
    return backbone(inputs_embeds=embeds, return_dict=True, **kwargs), len(vectors)


def by_hand(model, batch, names, temperature=1.0):
    """TRL's fields of each label, [B, T] in the columns of the labels themselves, zero where there is none."""
    found = {name: torch.zeros(batch["labels"].shape) for name in FIELDS}
    for row in range(len(batch["labels"])):
        output, length = alone(model, batch, row, names)
        places = batch["attention_mask"][row].nonzero()[:, 0]
        for number, place in enumerate(places.tolist()):
            label = batch["labels"][row, place]
            if label == -100 or length + number == 0:
                continue
            scores = output.logits[0, length + number - 1] / temperature
            log_probs = scores.log_softmax(-1)
            values = {
                "log_probs": log_probs[label],
                "entropy": -(log_probs.exp() * log_probs).sum(),
                "log_sum_sq_probs": (2 * log_probs).logsumexp(0),
                "mean_logits": scores.mean(),
                "is_top1": scores.argmax() == label,
            }
            for name, value in values.items():
                found[name][row, place] = value
    return found


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prompts", NAMES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt", "mamba"])
def test_fused_outputs_are_in_the_callers_columns(name, prompts, side):
    """A TRL trainer reads `log_probs[:, -C:]` as those of the last C tokens."""
    model, names = model_of(name, NAMES[prompts]), NAMES[prompts]
    add_fused_lm_head(model.get_base_model(), temperature=0.7, outputs=FIELDS)
    batch = batch_of(side, labelled=2)
    batch["labels"][:, 0] = -100
    output = model(**batch, adapter_names=names, fused_lm_head=True, use_cache=False)
    right = by_hand(model, batch, names, temperature=0.7)
    for field in FIELDS:
        torch.testing.assert_close(
            output[field].float(), right[field][:, 1:], rtol=1e-3, atol=1e-4, msg=lambda m, f=field: f"{f}: {m}"
        )
    predicted = right["log_sum_sq_probs"][:, 1:] != 0
    assert output.label_mask.dtype == torch.bool and torch.equal(output.label_mask, predicted)
    total = -right["log_probs"].sum().item()
    assert output.loss.item() == pytest.approx(total / int(predicted.sum()), rel=1e-4)
    counted = model(**batch, adapter_names=names, fused_lm_head=True, num_items_in_batch=3, return_dict=False)
    assert counted[0].item() == pytest.approx(total / 3, rel=1e-4) and torch.equal(counted[1], output.log_probs)


@pytest.mark.parametrize("completion", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_gradient_of_the_last_columns_reaches_the_prompt(side, completion):
    """With completions of one token it never did: what is read is the last column alone."""
    model = model_of("llama", None)
    add_fused_lm_head(model.get_base_model())
    batch = batch_of(side, labelled=completion, lengths=[8, 8] if side == "right" else [8, 5])
    read = model(**batch, fused_lm_head=True).log_probs[:, -completion:]
    right = by_hand(model, batch, None)["log_probs"][:, -completion:]
    assert read.shape == (2, completion)
    found, expected = loss_and_gradient(model, read.sum()), loss_and_gradient(model, right.sum())
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-4)
    assert expected[1].abs().max() > 0.01


def test_fused_outputs_of_a_batch_without_labels_have_a_gradient():
    model = model_of("llama", None)
    add_fused_lm_head(model.get_base_model())
    batch = batch_of("left")
    batch["labels"].fill_(-100)
    _, gradient = loss_and_gradient(model, model(**batch, fused_lm_head=True).log_probs.sum())
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_the_fused_head_cannot_do_is_refused():
    model = model_of("llama", None)
    batch = batch_of("left")
    with pytest.raises(PromptTuningError, match="fused_lm_head is given, and the backbone has none"):
        model(**batch, fused_lm_head=True)
    add_fused_lm_head(model.get_base_model())
    for name, value in {"label_smoothing": 0.1, "only_labelled": True, "candidates": [[5]]}.items():
        with pytest.raises(PromptTuningError, match=f"{name} is given with fused_lm_head, which knows none"):
            model(**batch, fused_lm_head=True, **{name: value})
    with pytest.raises(PromptTuningError, match="fused_lm_head is given without labels"):
        model(**batch | {"labels": None}, fused_lm_head=True)
    assert model(**batch, fused_lm_head=False).logits.shape == (4, 13, 400)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("side", SIDES)
def test_fused_outputs_are_as_wide_as_shifted_labels(side, extra):
    """[B, T], as without a prompt; or [B, T+1] with the first token's."""
    model = model_of("llama", None)
    add_fused_lm_head(model.get_base_model(), outputs=FIELDS)
    batch = batch_of(side, labelled=8)
    batch["labels"][:, : 1 - extra] = -100
    right = by_hand(model, batch, None)
    shifted = torch.nn.functional.pad(batch.pop("labels")[:, 1 - extra :], (0, 1), value=-100)
    output = model(**batch, shift_labels=shifted, fused_lm_head=True)
    for field in FIELDS:
        assert output[field].shape == shifted.shape
        torch.testing.assert_close(output[field][:, :-1].float(), right[field][:, 1 - extra :], rtol=1e-3, atol=1e-4)
        assert not output[field][:, -1].any()


def test_a_first_token_that_trl_counts_has_a_column():
    """The class of GPT-2 has no loss of its own, and TRL counts all its labels; the last N-1 columns stay the same."""
    model = model_of("gpt2", None)
    add_fused_lm_head(model.get_base_model(), outputs=FIELDS)
    batch = batch_of("right", labelled=8)
    right = by_hand(model, batch, None)
    output = model(**batch, fused_lm_head=True)
    for field in FIELDS:
        torch.testing.assert_close(output[field].float(), right[field], rtol=1e-3, atol=1e-4)
    assert int(output.label_mask.sum()) == sum(LENGTHS)

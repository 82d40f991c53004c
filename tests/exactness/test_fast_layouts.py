"""Cached and packed against each example alone: loss, gradient, ranking, several prompts, windows."""

import pytest
import torch

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError
from hf_prompt_tuning.layouts import blocks, packed
from hf_prompt_tuning.layouts.masks import Reach, ancestors, tree_mask
from tests.shared.reference import (
    loss_and_gradient,
    pad,
    ragged_rows,
    reference_loss,
    relative_error,
    require_exact,
    tiny_prompt_model,
    with_prompts,
)
from tests.shared.tiny_models import DECODERS
from tests.shared.versions import checkpoint_activations

LABELS = [[11, 2], [12, 13, 2], [2]]
EXPECTED = {"mamba": "padded"}


def rows_with_a_shared_head(lengths, head=(9, 9, 8)):
    """As a template's first words: the same tokens in front of every example."""
    first = torch.tensor(head)
    unlabelled = torch.full((len(head),), -100)
    rows = ragged_rows(lengths, first_labelled=False)
    return [(torch.cat([first, ids]), torch.cat([unlabelled, labels])) for ids, labels in rows]


BATCHES = {
    "ragged": ragged_rows([7, 1, 12, 4]),
    "alone": ragged_rows([6]),
    "one token": ragged_rows([1]),
    "shared head": rows_with_a_shared_head([7, 1, 12, 4]),
    "a row without labels": [*ragged_rows([5, 3]), (torch.tensor([5, 6]), torch.tensor([-100, -100]))],
}


@pytest.fixture(params=[96, 3], ids=["one call", "blocks"])
def block_size(request, monkeypatch):
    monkeypatch.setattr(blocks, "MIN_BLOCK", request.param)
    monkeypatch.setattr(blocks, "MIN_OWN_BLOCK", request.param)
    monkeypatch.setattr(packed, "MIN_BLOCK", request.param)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", DECODERS)
def test_the_default_layout_is_exact(name, batch, block_size):
    model, rows = tiny_prompt_model(name), BATCHES[batch]
    require_exact(model, rows)
    assert set(model.chosen_layouts) == {EXPECTED.get(name, "packed")}


@pytest.mark.parametrize("name", ["llama", "bloom", "mamba"])
def test_a_first_batch_without_the_prompt_changes_no_choice(name):
    """As where the backbone alone is evaluated before training."""
    model = tiny_prompt_model(name)
    with torch.no_grad(), model.disable_adapter():
        model(**pad(BATCHES["ragged"], "right"), only_labelled=True)
    assert model.chosen_layouts == [EXPECTED.get(name, "packed")]


@pytest.mark.parametrize("layout", ["cached", "packed"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "opt"])
def test_layouts_by_name(name, attention, layout):
    model = tiny_prompt_model(name)
    model.get_base_model().set_attn_implementation(attention)
    model.use_layout(layout, max_packed_tokens=20, check=False)
    for rows in BATCHES.values():
        require_exact(model, rows, "right")


def test_a_window_shorter_than_the_rows_is_cut_by_positions(monkeypatch):
    from tests.shared import reference
    from tests.shared.tiny_models import tiny_model

    monkeypatch.setattr(reference, "tiny_model", lambda name, seed: tiny_model(name, seed, sliding_window=4))
    model, rows = tiny_prompt_model("mistral", num_virtual_tokens=6), ragged_rows([9, 3, 12])
    plain = reference_loss(tiny_prompt_model("llama", num_virtual_tokens=6), rows)
    assert (reference_loss(model, rows) - plain).abs() > 1e-3  # the window does something
    for layout in ("cached", "packed"):
        model.use_layout(layout)
        require_exact(model, rows, "right")


@pytest.mark.parametrize("layout", ["padded", "cached", "packed"])
def test_several_prompts_in_one_batch(layout, block_size):
    model = tiny_prompt_model("llama", num_virtual_tokens=5)
    model.add_adapter("other", PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    model.use_layout(layout)
    rows = ragged_rows([7, 2, 5, 4], first_labelled=False)
    names = ["default", "other", "__base__", "other"]
    found = model(**pad(rows, "left"), only_labelled=True, adapter_names=names)
    total = torch.zeros(())
    for name in ("default", "other", "__base__"):
        part = [row for row, n in zip(rows, names, strict=True) if n == name]
        count = sum(int((labels != -100).sum()) for _, labels in part)
        if name == "__base__":
            with model.disable_adapter():
                total = total + model(**pad(part, "right")).loss * count
        else:
            model.set_adapter(name)
            total = total + reference_loss(model, part) * count
    prompts = [model.prompt_encoder[name].embedding.weight for name in ("default", "other")]
    expected = torch.autograd.grad(total, prompts)
    got = torch.autograd.grad(found.loss * len(found.targets), prompts)
    assert found.loss.item() * len(found.targets) == pytest.approx(total.item(), rel=1e-5)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))


def test_a_block_looks_at_one_prompts_keys(monkeypatch):
    """Two prompts of two vectors, with a text of three tokens behind each."""
    monkeypatch.setattr(blocks, "MIN_OWN_BLOCK", 5)
    segments, positions = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    mask = tree_mask(ancestors([-1, 0, -1, 2]), segments, positions, Reach())
    cut = blocks.cut(mask, [2, 5, 7, 10], torch.float32)
    assert [(block.start, block.stop, block.keys.tolist()) for block in cut] == [
        (0, 5, [0, 1, 2, 3, 4]),
        (5, 10, [5, 6, 7, 8, 9]),
    ]


def test_computed_prompts_leave_a_row_room_for_texts():
    """Four prompts of 6 vectors with a text of 2 tokens each: a mask of 8 * 32 is under 20 * 20.

    The first text has two labelled tokens and each other one.
    """
    model = with_prompts(tiny_prompt_model("llama", 6), a=6, b=6, c=6)
    model.use_layout("packed", max_packed_tokens=20, check=False)
    batch = pad(ragged_rows([2, 2, 2, 2]), "right") | {"adapter_names": ["default", "a", "b", "c"]}
    labelled = []  # of each pass
    model.get_base_model().register_forward_hook(lambda *call: labelled.append(call[-1].logits.shape[1]))
    model(**batch, only_labelled=True)
    assert labelled == [3, 2]
    with torch.no_grad():
        model(**batch, only_labelled=True)
    assert labelled[2:] == [1, 1, 1, 1, 4]  # the prompts alone, one of which predicts a first token, and all texts


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "mpt"])
def test_ranking_is_the_same_in_every_layout(name):
    model = tiny_prompt_model(name).eval()
    batch = pad(rows_with_a_shared_head([7, 2, 5]), "left")
    batch.pop("labels")
    scores = {}
    for layout in ("padded", "cached", "packed"):
        model.use_layout(layout, max_packed_tokens=40)
        with torch.no_grad():
            scores[layout] = model(**batch, candidates=LABELS).scores
    for found in scores.values():
        torch.testing.assert_close(found, scores["padded"], rtol=1e-5, atol=1e-4)


def test_layouts_stay_exact_after_steps_and_evaluations():
    model = tiny_prompt_model("llama")
    optimizer = torch.optim.AdamW([model.prompt], lr=0.1)
    rows = ragged_rows([7, 3, 9])
    for layout in ("packed", "cached", "padded", "packed"):
        model.use_layout(layout)
        with torch.inference_mode():
            model(**pad(rows, "left"), only_labelled=True)
        loss, gradient = loss_and_gradient(model, model(**pad(rows, "left"), only_labelled=True).loss)
        expected_loss, expected = loss_and_gradient(model, reference_loss(model, rows))
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert relative_error(gradient, expected) < 1e-5
        model.prompt.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("layout", ["padded", "cached", "packed"])
def test_an_example_has_the_same_loss_in_any_batch(layout):
    model, rows = tiny_prompt_model("llama"), rows_with_a_shared_head([7, 1, 12, 4, 9])
    model.use_layout(layout, max_packed_tokens=40)
    alone = [reference_loss(model, [row]).item() for row in rows]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 1], [1, 4, 3, 2, 0]):
        found = model(**pad([rows[i] for i in order], "left"), only_labelled=True)
        nll = torch.nn.functional.cross_entropy(found.logits, found.targets, reduction="none")
        for row, i in enumerate(order):
            assert nll[found.rows == row].mean().item() == pytest.approx(alone[i], rel=1e-5)


@pytest.mark.parametrize("layout", ["padded", "cached", "packed"])
def test_parts_of_a_batch_add_up_to_it(layout):
    """What gradient accumulation does: each part's loss is divided by the labels of the whole."""
    model, rows = tiny_prompt_model("llama"), ragged_rows([7, 1, 12, 4, 9])
    model.use_layout(layout)
    expected_loss, expected = loss_and_gradient(model, reference_loss(model, rows))
    labels = sum(int((labels != -100).sum()) for _, labels in rows)
    parts = [
        loss_and_gradient(model, model(**pad(part, "right"), only_labelled=True, num_items_in_batch=labels).loss)
        for part in (rows[:2], rows[2:3], rows[3:])
    ]
    assert sum(loss for loss, _ in parts) == pytest.approx(expected_loss, rel=1e-5)
    assert relative_error(sum(gradient for _, gradient in parts), expected) < 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, on loading flex_attention
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_flex_attention_sees_the_same(name):
    """Forward alone: flex_attention has no backward on a CPU."""
    model, rows = tiny_prompt_model(name), rows_with_a_shared_head([7, 1, 12, 4])
    labels = [model(**pad([row], "right"), only_labelled=True).logits for row in rows]
    model.get_base_model().set_attn_implementation("flex_attention")
    model.use_layout("packed", check=False)
    with torch.no_grad():
        found = model(**pad(rows, "right"), only_labelled=True)
    torch.testing.assert_close(found.logits, torch.cat(labels), rtol=1e-4, atol=1e-4)


def test_activation_checkpointing_takes_packed_and_refuses_cached():
    model, rows = tiny_prompt_model("llama").train(), ragged_rows([7, 3, 9])
    expected_loss, expected = loss_and_gradient(model, reference_loss(model, rows))
    checkpoint_activations(model)
    loss, gradient = loss_and_gradient(model, model(**pad(rows, "right"), only_labelled=True).loss)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert relative_error(gradient, expected) < 1e-5
    assert model.chosen_layouts == ["packed"]
    model.use_layout("cached")
    with pytest.raises(PromptTuningError, match="activation checkpointing"):
        model(**pad(rows, "right"), only_labelled=True)


def test_a_layout_that_disagrees_is_left_with_one_line(monkeypatch, caplog):
    """A mask that hides the prompt: the check on the first batch finds it."""
    monkeypatch.setattr(packed, "ancestors", lambda parents: torch.eye(len(parents), dtype=torch.bool))
    model, rows = tiny_prompt_model("llama"), ragged_rows([7, 3, 9])
    for _ in range(2):
        loss, _ = loss_and_gradient(model, model(**pad(rows, "right"), only_labelled=True).loss)
    assert loss == pytest.approx(reference_loss(model, rows).item(), rel=1e-5)
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1 and messages[0].startswith(
        "The packed layout is not used for LlamaForCausalLM: its loss"
    )


def test_a_tree_is_seen_by_positions():
    # prompt of 2, two examples behind it of 2 and 1 tokens
    above = ancestors([-1, 0, 0])
    segments, positions = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 3, 2])
    assert tree_mask(above, segments, positions, Reach()).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert tree_mask(above, segments, positions, Reach(window=2)).int().tolist()[3:] == [
        [0, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
    ]
    assert tree_mask(above, segments, positions, Reach(chunk=2)).int().tolist()[2:] == [
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_refusals():
    model, batch = tiny_prompt_model("mamba"), pad(ragged_rows([4, 3]), "right")
    model.use_layout("packed")
    with pytest.raises(PromptTuningError, match=r"layout 'packed' is not exact for .* takes no position_ids"):
        model(**batch, only_labelled=True)
    with pytest.raises(PromptTuningError, match="layout is 'quick'; give auto, packed"):
        model.use_layout("quick")
    for tokens in (0, -5, "20", 2.5):
        with pytest.raises(PromptTuningError, match=f"max_packed_tokens is {tokens!r}; give 1 token or more"):
            model.use_layout("auto", max_packed_tokens=tokens)


@pytest.mark.parametrize("layout", ["packed", "cached", "padded"])
def test_one_token_rows_without_a_prompt_predict_nothing(layout):
    model = tiny_prompt_model("llama")
    model.use_layout(layout)
    ids = torch.tensor([[5], [6]])
    with model.disable_adapter():
        found = model(input_ids=ids, labels=ids, only_labelled=True)
    assert found.loss == 0 and len(found.targets) == len(found.rows) == 0 and found.logits.shape == (0, 400)


@pytest.mark.parametrize("layout", ["packed", "cached", "padded"])
def test_rows_without_a_token(layout):
    """Their prompt predicts their labels. Without a prompt nothing does."""
    model, ids = tiny_prompt_model("llama"), torch.zeros(2, 0, dtype=torch.long)
    model.use_layout(layout)
    for names in (["default", "default"], ["default", "__base__"]):
        assert model(input_ids=ids, labels=ids, only_labelled=True, adapter_names=names).loss == 0
    batch = {"input_ids": torch.tensor([[5, 6], [0, 0]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])}
    with torch.no_grad():
        alone = model(input_ids=ids, candidates=LABELS).scores
        torch.testing.assert_close(model(**batch, candidates=LABELS).scores[1], alone[1])
        for call in (
            lambda: model(**batch, candidates=LABELS, adapter_names=["default", "__base__"]),
            lambda: model.generate(**batch, adapter_names=["default", "__base__"]),
        ):
            with pytest.raises(PromptTuningError, match="row 1 has no token and no prompt, and nothing predicts"):
                call()


def test_an_encoder_that_has_nothing_to_read():
    model, labels = tiny_prompt_model("t5"), torch.tensor([[5, 6], [7, 8]])
    batch = {"input_ids": torch.tensor([[5, 6], [0, 0]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])}
    assert model(**batch, labels=labels).loss.isfinite()
    with model.disable_adapter():
        for ids in (batch, {"input_ids": torch.zeros(2, 0, dtype=torch.long)}):
            for call in (lambda ids=ids: model(**ids, labels=labels), lambda ids=ids: model.generate(**ids)):
                with pytest.raises(PromptTuningError, match="has no token and no prompt"):
                    call()

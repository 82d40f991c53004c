"""A prompt is computed once, and again when anything that it was computed from has changed."""

import pytest
import torch

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model
from hf_prompt_tuning.layouts import computed as inference
from tests.shared.kept_prompts import LABELS, OPTIONS, ROWS, generated, inputs, ranked, ranked_anew, tiny_prompt_model
from tests.shared.reference import greedy, loss_and_gradient, pad, reference_loss, relative_error, with_prompts
from tests.shared.tiny_models import tiny_model
from tests.shared.versions import checkpoint_activations


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_it_is_computed_once_for_generation_and_ranking(name, passes):
    model = tiny_prompt_model(name)
    expected = [greedy(model, ids, 4) for ids, _ in ROWS]
    for _ in range(2):
        assert generated(model) == expected
        torch.testing.assert_close(ranked(model), ranked_anew(model), rtol=1e-5, atol=1e-4)
        with torch.no_grad():
            loss = model(**pad(ROWS, "right"), only_labelled=True).loss
        assert loss.item() == pytest.approx(reference_loss(model, ROWS).item(), rel=1e-5)
    assert len(passes) == 1


def an_optimizer_step(model, folder):
    model(**pad(ROWS, "right"), only_labelled=True).loss.backward()
    torch.optim.SGD([model.prompt], lr=100.0).step()


def an_edit_through_data(model, folder):
    model.prompt.data[0] += 3.0


@torch.no_grad()
def an_edit_in_place(model, folder):
    model.prompt.mul_(-1.0)


@torch.inference_mode()
def an_edit_in_inference_mode(model, folder):
    model.prompt.mul_(-1.0)


def another_prompt_under_the_same_name(model, folder):
    with_prompts(tiny_prompt_model(), other=5).save_pretrained(folder)
    model.load_adapter(folder / "other", "default")


def a_prompt_deleted_and_made_again(model, folder):
    model.add_adapter("spare", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    model.set_adapter("spare")
    model.delete_adapter("default")
    torch.manual_seed(3)
    config = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM", prompt_tuning_init="RANDOM")
    model.add_adapter("default", config)
    model.set_adapter("default")


def another_active_prompt(model, folder):
    with_prompts(model, other=3)
    model.set_adapter("other")


def another_dtype(model, folder):
    model.to(torch.float64)


def another_attention(model, folder):
    model.base_model.set_attn_implementation("eager")


def a_backbone_edited_in_place(model, folder):
    with torch.no_grad():
        model.base_model.model.layers[0].mlp.up_proj.weight.mul_(-1.0)


def other_weights_in_the_backbone(model, folder):
    model.base_model.load_state_dict(tiny_model("llama", seed=5).state_dict())


def other_parameters_in_the_backbone(model, folder):
    model.base_model.load_state_dict(tiny_model("llama", seed=5).state_dict(), assign=True)


CHANGES = [
    an_optimizer_step,
    an_edit_through_data,
    an_edit_in_place,
    an_edit_in_inference_mode,
    another_prompt_under_the_same_name,
    a_prompt_deleted_and_made_again,
    another_active_prompt,
    another_dtype,
    another_attention,
    a_backbone_edited_in_place,
    other_weights_in_the_backbone,
    other_parameters_in_the_backbone,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_it_is_computed_again_when_it_has_changed(change, passes, tmp_path):
    model = tiny_prompt_model()
    before = ranked(model)
    assert len(passes) == 1
    change(model, tmp_path)
    after = ranked(model)
    assert len(passes) == 2
    torch.testing.assert_close(after, ranked_anew(model), rtol=1e-5, atol=1e-4)
    if change not in (another_attention, another_dtype):
        assert relative_error(after, before) > 1e-4
    assert generated(model) == [greedy(model, ids, 4) for ids, _ in ROWS]
    assert len(passes) == 2


def test_autocast_has_keys_of_its_own_dtype(passes):
    model = tiny_prompt_model()
    exact = ranked(model)
    with torch.autocast("cpu", torch.bfloat16):
        rough = ranked(model)
        torch.testing.assert_close(rough, ranked_anew(model), rtol=2e-2, atol=2e-1)
    assert not torch.equal(rough, exact)
    assert torch.equal(ranked(model), exact)
    assert len(passes) == 3


def test_nothing_changes_what_is_kept(passes):
    model = with_prompts(tiny_prompt_model(), other=3)
    names = ["default", "other", "__base__"]

    def results():
        with torch.no_grad():
            scores = model(**inputs(), candidates=LABELS, adapter_names=names).scores
        return scores.tolist(), model.generate(**inputs(), **OPTIONS, adapter_names=names).tolist()

    before = results()
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}, {"do_sample": True}):
        model.generate(**inputs(), **OPTIONS | options)
        model.generate(**inputs(), **OPTIONS | options, adapter_names=names)
    for layout in ("packed", "cached"):
        model.use_layout(layout)
        ranked(model)
    model.use_layout()
    assert results() == before
    assert len(passes) == 2


@pytest.mark.parametrize("layout", ["packed", "cached"])
def test_it_is_never_used_where_gradients_are_wanted(layout, passes):
    model = tiny_prompt_model().train()
    model.use_layout(layout)
    with torch.inference_mode():
        model(**inputs(), candidates=LABELS)
    generated(model)
    expected_loss, expected = loss_and_gradient(model, reference_loss(model, ROWS))
    loss, gradient = loss_and_gradient(model, model(**pad(ROWS, "right"), only_labelled=True).loss)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert relative_error(gradient, expected) < 1e-5
    assert len(passes) == 1


def test_it_is_not_used_with_dropout_checkpointing_or_without_a_prompt(passes):
    config = PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init="RANDOM", backbone_dropout=True)
    dropping = get_prompt_tuning_model(tiny_model("gpt2", resid_pdrop=0.5), config).train()
    assert not torch.equal(ranked(dropping), ranked(dropping))
    checkpointing = tiny_prompt_model().train()
    checkpoint_activations(checkpointing)
    ranked(checkpointing)
    model = tiny_prompt_model()
    with model.disable_adapter():
        assert generated(model) == [greedy(model, ids, 4) for ids, _ in ROWS]
    model.use_layout("padded")
    ranked(model)
    assert not passes


def test_vectors_in_the_prompts_place_are_computed_for_themselves(passes):
    model = tiny_prompt_model()
    before = ranked(model)
    with model.replaced_prompt(torch.randn(3, 32)):
        torch.testing.assert_close(ranked(model), ranked_anew(model), rtol=1e-5, atol=1e-4)
        assert generated(model) == [greedy(model, ids, 4) for ids, _ in ROWS]
    assert torch.equal(ranked(model), before)
    assert len(passes) == 3


def test_a_sharded_backbone_makes_the_passes_that_it_always_made(passes, monkeypatch):
    """Its processes would otherwise differ in how often they gather weights."""
    model = tiny_prompt_model()
    monkeypatch.setattr(inference, "is_sharded", lambda backbone: True)
    assert generated(model) == [greedy(model, ids, 4) for ids, _ in ROWS]
    torch.testing.assert_close(ranked(model), ranked_anew(model), rtol=1e-5, atol=1e-4)
    assert not passes


def test_a_deleted_prompt_is_forgotten(passes):
    model, names = with_prompts(tiny_prompt_model(), other=3), ["default", "other", "other"]
    model.generate(**inputs(), **OPTIONS, adapter_names=names)
    assert len(passes) == 2
    model.delete_adapter("other")
    model.generate(**inputs(), **OPTIONS, adapter_names=names[:1] * 3)
    assert len(passes) == 2
    with_prompts(model, other=3)  # the same vectors
    model.generate(**inputs(), **OPTIONS, adapter_names=names)
    assert len(passes) == 3

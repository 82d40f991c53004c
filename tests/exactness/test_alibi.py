"""BLOOM and MPT in packed rows: their ALiBi counts positions, in this call and in no other."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from hf_prompt_tuning import LabelSearch, PromptTuningError
from hf_prompt_tuning.layouts import alibi, label_search
from tests.shared.reference import (
    loss_and_gradient,
    pad,
    ragged_rows,
    reference_loss,
    relative_error,
    tiny_prompt_model,
    with_prompts,
)

NAMES = ["bloom", "mpt"]
ROWS = ragged_rows([17, 1, 25, 4, 9])


@pytest.mark.parametrize("name", NAMES)
def test_the_bias_is_the_models_own_but_for_a_constant(name):
    """Of a text in one row, and of two texts behind a prompt, whose positions start again."""
    decoder = tiny_prompt_model(name).get_base_model().base_model
    own = {
        "bloom": lambda: decoder.build_alibi_tensor(torch.ones(1, 9), 4, torch.float32),
        "mpt": lambda: decoder.build_mpt_alibi_tensor(4, 9),
    }[name]()
    arguments = {"bloom": (torch.ones(1, 9), 4, torch.float32), "mpt": (4, 128)}[name]
    method = getattr(decoder, alibi.builder(decoder))
    for positions in (torch.arange(9), torch.tensor([0, 1, 2, 3, 4, 2, 3, 4, 5])):
        built = alibi.BUILDERS[alibi.builder(decoder)](method, positions)(*arguments)
        expected = (own - own[..., :1])[..., positions]
        torch.testing.assert_close(built - built[..., :1], expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [None, 30])
def test_loss_and_gradient(name, budget):
    model = tiny_prompt_model(name)
    model.use_layout("packed", max_packed_tokens=budget)
    expected_loss, expected = loss_and_gradient(model, reference_loss(model, ROWS))
    for side in ("left", "right"):
        loss, gradient = loss_and_gradient(model, model(**pad(ROWS, side), only_labelled=True).loss)
        assert loss == pytest.approx(expected_loss, rel=1e-5) and relative_error(gradient, expected) < 1e-5
    with torch.no_grad():  # behind the prompt that was computed before
        assert model(**pad(ROWS, "left"), only_labelled=True).loss.item() == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_not_changed_and_threads_do_not_meet(name, monkeypatch):
    """Each thread packs other rows, of several prompts, and others use the backbone meanwhile."""
    monkeypatch.setattr(label_search, "MIN_NODES", 0)
    model = with_prompts(tiny_prompt_model(name), other=3).eval()
    backbone, decoder = model.get_base_model(), model.get_base_model().base_model
    before = dict(vars(decoder)), dict(vars(backbone))
    batches = [pad(ragged_rows(lengths), "left") for lengths in ([7, 2], [3, 9, 5], [12], [1, 4])]
    labels = [[11, 12, 2], [11, 13, 2], [14, 2]]

    def calls(batch):
        source = {key: value for key, value in batch.items() if key != "labels"}
        names = ["other", "default", "__base__"][: len(batch["labels"])]
        with torch.no_grad():
            return [
                model(**batch, only_labelled=True, adapter_names=names).loss,
                model(**source, candidates=labels, search=LabelSearch(), adapter_names=names).scores,
                backbone(**source).logits,
            ]

    expected = [calls(batch) for batch in batches]
    assert model.chosen_layouts == ["packed"]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(calls, batches * 6))
    for got, right in zip(found, expected * 6, strict=True):
        for value, other in zip(got, right, strict=True):
            torch.testing.assert_close(value, other)
    assert (dict(vars(decoder)), dict(vars(backbone))) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_of_ones_own_is_seen(name):
    """It calls the backbone's own decoder: the check finds it, and without a check the call is refused."""
    model, batch = tiny_prompt_model(name), pad(ROWS, "right")
    expected = model(**batch, only_labelled=True).loss.item()
    backbone = model.get_base_model()
    own = type(backbone).forward
    backbone.forward = functools.wraps(own)(lambda *args, **kwargs: own(backbone, *args, **kwargs))
    with pytest.raises(PromptTuningError, match="its ALiBi counts columns and not positions; call use_layout"):
        model(**batch, only_labelled=True)
    model.use_layout()
    assert model(**batch, only_labelled=True).loss.item() == pytest.approx(expected, rel=1e-5)
    assert model.chosen_layouts == ["cached"]


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_that_accelerate_wrapped_is_called_on_the_stand_in(name):
    """As `dispatch_model` does it: a function bound to the module, and the old one beside it."""
    model = tiny_prompt_model(name)
    backbone = model.get_base_model()
    add_hook_to_module(backbone, ModelHook())
    add_hook_to_module(backbone.base_model, ModelHook())
    loss = model(**pad(ROWS, "right"), only_labelled=True).loss.item()
    assert loss == pytest.approx(reference_loss(model, ROWS).item(), rel=1e-5)
    assert model.chosen_layouts == ["packed"]

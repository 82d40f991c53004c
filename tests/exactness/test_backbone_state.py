"""Whatever changes in a backbone, a prompt that was computed of it before is computed again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from hf_prompt_tuning.layouts import computed
from hf_prompt_tuning.layouts.computed import state_of
from tests.shared.kept_prompts import ROWS, generated, ranked, ranked_anew, tiny_prompt_model
from tests.shared.reference import greedy, relative_error
from tests.shared.tiny_models import tiny_model

FAMILIES = ["llama", "gpt2", "bloom", "opt"]


def right(model):
    torch.testing.assert_close(ranked(model), ranked_anew(model), rtol=1e-5, atol=1e-4)
    return ranked(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_number_of_any_weight_edited_through_data(family, passes):
    """Matrices, biases, norms and buffers, at the start, at the end and between."""
    model = tiny_prompt_model(family)
    right(model)
    weights = dict(model.base_model.named_parameters()) | dict(model.base_model.named_buffers())
    changed = 0
    for place, weight in enumerate(weights.values()):
        if weight.dtype.is_floating_point:
            flat = weight.data.view(-1)
            flat[[0, -1, len(flat) // 3][place % 3]] += 0.5
            changed += 1
            right(model)
            assert len(passes) == 1 + changed
    assert changed > 15


def merged_and_unmerged(model):
    layers = [module for module in model.base_model.modules() if isinstance(module, BaseTunerLayer)]
    yield from ([layer.merge() for layer in layers], [layer.unmerge() for layer in layers])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_a_lora_beneath_is_put_in_merged_unmerged_scaled_and_disabled(family, passes):
    model = tiny_prompt_model(family)
    plain = right(model)
    targets = ["q_proj", "up_proj"] if family == "llama" else ["c_attn", "c_fc"]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    inject_adapter_in_model(config, model.base_model)
    layers = [module for module in model.base_model.modules() if isinstance(module, BaseTunerLayer)]
    with_lora = right(model)
    assert relative_error(with_lora, plain) > 1e-3

    def each(change):
        before = len(passes)
        for layer in layers:
            change(layer)
        found = right(model)
        assert len(passes) == before + 1
        return found

    torch.testing.assert_close(each(lambda layer: layer.merge()), with_lora, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(each(lambda layer: layer.unmerge()), with_lora, rtol=1e-4, atol=1e-3)
    assert relative_error(each(lambda layer: layer.scale_layer(2.0)), with_lora) > 1e-3
    torch.testing.assert_close(each(lambda layer: layer.unscale_layer()), with_lora, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(each(lambda layer: layer.enable_adapters(False)), plain, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(each(lambda layer: layer.enable_adapters(True)), with_lora, rtol=1e-5, atol=1e-4)
    assert generated(model) == [greedy(model, ids, 4) for ids, _ in ROWS]


def halved(backbone):
    backbone.half().float()


def loaded(backbone):
    state = {name: weight * 1.5 for name, weight in backbone.state_dict().items()}
    backbone.load_state_dict(state)


def resized(backbone):
    backbone.resize_token_embeddings(420, mean_resizing=False)


def hooked(backbone):
    backbone.model.layers[0].mlp.register_forward_hook(lambda module, args, output: 2 * output)


def wrapped(backbone):
    mlp = backbone.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: 2 * forward(x)


def in_another_place(backbone):
    backbone.model.layers[0].mlp.up_proj.weight.data = 2 * backbone.model.layers[0].mlp.up_proj.weight.data


def replaced(backbone):
    backbone.model.layers[0].mlp = tiny_model("llama", seed=3).model.layers[0].mlp


@pytest.mark.parametrize("change", [halved, loaded, resized, hooked, wrapped, in_another_place, replaced])
def test_other_changes(change, passes):
    model = tiny_prompt_model("llama")
    right(model)
    change(model.base_model)
    right(model)
    assert len(passes) == 2


def test_an_edit_between_two_calls_by_another_thread(passes):
    model = tiny_prompt_model("llama")
    for _ in range(3):
        right(model)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: model.base_model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)).result()
    right(model)
    assert len(passes) == 4


def test_a_sample_of_a_large_backbone_sees_every_edit_of_a_whole_weight(monkeypatch):
    monkeypatch.setattr(computed, "NUMBERS", 2000)
    monkeypatch.setattr(computed, "SMALL", 64)
    backbone = tiny_model("llama")
    before = state_of(backbone)
    assert sum(part.numel() for part in before.numbers) < 2500
    for weight in backbone.parameters():
        weight.data.add_(1e-3)
        after = state_of(backbone)
        assert not after.is_same(before) and after.is_same(state_of(backbone))
        before = after
    norm = backbone.model.norm.weight  # small weights are read whole
    norm.data[17] += 1e-6
    assert not state_of(backbone).is_same(before)


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(40, 50).T,
        torch.randn(3, 1).expand(3, 700),
        torch.tensor(2.0),
        torch.zeros(0, 3),
        torch.full((30, 30), torch.nan),
        torch.randn(2000)[::2],
        torch.ones(20, 20, dtype=torch.bool),
        torch.ones(20, 20, dtype=torch.bfloat16),
    ],
    ids=["transposed", "expanded", "scalar", "empty", "nan", "strided", "bool", "bfloat16"],
)
def test_weights_of_any_kind_are_sampled(weight, monkeypatch):
    monkeypatch.setattr(computed, "NUMBERS", 300)
    monkeypatch.setattr(computed, "SMALL", 50)
    backbone = tiny_model("gpt2")
    backbone.register_buffer("another", weight)
    before = state_of(backbone)
    assert before.is_same(state_of(backbone))
    if weight.dtype.is_floating_point and weight.numel() and not weight.isnan().any():
        backbone.another.data.as_strided((1,), (1,)).mul_(2.0)
        assert not before.is_same(state_of(backbone))


def test_what_no_call_sees_is_forgotten_by_hand(passes):
    model = tiny_prompt_model("llama")
    right(model)
    model.base_model.model.norm.variance_epsilon = 1.0
    model.forget_computed_prompts()
    right(model)
    assert len(passes) == 2

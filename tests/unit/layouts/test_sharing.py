"""Stand-ins: what they share with a module, and what of it they leave alone."""

import functools
from types import MethodType

import pytest
import torch
from torch import nn

from hf_prompt_tuning.layouts.base import predictions_at
from hf_prompt_tuning.layouts.sharing import calling, of_all_parts, with_part
from tests.shared.tiny_models import tiny_model
from tests.shared.versions import COMPILES_OUTPUTS


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3, bias=False)

    def forward(self, x):
        return self.head(x)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x) + 1


X = torch.tensor([[1.0, 2.0]])


def test_a_part_deep_in_a_module_is_replaced_in_the_stand_in_alone():
    outer = Outer()
    head = outer.inner.head
    doubled = with_part(outer, head, calling(head, lambda x: 2 * head(x)))
    assert type(doubled) is Outer and type(doubled.inner) is Inner and type(doubled.inner.head) is nn.Linear
    assert doubled.inner.head.weight is head.weight
    assert torch.equal(doubled(X), 2 * head(X) + 1)
    assert torch.equal(outer(X), head(X) + 1) and outer.inner.head is head


def test_what_is_set_on_a_stand_in_of_all_parts_is_not_set_on_the_module():
    backbone = tiny_model("llama").train()
    backbone.model.layers[1].mlp = backbone.model.layers[0].mlp
    twin = of_all_parts(backbone).eval()
    twin.set_attn_implementation("eager")
    twin.model.layers[0].mlp.register_forward_hook(lambda module, args, output: 2 * output)
    assert twin.model.layers[1].mlp is twin.model.layers[0].mlp is not backbone.model.layers[0].mlp
    assert twin.model.config is twin.config and twin.model.layers[0].self_attn.config is twin.config
    assert twin.config._attn_implementation == "eager" and backbone.config._attn_implementation == "sdpa"
    assert all(module.training for module in backbone.modules())
    assert not any(module.training for module in twin.modules())
    assert not any(module._forward_hooks for module in backbone.modules())
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(twin(ids).logits, backbone(ids).logits)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in backbone.parameters()]


def test_the_modules_own_hooks_work_once_and_on_the_module_itself():
    head, seen = nn.Linear(2, 3), []
    head.register_forward_pre_hook(lambda module, args: seen.append(("before", module)))
    head.register_forward_hook(lambda module, args, output: seen.append(("after", module)))
    calling(head, lambda x: head(x))(X)
    assert seen == [("before", head), ("after", head)]


def by_accelerate(module):
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(module, ModelHook())


def bound(module):
    module.forward = MethodType(lambda self, x: Outer.forward(self, x), module)


@pytest.mark.parametrize("put", [by_accelerate, bound])
def test_a_forward_that_is_bound_to_the_module_sees_the_other_part(put):
    outer = Outer()
    head = outer.inner.head
    put(outer)
    assert torch.equal(with_part(outer, head, calling(head, lambda x: 2 * head(x)))(X), 2 * head(X) + 1)
    assert torch.equal(outer(X), head(X) + 1)


def wrapped(backbone):
    backbone.forward = functools.partial(backbone.forward)


def compiled(backbone):
    backbone.compile(backend="eager")


def noting(backbone):
    backbone.config.output_hidden_states = True


needs_outputs = pytest.mark.skipif(not COMPILES_OUTPUTS, reason="PyTorch 2.6 loses a compiled decoder's outputs")


@pytest.mark.parametrize("change", [None, wrapped, pytest.param(compiled, marks=needs_outputs), noting, by_accelerate])
def test_predictions_at_some_positions_whatever_a_caller_did_to_the_forward(change):
    backbone = tiny_model("llama")
    ids, rows, columns = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    expected = backbone(input_ids=ids).logits[rows, columns][None]
    if change is not None:
        change(backbone)
    before = {module: dict(vars(module)) for module in backbone.modules()}
    for _ in range(2):
        got = predictions_at(backbone, rows, columns, input_ids=ids).logits
        assert torch.allclose(got, expected, atol=1e-6)
    if change is not noting:  # transformers puts its hooks on then, once, as it does without us
        assert before == {module: vars(module) for module in backbone.modules()}


def test_a_look_through_the_head_from_within_a_pass_sees_all_positions():
    backbone, seen = tiny_model("llama"), []
    backbone.model.layers[0].register_forward_hook(
        lambda module, args, output: seen.append(backbone.lm_head(output[0] if type(output) is tuple else output))
    )
    ids, first = torch.tensor([[5, 6, 7]]), torch.tensor([0])
    assert predictions_at(backbone, first, first, input_ids=ids).logits.shape == (1, 1, 400)
    assert [logits.shape for logits in seen] == [(1, 3, 400)]

"""The backbone does not move; where it does, the callback says what."""

import pytest
import torch

from hf_prompt_tuning import FrozenBackboneCallback, PromptTuningError
from hf_prompt_tuning.training.callbacks.frozen import backbone_checksums, checksum
from tests.shared.reference import tiny_prompt_model
from tests.shared.short_runs import TRAINERS, make


@TRAINERS
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_training_moves_nothing_but_the_prompt(name, build, tmp_path, tokenizer, messages):
    model = tiny_prompt_model(name)
    before, start = (
        {k: v.clone() for k, v in model.get_base_model().state_dict().items()},
        model.prompt.detach().clone(),
    )
    values = {"save_strategy": "steps", "save_steps": 2}
    trainer = build(tmp_path, tokenizer, messages, model, [FrozenBackboneCallback()], **values)
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    assert all(torch.equal(value, before[key]) for key, value in model.get_base_model().state_dict().items())
    assert not torch.equal(model.prompt, start)


@TRAINERS
def test_a_weight_that_trains_is_named(build, tmp_path, tokenizer, messages):
    model = tiny_prompt_model("llama")
    model.get_base_model().model.layers[1].mlp.up_proj.weight.requires_grad_(True)
    trainer = build(tmp_path, tokenizer, messages, model, [FrozenBackboneCallback()])
    with pytest.raises(PromptTuningError, match=r"model.layers.1.mlp.up_proj.weight of \d+ weights and buffers moved"):
        trainer.train()


def test_a_buffer_that_a_forward_writes_to_is_named_at_the_next_save(tmp_path, tokenizer, messages):
    model = tiny_prompt_model("llama")
    model.get_base_model().register_buffer("seen", torch.zeros(3, dtype=torch.int32))

    def count(module, inputs, output):
        module.seen[1] += 1

    model.get_base_model().register_forward_hook(count)
    trainer = make(tmp_path, tokenizer, messages, model, save_strategy="steps", save_steps=2)
    trainer.add_callback(FrozenBackboneCallback())
    with pytest.raises(PromptTuningError, match=r"the backbone's seen of .* moved by step 2,"):
        trainer.train()


def test_every_weight_and_buffer_is_watched_to_the_last_bit():
    model = tiny_prompt_model("gpt2")
    backbone, expected = model.get_base_model(), backbone_checksums(model)
    tensors = dict([*backbone.named_parameters(), *backbone.named_buffers()])
    assert expected.keys() == tensors.keys() and len(tensors) > 20
    for name, tensor in tensors.items():
        bits = tensor.detach().view(-1).view(torch.uint8)
        bits[-1] ^= 1
        found = backbone_checksums(model)
        assert {other for other in found if found[other] != expected[other]} == {name}
        bits[-1] ^= 1
    assert backbone_checksums(model) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float64])
def test_a_checksum_is_the_sum_it_says(dtype, monkeypatch):
    monkeypatch.setattr(
        "hf_prompt_tuning.training.callbacks.frozen.ELEMENTS_AT_ONCE", 4
    )  # in pieces, the last one shorter
    tensor = (torch.arange(10) % 7 - 3).to(dtype).view(2, 5)
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.flatten().view(kinds[tensor.element_size()]).tolist()
    total = sum(b * (2 * i + 1) for i, b in enumerate(bits)) % 2**64
    assert checksum(tensor) % 2**64 == total
    assert checksum(tensor.T) != total  # the same numbers in other places
    assert checksum(torch.zeros((), dtype=dtype)) == 0

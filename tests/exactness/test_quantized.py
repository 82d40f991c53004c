"""Backbones in 8 and 4 bits by bitsandbytes, on its CPU backend. Its blocks of 64 want wide models."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

from hf_prompt_tuning import (
    PromptMismatchError,
    PromptTuningConfig,
    PromptTuningModelForCausalLM,
    get_prompt_tuning_model,
)
from tests.shared.reference import loss_and_gradient, pad, ragged_rows, relative_error
from tests.shared.short_runs import LAYOUTS, make, optimizer_dtypes
from tests.shared.tiny_models import ENCODER_DECODERS, tiny_model

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (it is in the test extra)")

WIDE = {
    "llama": dict(hidden_size=64, intermediate_size=128),
    "gpt2": dict(n_embd=64),
    "bloom": dict(hidden_size=64),
    "t5": dict(d_model=64, d_kv=16, d_ff=128),
}
BITS = {8: dict(load_in_8bit=True), 4: dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")}
# What 127 and what 16 levels leave of the loss of two layers; of the gradient, 4 bits leave little to compare.
LOSS = {8: 2e-3, 4: 2e-2}
ROWS = ragged_rows([7, 3, 12, 4])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved backbones, which quantization starts from."""
    made = {name: tmp_path_factory.mktemp(name) for name in WIDE}
    for name, folder in made.items():
        tiny_model(name, **WIDE[name]).save_pretrained(folder)
    return made


def load(folder, name, bits=None):
    auto = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
    options = {} if bits is None else {"quantization_config": BitsAndBytesConfig(**BITS[bits]), "device_map": "cpu"}
    return auto.from_pretrained(folder, **options)


def prompted(backbone):
    torch.manual_seed(1)
    return get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init="RANDOM"))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", WIDE)
def test_every_layout_gives_the_loss_of_fp32_within_the_quantization(name, bits, folders):
    expected = prompted(load(folders[name], name))(**pad(ROWS, "right")).loss.item()
    gradients = []
    for layout in LAYOUTS.get(name, ["padded", "cached", "packed"]):
        model = prompted(load(folders[name], name, bits))
        assert any("bit" in type(module).__name__ for module in model.modules())
        if layout is not None:
            model.use_layout(layout)
        loss, gradient = loss_and_gradient(model, model(**pad(ROWS, "right"), only_labelled=True).loss)
        assert loss == pytest.approx(expected, rel=LOSS[bits])
        assert model.prompt.dtype == gradient.dtype == torch.float32
        gradients.append(gradient)
    assert all(relative_error(gradient, gradients[0]) < 1e-2 for gradient in gradients)


@pytest.mark.parametrize("bits", BITS)
def test_a_quantized_copy_is_the_same_backbone(bits, folders, tmp_path):
    """A prompt of the whole checkpoint loads on its quantized copy and the other way round, and on no other."""
    whole, copy = prompted(load(folders["llama"], "llama")), prompted(load(folders["llama"], "llama", bits))
    assert copy.info.backbone["embedding"]["hash"] == whole.info.backbone["embedding"]["hash"] is not None
    for name, model in (("whole", whole), ("copy", copy)):
        model.save_pretrained(tmp_path / name)
    cls = PromptTuningModelForCausalLM
    on_copy = cls.from_pretrained(load(folders["llama"], "llama", bits), tmp_path / "whole", is_trainable=True)
    assert torch.equal(on_copy.prompt, whole.prompt)
    assert torch.equal(cls.from_pretrained(load(folders["llama"], "llama"), tmp_path / "copy").prompt, copy.prompt)
    tiny_model("llama", seed=1, **WIDE["llama"]).save_pretrained(tmp_path / "other")
    with pytest.raises(PromptMismatchError, match="the embedding matrix differs"):
        cls.from_pretrained(load(tmp_path / "other", "llama", bits), tmp_path / "whole")


@pytest.mark.parametrize("bits", BITS)
def test_training_on_it_keeps_prompt_and_optimizer_in_fp32(bits, folders, tokenizer, messages, tmp_path, caplog):
    model = prompted(load(folders["llama"], "llama", bits))
    trainer = make(tmp_path, tokenizer, messages, model, max_steps=12, bf16=True)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1
    assert model.prompt.dtype == torch.float32 and optimizer_dtypes(trainer) == {torch.float32}
    trainer.save_model()
    assert torch.equal(load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"], model.prompt)
    assert not [r for r in caplog.records if r.name == "hf_prompt_tuning.layouts.choose"]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_gradient_is_the_same_after_an_evaluation(name, bits, folders):
    """bitsandbytes packs 4-bit weights in eval mode, on some CPUs, for a kernel without a backward."""
    model = prompted(load(folders[name], name, bits))
    before = loss_and_gradient(model, model.train()(**pad(ROWS, "right"), only_labelled=True).loss)
    with torch.no_grad():
        model.eval()(**pad(ROWS, "right"), only_labelled=True)
        with model.disable_adapter():
            model(**pad(ROWS, "right"))
    after = loss_and_gradient(model, model.train()(**pad(ROWS, "right"), only_labelled=True).loss)
    assert after[0] == before[0] and torch.equal(after[1], before[1])

"""A backbone is known again in another dtype or quantized, and another one is told from it."""

import pytest
import torch

from hf_prompt_tuning import (
    PromptMismatchError,
    PromptTuningConfig,
    PromptTuningModelForCausalLM,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.models.prompt import differences, embedding_hash, fingerprint
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_in_any_dtype_is_the_same_backbone(dtype):
    known = fingerprint(tiny_model("llama"))
    assert differences(known, fingerprint(tiny_model("llama").to(dtype))) == []
    assert differences(fingerprint(tiny_model("llama").to(dtype)), known) == []


def test_a_quantized_copy_is_the_same_backbone():
    """Sixteen levels for each block of 32 numbers, as GGUF's Q4_1."""
    backbone = tiny_model("llama")
    known, weight = fingerprint(backbone), backbone.get_input_embeddings().weight
    with torch.no_grad():
        blocks = weight.view(-1, 32)
        low, high = blocks.min(1, keepdim=True).values, blocks.max(1, keepdim=True).values
        step = (high - low) / 15
        weight.copy_((((blocks - low) / step).round() * step + low).view_as(weight))
    assert len(differences(known, fingerprint(backbone))) == 1
    backbone.dequantized_from = "gguf"
    assert differences(known, fingerprint(backbone)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_checkpoint_of_the_same_shape_is_not(dtype):
    found = differences(fingerprint(tiny_model("llama")), fingerprint(tiny_model("llama", seed=1).to(dtype)))
    assert len(found) == 1 and found[0].startswith("the embedding matrix differs")


def test_one_changed_number_is_another_checkpoint():
    backbone = tiny_model("llama")
    known = fingerprint(backbone)
    with torch.no_grad():
        backbone.get_input_embeddings().weight[7, 3] += 1e-3
    assert len(differences(known, fingerprint(backbone))) == 1


def test_what_differs_is_named():
    found = differences(fingerprint(tiny_model("llama")), fingerprint(tiny_model("gpt2", n_layer=3, vocab_size=401)))
    assert found == [
        "architecture is LlamaForCausalLM there and GPT2LMHeadModel here",
        "vocab_size is 400 there and 401 here",
        "num_layers is 2 there and 3 here",
    ]


def test_the_hash_is_of_bits():
    weight = torch.randn(50, 8)
    assert embedding_hash(weight) == embedding_hash(weight.clone())
    assert embedding_hash(weight) != embedding_hash(weight.bfloat16())
    assert embedding_hash(weight.to(torch.int8)) is None


def test_loading_on_another_backbone_is_refused_or_warned_of(tmp_path, caplog):
    tiny_prompt_model("llama", num_virtual_tokens=3).save_pretrained(tmp_path)
    other = tiny_model("llama", seed=1)
    with pytest.raises(PromptMismatchError, match="is not a prompt of this backbone: the embedding matrix differs"):
        PromptTuningModelForCausalLM.from_pretrained(other, tmp_path)
    model = get_prompt_tuning_model(other, PromptTuningConfig(num_virtual_tokens=3))
    with pytest.raises(PromptMismatchError, match="the embedding matrix differs"):
        model.load_adapter(tmp_path, "default")
    PromptTuningModelForCausalLM.from_pretrained(other, tmp_path, ignore_mismatch=True)
    assert [r.getMessage().split(": ")[1].split(" (")[0] for r in caplog.records] == ["the embedding matrix differs"]


def test_a_prompt_without_a_fingerprint_gets_the_checks_of_its_files(tmp_path):
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(tiny_model("llama", num_hidden_layers=3), config).save_pretrained(tmp_path)
    with pytest.raises(PromptMismatchError, match="num_layers is 3 there and 2 here"):
        PromptTuningModelForCausalLM.from_pretrained(tiny_model("llama"), tmp_path)
    PromptTuningModelForCausalLM.from_pretrained(tiny_model("llama", num_hidden_layers=3), tmp_path)

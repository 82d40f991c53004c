"""What is read from a backbone, and done to it."""

import pytest
import torch
from transformers.trainer_utils import validate_quantization_for_training
from transformers.utils import quantization_config

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, get_prompt_tuning_model
from hf_prompt_tuning.layouts.traits import max_positions
from hf_prompt_tuning.serving.added_tokens import check_extensible
from tests.shared.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("name", "limit"),
    [("gpt2", 128), ("opt", 128), ("llama", 128), ("bart", 128), ("mpt", 128), ("bloom", None), ("t5", None)],
)
def test_positions(name, limit):
    assert max_positions(tiny_model(name)) == limit


@pytest.mark.skipif(
    not hasattr(quantization_config, "GgufConfig"), reason="transformers marks a backbone from GGUF from 5.17"
)
def test_a_backbone_from_gguf_can_be_trained():
    """As transformers leaves one, whose weights are plain floats by then."""
    backbone = tiny_model("llama")
    backbone.config.quantization_config = quantization_config.GgufConfig()
    backbone.is_quantized, backbone.hf_quantizer = True, None
    backbone.quantization_method = quantization_config.QuantizationMethod.GGUF
    with pytest.raises(ValueError, match="quantized"):
        validate_quantization_for_training(backbone)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3))
    validate_quantization_for_training(model)
    assert not hasattr(backbone.config, "quantization_config")
    again = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=2))
    assert again.info.backbone["embedding"]["quantized"] == model.info.backbone["embedding"]["quantized"] == "gguf"


@pytest.mark.parametrize("name", ["bart", "mbart"])
def test_an_encoder_that_reads_another_matrix_than_the_backbone_names_is_refused(name, tokenizer):
    """In transformers 5 an untied BART keeps a matrix for its encoder, and names one that nothing reads."""
    backbone = tiny_model(name, tie_word_embeddings=False)
    with pytest.raises(PromptTuningError, match=r"encoder has an embedding matrix of its own \(.*; load it with tie"):
        get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3), tokenizer)
    with torch.no_grad():  # as in a checkpoint that holds one matrix under both names
        backbone.get_encoder().embed_tokens.weight.copy_(backbone.get_input_embeddings().weight)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3), tokenizer)
    ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, 2]])
    encoder = backbone.get_encoder()
    embeds = torch.cat([model.prompt, encoder.embed_tokens(ids[0])])[None]
    ours = model(input_ids=ids, labels=labels).logits
    torch.testing.assert_close(ours, backbone(inputs_embeds=embeds, labels=labels).logits)
    with pytest.raises(PromptTuningError, match="has its embedding matrix twice, once for its encoder"):
        check_extensible(backbone)

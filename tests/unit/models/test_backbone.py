"""What is read from a backbone, and done to it."""

import pytest
from transformers.trainer_utils import validate_quantization_for_training
from transformers.utils import quantization_config

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model
from hf_prompt_tuning.layouts.traits import max_positions
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

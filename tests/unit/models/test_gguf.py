"""A prompt in front of a backbone from a real GGUF file: its gradient, and loading it with the file."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.trainer_utils import validate_quantization_for_training

from hf_prompt_tuning import load_prompt
from tests.shared.reference import pad, ragged_rows, require_exact, tiny_prompt_model
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.versions import finds_gguf

pytest.importorskip("gguf", reason="gguf is an extra")
from tests.shared.gguf_files import write_gguf


@pytest.mark.skipif(not finds_gguf(), reason="this transformers does not find gguf's version on Python 3.10")
def test_a_prompt_for_a_file(tmp_path):
    """The file's weights are fp32, so that nothing is lost."""
    write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    model = tiny_prompt_model("llama", backbone=backbone)
    validate_quantization_for_training(model.base_model)  # as Trainer does
    rows, plain = ragged_rows([7, 3, 5]), tiny_prompt_model("llama", backbone=tiny_model("llama"))
    assert torch.equal(model.prompt, plain.prompt)
    require_exact(model, rows)
    assert model.chosen_layouts == ["packed"]
    model.save_pretrained(tmp_path / "prompt")
    again, _, _ = load_prompt(
        tmp_path / "prompt", backbone=str(tmp_path), gguf_file="tiny.gguf", tokenizer=make_tokenizer()
    )
    assert again.fingerprint["embedding"]["quantized"] == "gguf"
    batch = {key: value for key, value in pad(rows, "left").items() if key != "labels"}
    options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(again.generate(**batch, **options), plain.eval().generate(**batch, **options))

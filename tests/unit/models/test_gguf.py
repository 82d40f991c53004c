"""A prompt in front of a backbone from a real GGUF file: its gradient, and loading it with the file."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.trainer_utils import validate_quantization_for_training

from hf_prompt_tuning import load_prompt
from tests.shared.reference import pad, ragged_rows, require_exact, tiny_prompt_model
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.versions import finds_gguf

gguf = pytest.importorskip("gguf", reason="gguf is an extra")
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""GGUF's names of a Llama's weights."""


def interleaved(weight, heads):
    """Rows of rotary projections in the order of llama.cpp: the halves of each head in turns."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write(backbone, file):
    config = backbone.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    for name, weight in backbone.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        name = name.replace("model.layers.", "blk.").replace("lm_head", "output")
        name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        if "attn_q." in name or "attn_k." in name:
            heads = config.num_attention_heads if "attn_q." in name else config.num_key_value_heads
            weight = interleaved(weight, heads)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(not finds_gguf(), reason="this transformers does not find gguf's version on Python 3.10")
def test_a_prompt_for_a_file(tmp_path):
    """The file's weights are fp32, so that nothing is lost."""
    write(tiny_model("llama"), tmp_path / "tiny.gguf")
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

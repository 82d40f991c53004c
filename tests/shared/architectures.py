"""Tiny random decoders of many kinds."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.shared.tiny_models import scale_weights

LLAMA_LIKE = dict(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    head_dim=8,
)
ARCHITECTURES = {
    "gemma2": LLAMA_LIKE | dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "gemma3_text": LLAMA_LIKE | dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "qwen2": LLAMA_LIKE
    | dict(use_sliding_window=True, sliding_window=4, layer_types=["full_attention", "sliding_attention"]),
    "olmo3": LLAMA_LIKE | dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "cohere2": LLAMA_LIKE | dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "gpt_oss": LLAMA_LIKE
    | dict(
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "llama4_text": LLAMA_LIKE
    | dict(
        attention_chunk_size=4,
        num_local_experts=2,
        intermediate_size_mlp=48,
        layer_types=["chunked_attention", "full_attention"],
        moe_layers=[],
    ),
    "gemma3n_text": LLAMA_LIKE
    | dict(
        num_hidden_layers=3,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=400,
        num_kv_shared_layers=1,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0, 0.0, 0.0],
    ),
    "gemma4_text": LLAMA_LIKE
    | dict(
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=400,
        global_head_dim=16,
    ),
    "mixtral": LLAMA_LIKE | dict(num_local_experts=4),
    "qwen3": LLAMA_LIKE,
    "qwen3_moe": LLAMA_LIKE | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "phi3": LLAMA_LIKE | dict(sliding_window=4, pad_token_id=0),
    "starcoder2": LLAMA_LIKE | dict(sliding_window=4),
    "phi": LLAMA_LIKE,
    "stablelm": LLAMA_LIKE,
    "olmo2": LLAMA_LIKE,
    "granite": LLAMA_LIKE,
    "smollm3": LLAMA_LIKE | dict(pad_token_id=0),
    "cohere": LLAMA_LIKE,
    "glm4": LLAMA_LIKE | dict(pad_token_id=0),
    "nemotron": LLAMA_LIKE,
    "gpt_neox": LLAMA_LIKE,
    "gptj": dict(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=128, rotary_dim=4),
    "codegen": dict(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=128, rotary_dim=4),
    "gpt_bigcode": dict(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gpt_neo": dict(
        vocab_size=400,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=128,
    ),
    "falcon": dict(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True),
    "xglm": dict(vocab_size=400, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, max_position_embeddings=128),
    "biogpt": LLAMA_LIKE,
    "jamba": LLAMA_LIKE
    | dict(
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        mamba_d_conv=2,
        use_mamba_kernels=False,
    ),
    "lfm2": LLAMA_LIKE | dict(layer_types=["conv", "full_attention"]),
    "mamba2": dict(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=4,
        n_groups=1,
        chunk_size=8,
    ),
    "rwkv": dict(vocab_size=400, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
}


def tiny_backbone(name, **changes):
    values = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | ARCHITECTURES[name] | changes
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **values)).eval()
    scale_weights(backbone, 2.0)
    return backbone

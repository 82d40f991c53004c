"""Decoders of many kinds: the layout each gets by itself is exact, in rows longer than its window or chunk."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, get_prompt_tuning_model

from .conftest import scale_weights
from .helpers import greedy, loss_and_gradient, pad, ragged_rows, reference_loss, relative_error, with_prompts

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

LAYOUTS = {"gpt_neo": "cached", "falcon": "cached", "lfm2": "cached"} | dict.fromkeys(
    ("jamba", "mamba2", "rwkv"), "padded"
)


def tiny_backbone(name, **changes):
    values = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | ARCHITECTURES[name] | changes
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **values)).eval()
    scale_weights(backbone, 2.0)
    return backbone


@pytest.mark.filterwarnings("ignore")  # of models' own slow paths and of tiny sizes
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_layout_that_a_backbone_gets_is_exact(name):
    backbone = tiny_backbone(name)
    torch.manual_seed(1)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=6, prompt_tuning_init="RANDOM"))
    rows = ragged_rows([17, 1, 25, 4])
    expected_loss, expected = loss_and_gradient(model, reference_loss(model, rows))
    for side in ("right", "left"):
        loss, gradient = loss_and_gradient(model, model(**pad(rows, side), only_labelled=True).loss)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert relative_error(gradient, expected) < 1e-5
    assert [layout.name for layout in model._chosen_layouts.values()] == [LAYOUTS.get(name, "packed")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "rwkv"])
def test_mixed_batches_are_as_their_rows_alone(name):
    """Rows longer than a window or a chunk; prompts of several lengths, and none."""
    torch.manual_seed(1)
    config = PromptTuningConfig(num_virtual_tokens=6, prompt_tuning_init="RANDOM")
    model = with_prompts(get_prompt_tuning_model(tiny_backbone(name), config), other=3).eval()
    rows, names = ragged_rows([9, 2, 12]), ["default", "other", "__base__"]
    expected = [greedy(model, ids, 3, adapter) for (ids, _), adapter in zip(rows, names, strict=True)]
    for side in ("right", "left"):
        batch = pad(rows, side)
        batch.pop("labels")
        out = model.generate(**batch, adapter_names=names, max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert out[:, 12:].tolist() == expected
        scores = {}
        for layout in ("padded", "auto"):
            model.use_layout(layout)
            with torch.no_grad():
                scores[layout] = model(**batch, candidates=[[11, 2], [12, 13, 2]], adapter_names=names).scores
        torch.testing.assert_close(scores["auto"], scores["padded"], rtol=1e-5, atol=1e-4)


def test_rwkv_generates_for_one_row_and_refuses_more():
    backbone = tiny_backbone("rwkv")
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"))
    ids = torch.randint(4, 400, (2, 5))
    options = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert model.generate(input_ids=ids[:1], **options)[0, 5:].tolist() == greedy(model, ids[0], 3)
    for refused in ({"input_ids": ids}, {"input_ids": ids[:1], "num_beams": 2}):
        with pytest.raises(PromptTuningError, match="RwkvForCausalLM generates right for one alone"):
            model.generate(**refused, **options)


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma4_text"])
def test_per_layer_embeddings_are_those_of_the_tokens(name):
    """With no prompt, the model is its backbone called with token ids."""
    backbone = tiny_backbone(name)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"))
    ids = torch.randint(4, 400, (2, 9))
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, backbone(input_ids=ids).logits)
    with torch.no_grad():
        generated = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, num_beams=1)
        expected = ids
        for _ in range(4):
            expected = torch.cat([expected, model(input_ids=expected).logits[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == expected.tolist()
    with pytest.raises(PromptTuningError, match="has per-layer embeddings"):
        model(inputs_embeds=backbone.get_input_embeddings()(ids))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_change_with_the_longest_row_are_warned_of_once(rope_type, caplog):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    if rope_type == "longrope":
        rope |= {"original_max_position_embeddings": 16, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    limit = {"dynamic": 128, "longrope": 16}[rope_type]
    backbone = tiny_backbone("qwen3", rope_parameters=rope)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=6, prompt_tuning_init="RANDOM"))
    model(**pad(ragged_rows([limit - 6, 3]), "right"), only_labelled=True)
    assert not caplog.records
    for _ in range(2):
        model(**pad(ragged_rows([limit - 5, 3]), "right"), only_labelled=True)
    assert [r.getMessage() for r in caplog.records] == [
        f"A row has {limit + 1} tokens with its prompt, and beyond {limit} the rotary positions of Qwen3ForCausalLM "
        "change with a batch's longest row: a row's loss then depends on what else is in it. "
        "Shorten rows, or use batches of one."
    ]

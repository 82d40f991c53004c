"""Tiny Llamas and Qwens as GGUF files. Import it behind `pytest.importorskip("gguf")`."""

import json

import gguf

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""GGUF's names of a backbone's weights."""


def interleaved(weight, heads):
    """Rows of rotary projections in the order of llama.cpp: the halves of each head in turns."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


PIECES = (
    ("<unk>", 0.0, 2),
    *((special, 0.0, 3) for special in ("<s>", "</s>")),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    *((piece, -float(i), 1) for i, piece in enumerate(("▁m", "er", "ev", "▁me", "▁n", "ss", "ever", "▁never", "ag"))),
    *((piece, -100.0 - i, 1) for i, piece in enumerate("▁abcdefghijklmnopqrstuvwxyzAMT:.,'")),
)
"""The tokens of a small SentencePiece tokenizer, with their scores and GGUF's types."""


def write_gguf(backbone, file, tokenizer=None, kinds=None, **values):
    """Write a tiny backbone as a GGUF file.

    Args:
        backbone: the backbone. If its output matrix is tied, it is left out.
        file: the path.
        tokenizer: a byte-level tokenizer; "pieces" for one of SentencePiece, of `PIECES`; None for tokens alone.
        kinds: the types of tensors that are not F32.
        **values: arguments of the writer's methods `add_NAME`.
    """
    config, kinds = backbone.config, kinds or {}
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for name, value in values.items():
        getattr(writer, f"add_{name}")(value)
    if tokenizer == "pieces":
        _add_pieces(writer)
    elif tokenizer is None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    else:
        _add_tokenizer(writer, tokenizer)
    for name, weight in backbone.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        name = name.replace("model.layers.", "blk.").replace("lm_head", "output")
        name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        if name == "output.weight" and config.tie_word_embeddings:
            continue
        if config.model_type == "llama" and ("attn_q." in name or "attn_k." in name):
            heads = config.num_attention_heads if "attn_q." in name else config.num_key_value_heads
            weight = interleaved(weight, heads)
        kind = gguf.GGMLQuantizationType[kinds.get(name, "F32")]
        writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_pieces(writer):
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    for add, column in ((writer.add_token_list, 0), (writer.add_token_scores, 1), (writer.add_token_types, 2)):
        add([piece[column] for piece in PIECES])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)


def _add_tokenizer(writer, tokenizer):
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in tokenizer.all_special_ids else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)

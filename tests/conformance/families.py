"""Tiny random backbones of many families, each with the real model's special tokens, moved into a small vocabulary."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from tests.shared.classifiers import tiny_classifier
from tests.shared.tiny_models import scale_weights
from tests.shared.tiny_pictures import KINDS, tiny_picture_model
from tests.shared.versions import T5_ATTENTIONS, initial_dtype

VOCAB = 320
WINDOW = 4
"""Of windows, chunks and local attention: shorter than most rows."""


@dataclass(frozen=True)
class Family:
    """What makes a backbone.

    Attributes:
        model_type: transformers' name of it.
        values: of its config.
        special: its special tokens; a negative id counts from the vocabulary's end, where the real one stands.
        generation: what the real model's `generation_config` says beyond those.
        start, end: what the real tokenizer puts before and behind a text.
        attentions: implementations that the model has.
        scale: how much its random weights are enlarged, so that all that it sees changes what it says.
        task_type: of a model that writes no text, PEFT's name of what it does.
    """

    model_type: str
    values: dict[str, Any]
    special: dict[str, Any]
    generation: dict[str, Any] = field(default_factory=dict)
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    attentions: tuple[str, ...] = ("sdpa", "eager")
    scale: float = 2.5
    task_type: str | None = None

    @property
    def reads_decoder(self) -> bool:
        """Whether a head reads a decoder behind an encoder."""
        return self.model_type == "bart" or (self.model_type, self.task_type) == ("t5", "SEQ_CLS")

    @property
    def is_encoder_decoder(self) -> bool:
        return "decoder_start_token_id" in self.special

    @property
    def chooses_experts(self) -> bool:
        """Whether some experts are left out: in half precision a hair decides which."""
        count = self.values.get("num_local_experts", 0)
        return self.values.get("num_experts_per_tok", count) < count

    def token(self, name: str) -> int | None:
        """A special token's id, of several the first."""
        value = self.special.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) else value
        return value % VOCAB if value is not None else None


BASE = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
LLAMA = BASE | dict(intermediate_size=48, num_key_value_heads=2, max_position_embeddings=96, head_dim=8)
WINDOWED = LLAMA | dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
GPT = dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=96)
BART = dict(
    vocab_size=VOCAB,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=96,
)
T5 = dict(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)


def tokens(bos: Any = None, eos: Any = None, pad: Any = None, start: Any = None) -> dict[str, Any]:
    named = dict(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)
    return named | ({} if start is None else {"decoder_start_token_id": start})


GEMMA = tokens(2, 1, 0)
NEOX = tokens(0, 0)
CAUSAL = {
    "llama": Family("llama", LLAMA, tokens(-4, [-3, -2, -1]), start=(-4,)),  # Llama 3: three ends, no pad
    "gpt2": Family("gpt2", GPT, tokens(-1, -1)),
    "opt": Family(
        "opt",
        BASE | dict(ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=96),
        tokens(2, 2, 1),
        start=(2,),
    ),
    "mistral": Family("mistral", LLAMA | dict(sliding_window=WINDOW), tokens(1, 2), start=(1,)),
    "qwen2": Family(
        "qwen2",
        WINDOWED | dict(use_sliding_window=True),
        tokens(-4, -2, -4),
        dict(eos_token_id=[-2, -4]),
    ),
    "gemma2": Family("gemma2", WINDOWED | dict(query_pre_attn_scalar=8), GEMMA, start=(2,), attentions=("eager",)),
    "gemma3": Family(
        "gemma3_text", WINDOWED | dict(query_pre_attn_scalar=8), GEMMA, dict(eos_token_id=[1, 106]), start=(2,)
    ),
    "gemma3n": Family(
        "gemma3n_text",
        WINDOWED
        | dict(
            num_hidden_layers=3,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCAB,
            num_kv_shared_layers=1,
            laurel_rank=4,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0, 0.0, 0.0],
        ),
        GEMMA,
        start=(2,),
    ),
    "gemma4": Family(
        "gemma4_text",
        WINDOWED | dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, global_head_dim=16),
        GEMMA,
        start=(2,),
    ),
    "llama4": Family(
        "llama4_text",
        LLAMA
        | dict(
            attention_chunk_size=WINDOW,
            num_local_experts=2,
            intermediate_size_mlp=48,
            layer_types=["chunked_attention", "full_attention"],
            moe_layers=[],
        ),
        tokens(-4, [-3, -2, -1], -5),
        start=(-4,),
    ),
    "gpt_oss": Family(
        "gpt_oss",
        WINDOWED | dict(num_local_experts=4, num_experts_per_tok=2),
        tokens(-4, -1, -3),
        attentions=("eager",),
    ),
    "gpt_neox": Family("gpt_neox", LLAMA, NEOX),
    "gpt_neo": Family(
        "gpt_neo",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=WINDOW,
            max_position_embeddings=96,
        ),
        tokens(-1, -1),
        attentions=("eager",),
    ),
    "bloom": Family(
        "bloom",
        dict(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
        tokens(1, 2, 3),
        attentions=("eager",),
        scale=6.0,
    ),
    "falcon": Family("falcon", BASE | dict(alibi=True), tokens(11, 11)),
    "mpt": Family(
        "mpt", dict(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=96), NEOX, attentions=("eager",)
    ),
    "mamba": Family(
        "mamba",
        dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
        tokens(0, 0, 0),
        attentions=("eager",),
    ),
    "jamba": Family(
        "jamba",
        LLAMA
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
        tokens(1, 2, 0),
        start=(1,),
    ),
    "lfm2": Family("lfm2", LLAMA | dict(layer_types=["conv", "full_attention"]), tokens(1, 7, 0), start=(1,)),
    "rwkv": Family(
        "rwkv",
        dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
        NEOX,
        attentions=("eager",),
    ),
}
ENCODER_DECODERS = {
    "t5": Family("t5", T5, tokens(eos=1, pad=0, start=0), end=(1,), attentions=T5_ATTENTIONS, scale=1.5),
    "mt5": Family(
        "mt5",
        T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        tokens(eos=1, pad=0, start=0),
        end=(1,),
        attentions=T5_ATTENTIONS,
        scale=1.5,
    ),
    "bart": Family(
        "bart",
        BART | dict(scale_embedding=False),
        tokens(0, 2, 1, 2),
        dict(forced_eos_token_id=2, forced_bos_token_id=0),
        start=(0,),
        end=(2,),
        scale=6.0,
    ),
    "mbart": Family(
        "mbart",
        BART | dict(scale_embedding=True),
        tokens(0, 2, 1, -5),
        dict(forced_eos_token_id=2),
        end=(2, -5),
        scale=6.0,
    ),
    "marian": Family(
        "marian",
        BART | dict(scale_embedding=True, decoder_vocab_size=VOCAB),
        tokens(0, 0, -1, -1),
        dict(forced_eos_token_id=0),
        end=(0,),
        scale=6.0,
    ),
    "pegasus": Family(
        "pegasus",
        BART | dict(scale_embedding=True),
        tokens(eos=1, pad=0, start=0),
        dict(forced_eos_token_id=1),
        end=(1,),
        scale=6.0,
    ),
}
LANGUAGE = CAUSAL | ENCODER_DECODERS
READERS = {
    "SEQ_CLS": ("bert", "roberta", "deberta-v2", "modernbert", "llama", "qwen3", "gpt2", "t5", "bart"),
    "TOKEN_CLS": ("bert", "roberta", "deberta-v2", "modernbert", "mistral", "gpt2", "t5"),
    "QUESTION_ANS": ("bert", "roberta", "deberta-v2", "modernbert", "llama", "qwen3", "gpt2", "bart"),
    "FEATURE_EXTRACTION": ("bert", "electra", "distilbert", "modernbert", "mistral", "gpt2", "t5"),
}
HEADED = {
    f"{name} {task_type}": Family(
        name,
        {},
        tokens(1, 2, 0),
        start=(1,),
        attentions=("eager",) if name == "deberta-v2" else T5_ATTENTIONS if name == "t5" else ("sdpa", "eager"),
        task_type=task_type,
    )
    for task_type, names in READERS.items()
    for name in names
}
"""Models that write no text: with a head for classes, tags or answers, and without one."""
SEEING = {f"{name} with pictures": Family(name, {}, tokens(1, 2, 0)) for name in KINDS}
"""Models that see, with a vocabulary of their own (`tests/shared/tiny_pictures.py`)."""
FAMILIES = LANGUAGE | HEADED | SEEING


def in_vocabulary(value: Any) -> Any:
    """Ids that count from the end as ids of the vocabulary."""
    if isinstance(value, list | tuple):
        return [in_vocabulary(one) for one in value]
    return value % VOCAB if isinstance(value, int) else value


@functools.cache
def pristine(name: str, dtype: str, attention: str) -> PreTrainedModel:
    """A family's backbone, to be copied and never to be changed.

    It is frozen, as behind a prompt: torch takes other kernels, which round otherwise, where a mask has a gradient.
    """
    family = FAMILIES[name]
    if name in SEEING:
        seeing = tiny_picture_model(family.model_type)
        seeing.set_attn_implementation(attention)
        return seeing.to(getattr(torch, dtype)).requires_grad_(False)
    if family.task_type is not None:
        reader = tiny_classifier(family.model_type, family.task_type, vocab_size=VOCAB, attn_implementation=attention)
        return reader.to(getattr(torch, dtype)).requires_grad_(False)
    special = {key: in_vocabulary(value) for key, value in family.special.items()}
    config = AutoConfig.for_model(family.model_type, **family.values, **special)
    wanted, drawn = getattr(torch, dtype), initial_dtype(name, getattr(torch, dtype))
    torch.manual_seed(0)
    auto: Callable = AutoModelForSeq2SeqLM if family.is_encoder_decoder else AutoModelForCausalLM
    backbone = auto.from_config(config, dtype=drawn, attn_implementation=attention)
    if drawn != wanted:
        backbone.to(wanted)
    scale_weights(backbone, family.scale)
    backbone.generation_config.update(**{key: in_vocabulary(value) for key, value in family.generation.items()})
    return backbone.eval().requires_grad_(False)


def fresh(name: str, dtype: str, attention: str) -> PreTrainedModel:
    """A copy of it that may be changed."""
    return copy.deepcopy(pristine(name, dtype, attention)).requires_grad_()

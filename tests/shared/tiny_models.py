"""Tiny random models and a tokenizer trained on the spot."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

# Tiny models gain nothing from threads, and lose much to them on a machine that does something else as well.
torch.set_num_threads(1)


CORPUS = [
    "Message : the parcel never came and nobody answers Label : complaint",
    "Message : thank you for the quick help yesterday Label : no complaint",
    "Classify if the message is a complaint or not: positive negative great awful film plot",
    "Tweet text : why is my line down again , third time this week ! Label : complaint",
    "summary of the long story about a small dog and a big cat in the old town of night and day",
]
VOCAB = 400
H = 32
DECODERS = {
    "gpt2": dict(vocab_size=VOCAB, n_embd=H, n_layer=2, n_head=4, n_positions=128),
    "bloom": dict(vocab_size=VOCAB, hidden_size=H, n_layer=2, n_head=4),
    "opt": dict(
        vocab_size=VOCAB,
        hidden_size=H,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
}
LLAMA_LIKE = dict(
    vocab_size=VOCAB,
    hidden_size=H,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
DECODERS |= {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE | dict(sliding_window=None),
    "qwen2": LLAMA_LIKE,
    "gemma": LLAMA_LIKE | dict(head_dim=8),
    "mpt": dict(vocab_size=VOCAB, d_model=H, n_layers=2, n_heads=4, max_seq_len=128),
    "mamba": dict(vocab_size=VOCAB, hidden_size=H, num_hidden_layers=2, state_size=4),
}
BART_LIKE = dict(
    vocab_size=VOCAB,
    d_model=H,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=128,
    scale_embedding=True,
)
T5_LIKE = dict(vocab_size=VOCAB, d_model=H, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
ENCODER_DECODERS = {
    "t5": T5_LIKE,
    "mt5": T5_LIKE | dict(feed_forward_proj="gated-gelu"),
    "bart": BART_LIKE,
    "mbart": BART_LIKE,
}


def tiny_model(name: str, seed: int = 0, **changes) -> transformers.PreTrainedModel:
    """A random fp32 model of two layers, with weights large enough that a wrong position or mask shows."""
    values = (DECODERS | ENCODER_DECODERS)[name] | changes
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    if name in ENCODER_DECODERS:
        special["decoder_start_token_id"] = 0
    config = transformers.AutoConfig.for_model(name, **special | values)
    torch.manual_seed(seed)
    auto = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
    model = auto.from_config(config)
    scale_weights(model, 1.5 if name in ENCODER_DECODERS else 3.0)
    return model.eval()


def scale_weights(model: transformers.PreTrainedModel, factor: float) -> None:
    """Makes a random model's weights so large that its predictions depend on all it sees."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)


def make_tokenizer(kind: str = "gpt2") -> PreTrainedTokenizerFast:
    """A small tokenizer that treats a text's start as GPT-2's, Llama's or T5's does."""
    if kind == "gpt2":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        core = Tokenizer(models.BPE(unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if kind == "llama" else "always")
        core.decoder = decoders.Metaspace(prepend_scheme="first" if kind == "llama" else "always")
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], show_progress=False
        )
    core.train_from_iterator(CORPUS * 4, trainer)
    if kind == "llama":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if kind == "t5":
        core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )

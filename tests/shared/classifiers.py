"""Tiny random models with a classification head, and what their heads read of a row alone, written out by hand."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.shared.tiny_models import BART_LIKE, LLAMA_LIKE, T5_LIKE, VOCAB, H, make_tokenizer, scale_weights

BERT_LIKE = dict(
    vocab_size=VOCAB,
    hidden_size=H,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    type_vocab_size=2,
    hidden_dropout_prob=0.3,  # it must be off
)
DEBERTA_LIKE = BERT_LIKE | dict(
    relative_attention=True,
    pos_att_type=["c2p", "p2c"],
    position_biased_input=False,
    norm_rel_ebd="layer_norm",
    cls_dropout=0.3,
    pooler_dropout=0.3,
)
ENCODERS = {
    "bert": BERT_LIKE | dict(classifier_dropout=0.3),
    "roberta": BERT_LIKE | dict(pad_token_id=1, bos_token_id=0),
    "xlm-roberta": BERT_LIKE | dict(pad_token_id=1, bos_token_id=0),
    "camembert": BERT_LIKE | dict(pad_token_id=1, bos_token_id=0),
    "electra": BERT_LIKE | dict(embedding_size=16),
    "mpnet": {name: value for name, value in BERT_LIKE.items() if name != "type_vocab_size"} | dict(pad_token_id=1),
    "distilbert": dict(
        vocab_size=VOCAB,
        dim=H,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
        seq_classif_dropout=0.3,
    ),
    "deberta": DEBERTA_LIKE,
    "deberta-v2": DEBERTA_LIKE | dict(position_buckets=8, share_att_key=True),
    "modernbert": dict(
        vocab_size=VOCAB,
        hidden_size=H,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        local_attention=8,
        global_attn_every_n_layers=2,
        classifier_dropout=0.3,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
}
DECODERS = {
    "llama": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE | dict(head_dim=8),
    "mistral": LLAMA_LIKE | dict(sliding_window=6),
    "gemma2": LLAMA_LIKE | dict(head_dim=8, sliding_window=6),
    "gpt2": dict(vocab_size=VOCAB, n_embd=H, n_layer=2, n_head=4, n_positions=128),
}
ENCODERS_OF_PAIRS = {
    "t5": T5_LIKE | dict(classifier_dropout=0.3),
    "mt5": T5_LIKE | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "umt5": T5_LIKE | dict(feed_forward_proj="gated-gelu"),
    "bart": BART_LIKE | dict(classifier_dropout=0.3),
}
TOKEN_TYPES = ("bert", "roberta", "electra", "deberta", "deberta-v2")
AUTO = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}


def tiny_classifier(
    name: str, task_type: str = "SEQ_CLS", num_labels: int | None = None, **changes
) -> PreTrainedModel:
    """A random fp32 model of two layers with a head, in eval mode."""
    num_labels = num_labels or (2 if task_type == "QUESTION_ANS" else 3)
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    values = (ENCODERS | DECODERS | ENCODERS_OF_PAIRS)[name]
    if name in ENCODERS_OF_PAIRS:
        special["decoder_start_token_id"] = 3
    config = AutoConfig.for_model(name, **special | values | changes | dict(num_labels=num_labels))
    torch.manual_seed(0)
    auto = AUTO[task_type]
    model = (AutoModelForTextEncoding if auto is AutoModel and name in ENCODERS_OF_PAIRS else auto).from_config(config)
    scale_weights(model, 1.5 if name in ENCODERS_OF_PAIRS else 2.0 if name == "modernbert" else 5.0)
    return model.eval()


def tiny_base_model(name: str) -> PreTrainedModel:
    """The same without a head; of T5 the encoder."""
    return tiny_classifier(name, "FEATURE_EXTRACTION")


def tokenizer_with_cls() -> PreTrainedTokenizerFast:
    """A tokenizer that writes one token, of the id 1, before a text."""
    return make_tokenizer("llama")


def hidden_by_hand(backbone: PreTrainedModel, vectors: Tensor, ids: Tensor, behind: int, **inputs: Tensor) -> Tensor:
    """The last hidden states of one row's tokens, [n, H]: embeddings put together by hand, no pads, no mask.

    `vectors` [P, H] stand behind the row's first tokens, as many as `behind` says. `inputs` has their token types. A
    decoder behind the encoder reads the tokens, one later.
    """
    words = backbone.get_input_embeddings()(ids)
    embeds = torch.cat([words[:behind], vectors.to(words.dtype), words[behind:]])[None]
    if (types := inputs.pop("token_type_ids", None)) is not None:
        zeros = torch.zeros(len(vectors), dtype=torch.long)
        inputs["token_type_ids"] = torch.cat([types[:behind], zeros, types[behind:]])[None]
    if "decoder_input_ids" in inspect.signature(backbone.base_model.forward).parameters:
        start = torch.tensor([backbone.config.decoder_start_token_id])
        inputs["decoder_input_ids"] = torch.cat([start, ids[:-1]])[None]
        return backbone.base_model(inputs_embeds=embeds, **inputs).last_hidden_state[0]
    hidden = backbone.base_model(inputs_embeds=embeds, **inputs).last_hidden_state[0]
    return torch.cat([hidden[:behind], hidden[behind + len(vectors) :]])


def _gelu_of(layer: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.gelu(layer(x))


def _tanh_head(head: nn.Module, x: Tensor) -> Tensor:
    return head.out_proj(torch.tanh(head.dense(x)))


SEQUENCE_HEADS: dict[str, Callable[[PreTrainedModel, nn.ModuleDict, Tensor], Tensor]] = {
    "bert": lambda backbone, head, x: head["classifier"](torch.tanh(backbone.bert.pooler.dense(x[0]))),
    "roberta": lambda backbone, head, x: _tanh_head(head["classifier"], x[0]),
    "electra": lambda backbone, head, x: head["classifier"].out_proj(_gelu_of(head["classifier"].dense, x[0])),
    "distilbert": lambda backbone, head, x: head["classifier"](torch.relu(head["pre_classifier"](x[0]))),
    "deberta": lambda backbone, head, x: head["classifier"](_gelu_of(head["pooler"].dense, x[0])),
    "modernbert": lambda backbone, head, x: head["classifier"](head["head"].norm(_gelu_of(head["head"].dense, x[0]))),
    "llama": lambda backbone, head, x: head["score"](x[-1]),
    "bart": lambda backbone, head, x: _tanh_head(head["classification_head"], x[-1]),
}
LIKE = {"xlm-roberta": "roberta", "camembert": "roberta", "mpnet": "roberta", "deberta-v2": "deberta"}
LIKE |= dict.fromkeys(DECODERS, "llama") | dict.fromkeys(("t5", "mt5", "umt5"), "bart")


def sequence_logits_by_hand(backbone: PreTrainedModel, head: nn.ModuleDict, hidden: Tensor) -> Tensor:
    """The logits [L] of one row's hidden states [n, H]."""
    name = backbone.config.model_type
    return SEQUENCE_HEADS[LIKE.get(name, name)](backbone, head, hidden)


def token_logits_by_hand(backbone: PreTrainedModel, head: nn.ModuleDict, hidden: Tensor) -> Tensor:
    """The logits [n, L] of one row's hidden states [n, H]: of its classes, or of an answer's start and end."""
    if backbone.config.model_type == "modernbert":
        hidden = head["head"].norm(_gelu_of(head["head"].dense, hidden))
    return head[next(name for name in ("classifier", "score", "qa_outputs") if name in head)](hidden)


def logits_by_hand(task_type: str) -> Callable[[PreTrainedModel, nn.ModuleDict, Tensor], Tensor]:
    """What a head of the task type reads of one row's hidden states [n, H]."""
    return sequence_logits_by_hand if task_type == "SEQ_CLS" else token_logits_by_hand

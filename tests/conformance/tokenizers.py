"""A tokenizer for each family: bytes and a few words, with the special tokens where the backbone has them."""

import copy
import functools
import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.shared.tiny_models import CORPUS

from .families import FAMILIES, VOCAB, in_vocabulary


@functools.cache
def _made(name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    special = {key.removesuffix("_token_id"): in_vocabulary(value) for key, value in family.special.items()}
    ids = {
        i for value in special.values() if value is not None for i in (value if isinstance(value, list) else [value])
    }
    texts = {i: f"<special {i}>" for i in sorted(ids | {i % VOCAB for i in (*family.start, *family.end)})}
    core = Tokenizer(models.BPE(*_vocabulary(texts)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(texts.values()))
    around = [[texts[i % VOCAB] for i in part] for part in (family.start, family.end)]
    core.post_processor = processors.TemplateProcessing(
        single=[*around[0], "$A", *around[1]], special_tokens=[(text, i) for i, text in texts.items()]
    )
    named = {
        f"{key}_token": texts[family.token(key)] for key in ("bos", "eos", "pad") if family.token(key) is not None
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def _vocabulary(texts: dict[int, str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary with merges of frequent words, around the special tokens' places."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(texts), initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS * 4, trainer)
    learned = json.loads(core.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    places = [i for i in range(VOCAB) if i not in texts]
    vocabulary = dict(zip(pieces, places, strict=True)) | {text: i for i, text in texts.items()}
    return vocabulary, [tuple(pair) for pair in learned["merges"]]


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A copy, which may be changed."""
    return copy.deepcopy(_made(name))

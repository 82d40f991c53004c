"""Initialise a prompt, [P, H] in fp32: from words, from the vocabulary, at random, or from another prompt.

Token vectors are what the embedding *module* returns, not rows of its weight. Gemma scales its embeddings in the
module, and a prompt initialised from tokens X must behave exactly like X prepended to the text.
"""

import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.encoding import check_ids
from ..data.tokenization import continuation_ids
from ..errors import PromptTuningError
from ..hub.backbones import load_tokenizer
from ..layouts.sharing import embedding_device, whole
from ..prompts.config import PromptTuningConfig, PromptTuningInit
from ..prompts.files import CONFIG_FILE, WEIGHTS_FILE, SavedPrompt, read_prompt
from ..prompts.foreign import adapter_folder, import_prompt
from ..prompts.info import PromptInfo
from ..prompts.privacy import private_start, tells_private_words

logger = logging.getLogger(__name__)

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def initial_prompt(config: PromptTuningConfig, embed: nn.Embedding, scale: float = 1.0) -> Tensor:
    """Return the vectors that training starts from, [P, H] fp32 (Lester et al. 2021, section 3.2).

    `TEXT`, `TEACHER` and `CLASS_LABELS` need the config's `tokenizer`, and `SAMPLE_VOCAB` uses it to leave out special
    and byte tokens. `EXAMPLES` needs the config's `example_token_ids`. `PROMPT` may set `num_virtual_tokens`, from the
    other prompt. `scale` is the factor that the backbone applies to token vectors (`token_scale`). Raise
    PromptTuningError if the text is empty or missing, a tokenizer, label words or examples are missing, or the other
    prompt does not fit.
    """
    init = config.prompt_tuning_init
    if init == PromptTuningInit.RANDOM:
        vectors = torch.empty(config.num_virtual_tokens, embed.embedding_dim)
        return vectors.uniform_(-config.random_range, config.random_range).to(embedding_device(embed))
    if init == PromptTuningInit.PROMPT:
        return _from_prompt(config, embed)
    if init == PromptTuningInit.CLASS_LABELS:
        return scale * _from_class_labels(config, embed)
    if init in (PromptTuningInit.TEXT, PromptTuningInit.TEACHER):
        token_ids = _text_ids(config)
    elif init == PromptTuningInit.EXAMPLES:
        token_ids = _example_ids(config)
    elif init == PromptTuningInit.FIRST_VOCAB:
        if config.num_virtual_tokens > embed.num_embeddings:
            raise PromptTuningError(
                f"FIRST_VOCAB takes the first {config.num_virtual_tokens} rows of a vocabulary of "
                f"{embed.num_embeddings}; lower num_virtual_tokens."
            )
        token_ids = list(range(config.num_virtual_tokens))
    else:
        token_ids = _sampled_ids(config, embed, config.num_virtual_tokens)
    return scale * embedded_ids(token_ids, embed, f"the text of {init.value} has")


def can_be_made_again(initialization: Mapping[str, Any]) -> bool:
    """Tell whether a recorded initialisation (`PromptInfo.initialization`) is enough to compute the start again."""
    return initialization.get("prompt_tuning_init") in (PromptTuningInit.TEXT, PromptTuningInit.FIRST_VOCAB)


def is_saved(initialization: Mapping[str, Any]) -> bool:
    """Tell whether a prompt's start is saved: its record is not enough, and it is no text of a teacher or of rows."""
    return private_start(initialization) is None and not can_be_made_again(initialization)


def made_again(
    initialization: Mapping[str, Any],
    length: int,
    embed: nn.Embedding,
    tokenizer: PreTrainedTokenizerBase,
    scale: float = 1.0,
) -> Tensor | None:
    """Compute the vectors that a prompt started from, [length, H], from its record, which is untrusted input.

    Return None if the record is not enough. Other arguments are as in `initial_prompt`.
    """
    text = initialization.get("prompt_tuning_init_text")
    if not can_be_made_again(initialization) or not isinstance(text, str | None):
        return None
    init = initialization["prompt_tuning_init"]
    try:
        config = PromptTuningConfig(
            num_virtual_tokens=length, prompt_tuning_init=init, prompt_tuning_init_text=text, tokenizer=tokenizer
        )
        return initial_prompt(config, embed, scale)
    except PromptTuningError:
        return None


def embedded_ids(token_ids: list[int], embed: nn.Embedding, what: str) -> Tensor:
    """Return what the model sees for these tokens, [len(token_ids), H] in fp32. Messages start with `what`."""
    check_ids(token_ids, embed.num_embeddings, what)
    with whole(embed):
        if embed.weight.is_meta:
            raise PromptTuningError(
                "the backbone's embedding is on the meta device: it has no numbers to start from. Load its weights."
            )
        return embed.forward(torch.tensor(token_ids, device=embed.weight.device)).float().clone()


def _tokenizer(config: PromptTuningConfig) -> PreTrainedTokenizerBase:
    return tokenizer_of(config, f"prompt_tuning_init is {config.prompt_tuning_init.value}")


def tokenizer_of(config: PromptTuningConfig, why: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a config holds or names. Raise PromptTuningError, which says `why`, if it has none."""
    if config.tokenizer is not None:
        return config.tokenizer
    if config.tokenizer_name_or_path is None:
        raise PromptTuningError(f"{why}, which needs a tokenizer. Give tokenizer=… to get_prompt_tuning_model.")
    # As in PEFT: a config may name a tokenizer, but may not have its code run.
    advice = "Give tokenizer=… to get_prompt_tuning_model."
    return load_tokenizer(config.tokenizer_name_or_path, None, {}, advice, **config.tokenizer_kwargs or {})


def _text_ids(config: PromptTuningConfig) -> list[int]:
    """Return the text's tokens, repeated or cut to P."""
    if config.prompt_tuning_init_text is None:
        raise PromptTuningError(
            "prompt_tuning_init is TEACHER, and no text teaches the prompt. Give the trainer a Teacher of a text or "
            "messages, give prompt_tuning_init_text, or use SAMPLE_VOCAB."
        )
    text_ids = _tokenizer(config)(config.prompt_tuning_init_text, add_special_tokens=False)["input_ids"]
    if not text_ids:
        raise PromptTuningError(
            f"prompt_tuning_init_text {config.prompt_tuning_init_text!r} tokenizes to nothing; give some words."
        )
    return repeated_or_cut(text_ids, config.num_virtual_tokens)


def _example_ids(config: PromptTuningConfig) -> list[int]:
    """Return the tokens of the training rows that were drawn."""
    if config.example_token_ids is None:
        raise PromptTuningError(
            "prompt_tuning_init is EXAMPLES, and there are no rows to start from. Give train_dataset, the template "
            "and the tokenizer to get_prompt_tuning_model, or to the trainer that makes the prompt; or use "
            "SAMPLE_VOCAB."
        )
    return repeated_or_cut(config.example_token_ids, config.num_virtual_tokens)


def repeated_or_cut(ids: Sequence[int], length: int) -> list[int]:
    """Return `length` ids: the first ones, or all of them again and again."""
    return list(islice(cycle(ids), length))


def common_token_ids(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, how_many: int) -> list[int]:
    """Return the `how_many` lowest token ids that are words or parts of words.

    Tokenizers number their tokens by frequency (BPE by the order of merges), so the lowest ids are the most common
    ones. Special, added and byte tokens, and white space, are left out. Without a tokenizer: the lowest ids.
    """
    if tokenizer is None:
        return list(range(min(how_many, vocab_size)))
    left_out = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    ids = range(min(vocab_size, len(tokenizer)))
    return list(islice((i for i in ids if i not in left_out and _is_text(i, tokenizer)), how_many))


def _is_text(token_id: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None or BYTE_TOKEN.fullmatch(token):
        return False
    text = tokenizer.decode([token_id]).strip()
    # A single byte of a longer character decodes to U+FFFD. Categories C* are control and unassigned characters.
    return bool(text) and not any(c == "\ufffd" or unicodedata.category(c).startswith("C") for c in text)


def _sampled_ids(config: PromptTuningConfig, embed: nn.Embedding, how_many: int) -> list[int]:
    """Draw different tokens from the most common ones with torch's generator, so the run's seed decides."""
    tokenizer = None if config.tokenizer is None and config.tokenizer_name_or_path is None else _tokenizer(config)
    pool = common_token_ids(tokenizer, embed.num_embeddings, config.vocab_sample_size)
    if how_many > len(pool):
        raise PromptTuningError(
            f"SAMPLE_VOCAB draws {how_many} different tokens from {len(pool)}; "
            "raise vocab_sample_size or lower num_virtual_tokens."
        )
    return [pool[i] for i in torch.randperm(len(pool))[:how_many].tolist()]


def _from_class_labels(config: PromptTuningConfig, embed: nn.Embedding) -> Tensor:
    """Return the mean of each label's token embeddings; the other vectors are sampled (section 3.2)."""
    if not config.label_words:
        raise PromptTuningError(
            "prompt_tuning_init is CLASS_LABELS and there are no label words. "
            "Give get_prompt_tuning_model a template with label_words, or use SAMPLE_VOCAB."
        )
    tokenizer = _tokenizer(config)
    if left_out := config.label_words[config.num_virtual_tokens :]:
        logger.warning(
            "CLASS_LABELS starts a vector from each label, and %d of %d labels have none: %s%s. Give "
            "num_virtual_tokens=%d, or another start.",
            *(len(left_out), len(config.label_words), ", ".join(map(repr, left_out[:5]))),
            *(", …" if left_out[5:] else "", len(config.label_words)),
        )
    means = [
        embedded_ids(continuation_ids(tokenizer, " " + w), embed, f"the label words {w!r} have").mean(0, keepdim=True)
        for w in config.label_words[: config.num_virtual_tokens]
    ]
    rest = config.num_virtual_tokens - len(means)
    if rest:
        means.append(embedded_ids(_sampled_ids(config, embed, rest), embed, "the vocabulary has"))
    return torch.cat(means)


def _from_prompt(config: PromptTuningConfig, embed: nn.Embedding) -> Tensor:
    """Return another prompt's vectors (the paper's prompt transfer; SPoT, Vu et al. 2022)."""
    vectors = _saved_vectors(config)
    if config.num_virtual_tokens is None:
        config.num_virtual_tokens = len(vectors)
    if vectors.shape != (config.num_virtual_tokens, embed.embedding_dim):
        raise PromptTuningError(
            f"init_prompt {config.init_prompt!r} holds {vectors.shape[0]} vectors of width {vectors.shape[1]}; "
            f"this prompt has {config.num_virtual_tokens} of width {embed.embedding_dim}. Set num_virtual_tokens to "
            f"{vectors.shape[0]}, and use a prompt of a backbone of the same width."
        )
    return vectors.to(embedding_device(embed))


def saved_start(config: PromptTuningConfig) -> SavedPrompt | None:
    """Return the saved prompt that a prompt starts from; None without one, or if it is of another codebase."""
    if config.prompt_tuning_init != PromptTuningInit.PROMPT or config.init_prompt is None:
        return None
    if not Path(config.init_prompt).exists():
        return _read_start(config)
    folder = _local_start(config)
    is_ours = all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))  # of others, weights are pickled
    return read_prompt(folder) if is_ours else None


def saved_info(config: PromptTuningConfig) -> PromptInfo | None:
    """Return what is recorded of the prompt that a prompt starts from; None without one, or of other codebases."""
    saved = saved_start(config)
    return None if saved is None else saved.info


def _local_start(config: PromptTuningConfig) -> Path:
    """Return the folder or file on this machine of the prompt that a prompt starts from."""
    return adapter_folder(Path(config.init_prompt, config.init_prompt_subfolder or ""))


def _read_start(config: PromptTuningConfig) -> SavedPrompt:
    """Read the prompt of the Hub that a prompt starts from."""
    return read_prompt(
        config.init_prompt,
        revision=config.init_prompt_revision,
        subfolder=config.init_prompt_subfolder or "",
        token=config.init_prompt_token,
    )


def inherited_start(info: PromptInfo | None) -> dict[str, str]:
    """Return what a prompt's initialisation records of the prompt that it goes on from: a private start, if any.

    A private text that taught that prompt is one, too (`TEACHER`).
    """
    if info is None or not tells_private_words(info):
        return {}
    return {"private_start": (private_start(info.initialization) or PromptTuningInit.TEACHER).value}


def _saved_vectors(config: PromptTuningConfig) -> Tensor:
    """Load the vectors of an untrusted saved prompt, [P, H]: a folder or file of any known format, or a Hub id."""
    if not Path(config.init_prompt).exists():
        return _read_start(config).vectors
    if config.init_prompt_revision is not None:
        raise PromptTuningError(
            f"init_prompt_revision is {config.init_prompt_revision!r}, and init_prompt {config.init_prompt!r} is on "
            "this machine, where there are no revisions. Leave it out."
        )
    return import_prompt(_local_start(config))

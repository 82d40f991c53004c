"""Run several prompts in one call on the same rows, and compute their majority vote (Lester et al. 2021, section 6).

G prompts vote on L labels for each of B rows. Each row is repeated for every prompt.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.chat_tokenization import RowTemplate
from ..data.template import PromptTemplate
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..models.model_classes import check_writes_text
from ..models.soft_prompts import SoftPrompts


def votes(scores: np.ndarray) -> np.ndarray:
    """Return how many prompts rank each label first, [B, L], by their log-likelihoods, [B, G, L]."""
    return (scores.argmax(2)[..., None] == np.arange(scores.shape[2])).sum(1)


def vote(scores: np.ndarray) -> np.ndarray:
    """Return the index of the label that most prompts rank first, [B], by their log-likelihoods, [B, G, L].

    In a tie, the label with the highest log-likelihood, summed over the prompts, wins. The paper leaves ties open.
    """
    counts = votes(scores)
    tied = counts == counts.max(1, keepdims=True)
    return np.where(tied, scores.sum(1), -np.inf).argmax(1)


def vote_on_texts(texts: Sequence[str]) -> str:
    """Return the text that most prompts wrote, comparing texts exactly. In a tie, the first text wins."""
    return Counter(texts).most_common(1)[0][0]


def label_record(template: PromptTemplate, names: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
    """Return one row's vote: `prediction`, `votes` (each prompt's best label) and `scores` (of every label).

    `scores` are the prompts' log-likelihoods, [G, L]; the record has their sums over the prompts.
    """
    words = [template.label_words[label] for label in template.labels]
    return {
        "prediction": words[int(vote(scores[None])[0])],
        "votes": {name: words[int(best)] for name, best in zip(names, scores.argmax(1), strict=True)},
        "scores": dict(zip(words, map(float, scores.sum(0)), strict=True)),
    }


def text_record(names: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """Return one row's vote on texts: `prediction` and `votes` (each prompt's text)."""
    return {"prediction": vote_on_texts(texts), "votes": dict(zip(names, texts, strict=True))}


def encoder_for_members(
    model: SoftPrompts, members: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: RowTemplate
) -> PromptTokenizer:
    """Return what encodes rows for all members: with a system turn, if one of them stands there.

    Raise PromptTuningError, which names the member, if the chat template writes another head than its.
    """
    check_writes_text(model)
    encoders = {}
    for name in members:
        try:
            encoders[name] = model.row_encoder(tokenizer, template, name)
        except PromptTuningError as error:
            raise PromptTuningError(f"the ensemble's prompt {name!r}: {error}") from error
    in_chats = (name for name in members if model.peft_config[name].prompt_position == "system")
    return encoders[next(in_chats, members[0])]


def for_members(batch: dict[str, Tensor], members: Sequence[str]) -> dict[str, Any]:
    """Return the batch of B rows repeated for each of G prompts, [G * B, …], with the prompt of each row."""
    repeated = {name: value.repeat(len(members), *[1] * (value.ndim - 1)) for name, value in batch.items()}
    return repeated | {"adapter_names": [name for name in members for _ in batch["input_ids"]]}


def by_member(values: Tensor, members: Sequence[str]) -> Tensor:
    """Return the results of `for_members`, [G * B, …], by row and prompt, [B, G, …]."""
    return values.unflatten(0, (len(members), -1)).transpose(0, 1)

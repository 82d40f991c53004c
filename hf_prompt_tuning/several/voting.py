"""The majority vote of several prompts (Lester et al. 2021, section 6).

G prompts vote on L labels for each of B rows.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.template import PromptTemplate


def votes(scores: np.ndarray) -> np.ndarray:
    """How many prompts have each label as their best.

    Args:
        scores: [B, G, L], log-likelihoods.

    Returns:
        [B, L] whole numbers.
    """
    return (scores.argmax(2)[..., None] == np.arange(scores.shape[2])).sum(1)


def vote(scores: np.ndarray) -> np.ndarray:
    """The label that most prompts have as their best; of labels with as many votes, the likeliest.

    The likeliest has the highest log-likelihood, summed over the prompts. The paper leaves ties open.

    Args:
        scores: [B, G, L], log-likelihoods.

    Returns:
        [B], the labels' indices.
    """
    counts = votes(scores)
    tied = counts == counts.max(1, keepdims=True)
    return np.where(tied, scores.sum(1), -np.inf).argmax(1)


def vote_on_texts(texts: Sequence[str]) -> str:
    """The text that most prompts wrote, letter by letter; of texts with as many votes, the first one's.

    Args:
        texts: one of each prompt.
    """
    counts = Counter(texts)
    most = max(counts.values())
    return next(text for text in texts if counts[text] == most)


def label_record(template: PromptTemplate, names: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
    """One row's vote in words: `prediction`, `votes` (the best label of each prompt), and `scores` of every label.

    Args:
        template: with its label words.
        names: the prompts', in the order of the scores.
        scores: [G, L]; those of the record are their sums.
    """
    words = [template.label_words[label] for label in template.labels]
    return {
        "prediction": words[int(vote(scores[None])[0])],
        "votes": {name: words[int(best)] for name, best in zip(names, scores.argmax(1), strict=True)},
        "scores": dict(zip(words, map(float, scores.sum(0)), strict=True)),
    }


def text_record(names: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """One row's vote on texts: `prediction`, and `votes` (the text of each prompt)."""
    return {"prediction": vote_on_texts(texts), "votes": dict(zip(names, texts, strict=True))}

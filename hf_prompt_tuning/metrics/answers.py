"""Compute exact match and F1 of answers as SQuAD does: means over rows, from 0 to 1.

Answers are compared in lower case, without punctuation, articles and superfluous white space. Each row counts its best
reference. A row without references has no answer, which only an empty prediction finds. It is a module of `evaluate`
that needs no network.
"""

import re
import string
from collections import Counter

import datasets
import evaluate

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text):
    """Return the words of an answer that are compared."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def overlap(prediction, reference):
    """Return the F1 of the words of two answers, each as often as it occurs; if one has none, whether both do."""
    here, there = words(prediction), words(reference)
    if not here or not there:
        return float(here == there)
    return 2 * sum((Counter(here) & Counter(there)).values()) / (len(here) + len(there))


class Answers(evaluate.Metric):
    def _info(self):
        features = datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        )
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        exact = shared = 0.0
        for prediction, texts in zip(predictions, references, strict=True):
            texts = [text for text in texts if words(text)] or [""]
            exact += max(words(prediction) == words(text) for text in texts)
            shared += max(overlap(prediction, text) for text in texts)
        return {"exact_match": exact / len(predictions), "f1": shared / len(predictions)}

"""Compute precision, recall and F1 of spans, and the share of right tags, as CoNLL-2003's evaluation counts them.

Rows are lists of tags: O outside, B-X at the beginning of a span of the kind X and I-X within it; also E-X at its end,
and S-X for a span of one word. A span is right if its kind and both of its ends are. It is a module of `evaluate` that
needs no network.
"""

import datasets
import evaluate


def spans(tags):
    """Return the spans of a row's tags as (kind, first word, last word).

    I-X begins a span where none of X goes on, as in CoNLL's evaluation.
    """
    found, start, kind = set(), None, None
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        goes_on = start is not None and mark in ("I", "E") and name == kind
        if start is not None and not goes_on:
            found.add((kind, start, place - 1))
            start = None
        if mark != "O" and start is None:
            start, kind = place, name
        if mark in ("E", "S"):
            found.add((kind, start, place))
            start = None
    return found


class Spans(evaluate.Metric):
    def _info(self):
        kind = datasets.List(datasets.Value("string"))
        features = datasets.Features(dict.fromkeys(("predictions", "references"), kind))
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        right = predicted = true = tags = same = 0
        for here, there in zip(predictions, references, strict=True):
            ours, theirs = spans(here), spans(there)
            right, predicted, true = right + len(ours & theirs), predicted + len(ours), true + len(theirs)
            tags, same = tags + len(there), same + sum(a == b for a, b in zip(here, there, strict=True))
        precision, recall = right / max(predicted, 1), right / max(true, 1)
        both = precision + recall
        values = {"precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0}
        return values | {"accuracy": same / max(tags, 1)}

"""Compute accuracy and macro F1, as an `evaluate` module that needs no network."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score

_DESCRIPTION = "Accuracy, and F1 averaged over the labels with equal weight."
_ARGUMENTS = """
Args:
    predictions: the predicted label indices.
    references: the true label indices.
Returns:
    accuracy and f1, from 0 to 1.
"""


class Classification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_ARGUMENTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, average="macro")),
        }

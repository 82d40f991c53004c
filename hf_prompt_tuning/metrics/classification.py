"""Compute accuracy, and F1 averaged over the labels with equal weight, of label indices: numbers from 0 to 1.

It is a module of `evaluate` that needs no network.
"""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class Classification(evaluate.Metric):
    def _info(self):
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int64")))
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, average="macro")),
        }

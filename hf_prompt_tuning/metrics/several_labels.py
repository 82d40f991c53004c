"""Compute the share of rows with exactly the right labels, and F1 over the labels: its mean, and of all together.

Rows are 0 or 1 for each label. It is a module of `evaluate` that needs no network.
"""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class SeveralLabels(evaluate.Metric):
    def _info(self):
        kind = datasets.List(datasets.Value("int64"))
        features = datasets.Features(dict.fromkeys(("predictions", "references"), kind))
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        values = {"accuracy": float(accuracy_score(references, predictions))}
        for name, average in (("f1", "macro"), ("f1_micro", "micro")):
            values[name] = float(f1_score(references, predictions, average=average, zero_division=0.0))
        return values

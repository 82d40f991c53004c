"""Compute Pearson's and Spearman's correlation of numbers, NaN if one side has but one value.

It is a module of `evaluate` that needs no network.
"""

import datasets
import evaluate
from scipy.stats import pearsonr, spearmanr


class Numbers(evaluate.Metric):
    def _info(self):
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("float64")))
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        if len(set(predictions)) < 2 or len(set(references)) < 2:
            return {"pearson": float("nan"), "spearman": float("nan")}
        values = {"pearson": pearsonr(predictions, references), "spearman": spearmanr(predictions, references)}
        return {name: float(value.statistic) for name, value in values.items()}

"""Compute the share of texts that are equal to their reference, and the mean ROUGE-L F-measure, from 0 to 1.

Texts are compared without white space at their ends. It is a module of `evaluate` that needs no network.
"""

import datasets
import evaluate
from rouge_score import rouge_scorer


class Text(evaluate.Metric):
    def _info(self):
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("string")))
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        scorer = rouge_scorer.RougeScorer(["rougeL"])
        pairs = [(p.strip(), r.strip()) for p, r in zip(predictions, references, strict=True)]
        rouge = [scorer.score(r, p)["rougeL"].fmeasure for p, r in pairs]
        return {"exact_match": sum(p == r for p, r in pairs) / len(pairs), "rougeL": sum(rouge) / len(pairs)}

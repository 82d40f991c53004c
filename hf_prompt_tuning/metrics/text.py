"""Compute exact match and ROUGE-L of generated texts, as an `evaluate` module that needs no network."""

import datasets
import evaluate
from rouge_score import rouge_scorer

_DESCRIPTION = "Share of texts that are equal to their reference, and mean ROUGE-L F-measure."
_ARGUMENTS = """
Args:
    predictions: the generated texts.
    references: the true texts.
Returns:
    exact_match and rougeL, from 0 to 1. Texts are compared without white space at their ends.
"""


class Text(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_ARGUMENTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        scorer = rouge_scorer.RougeScorer(["rougeL"])
        pairs = [(p.strip(), r.strip()) for p, r in zip(predictions, references, strict=True)]
        rouge = [scorer.score(r, p)["rougeL"].fmeasure for p, r in pairs]
        return {"exact_match": sum(p == r for p, r in pairs) / len(pairs), "rougeL": sum(rouge) / len(pairs)}

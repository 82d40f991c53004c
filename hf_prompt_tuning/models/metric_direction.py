"""Decide whether a higher or a lower value of a metric is better: one rule for all comparisons of evaluations."""

import math
import re
from typing import Any

from ..errors import PromptTuningError

LOWER = {
    *("loss", "perplexity", "ppl", "nll", "entropy", "kl", "divergence", "error", "errors", "wer", "cer", "ter"),
    *("mer", "der", "mse", "mae", "rmse", "msle", "mape", "ece", "brier", "bpb", "bpc", "fid", "runtime", "latency"),
    *("bit", "bits", "logloss", "crossentropy"),
}
HIGHER = {
    *("accuracy", "acc", "f", "fbeta", "precision", "recall", "sensitivity", "specificity", "match", "em", "rouge"),
    *("bleu", "sacrebleu", "gleu", "chrf", "meteor", "bertscore", "bleurt", "comet", "sari", "cider", "auc", "auroc"),
    *("auprc", "map", "mrr", "ndcg", "mcc", "matthews", "correlation", "kappa", "pearson", "pearsonr", "spearman"),
    *("spearmanr", "r", "jaccard", "iou", "dice", "hits", "pass", "reward", "rewards", "accuracies", "second"),
    *("agreement",),
}
QUALIFIERS = {
    *("macro", "micro", "weighted", "binary", "mean", "avg", "average", "score", "scores", "rate", "ratio", "value"),
    *("sum", "lsum", "l", "w", "at", "k", "n", "p", "plus", "coefficient", "corrcoef", "top", "total", "overall"),
    *("per", "byte", "character", "token", "word"),
}
"""Words after a metric's own name that do not change its direction ("f1_macro", "error_rate")."""


def greater_is_better(metric: str, answer: bool | None = None) -> bool:
    """Tell whether a higher value of a metric is better: the caller's answer, else by the last known word of its name.

    The name may have `eval_` and the name of a task or data set in it. Raise PromptTuningError if it has no known
    word, and the caller gave no answer.
    """
    if answer is None:
        answer = by_name(metric)
    if answer is None:
        raise PromptTuningError(
            f"the metric {metric!r} is not one whose better direction is known, such as loss, perplexity, accuracy or "
            "f1; give greater_is_better, True or False."
        )
    return answer


def by_name(metric: str) -> bool | None:
    """Tell whether a higher value of a metric is better; None if its name does not say."""
    words = re.findall(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]*", metric)
    for word in (word.lower() for word in reversed(words)):
        if word in LOWER:
            return False
        if word in HIGHER:
            return True
        if word not in QUALIFIERS:
            return None
    return None


def is_better(value: Any, best: float | None, greater: bool) -> bool:
    """Tell whether a metric's value is better than the best so far; NaN never is."""
    if not isinstance(value, int | float) or math.isnan(value):
        return False
    return best is None or (value > best if greater else value < best)


def value_of(metrics: dict[str, Any], metric: str) -> Any:
    """Return an evaluation's value of `metric_for_best_model`. Raise PromptTuningError if it has no such metric."""
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    if name not in metrics:
        raise PromptTuningError(
            f"metric_for_best_model is {name!r}, and an evaluation gives {', '.join(metrics)}; name one."
        )
    return metrics[name]


def check_direction(args: Any) -> None:
    """Raise PromptTuningError if transformers' arguments guess a metric's direction wrong.

    They assume that higher is better for every metric whose name does not end in "loss", and do not record whether the
    user asked for it.
    """
    metric, greater = args.metric_for_best_model, args.greater_is_better
    if not hasattr(args, "early_stopping_patience") and metric is not None and greater and by_name(metric) is False:
        raise PromptTuningError(
            f"metric_for_best_model is {metric!r} and greater_is_better is True, and less of it is better; give "
            "greater_is_better=False, or PromptTuningArguments, which know."
        )

"""Tell whether a prompt learned anything: whether it is better than the backbone without it."""

from collections.abc import Mapping

from ..models.metric_direction import greater_is_better

TO_TRY = (
    "Try more epochs, other words in the template, or --recipe auto if this was not it; the page 'My prompt does not "
    "learn' has more."
)


def nothing_learned(untuned: Mapping[str, float], tuned: Mapping[str, float], name: str = "") -> str | None:
    """Return one line that says so and what to try, if a prompt is no better than the backbone; else None.

    Compared are the accuracies, or without them the losses, of one evaluation's data: `untuned_accuracy` with
    `eval_accuracy`; of the prompt `name` among several, `untuned_NAME_accuracy` with `eval_NAME_accuracy`. A prompt
    whose loss is lower, and whose accuracy is not higher, has learned little.
    """
    which = f"{name}_" if name else ""
    values = {
        metric: (untuned.get(f"untuned_{which}{metric}"), tuned.get(f"eval_{which}{metric}"))
        for metric in ("accuracy", "loss")
    }
    known = {metric: pair for metric, pair in values.items() if None not in pair}
    better = [
        metric
        for metric, (before, after) in known.items()
        if (after > before if greater_is_better(metric) else after < before)
    ]
    if not known or next(iter(known)) in better:
        return None
    learner = f"the prompt {name!r}" if name else "the prompt"
    found = ", ".join(
        f"its {metric} is {after:.4g}, and without it {before:.4g}" for metric, (before, after) in known.items()
    )
    how_much, than_what = ("Little", "no more accurate") if better else ("Nothing", "no better")
    return f"{how_much} was learned: {learner} is {than_what} than none; {found}. {TO_TRY}"

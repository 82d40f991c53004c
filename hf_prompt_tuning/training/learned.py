"""Tell whether a prompt learned anything: whether it is better than the backbone without it."""

from collections.abc import Mapping

TO_TRY = (
    "Try more epochs, other words in the template, or --recipe auto if this was not it; the page 'My prompt does not "
    "learn' has more."
)


def nothing_learned(untuned: Mapping[str, float], tuned: Mapping[str, float], name: str = "") -> str | None:
    """Return one line that says so and what to try, if a prompt is no better than the backbone; else None.

    Compared are the accuracies, or without them the losses, of one evaluation's data: `untuned_accuracy` with
    `eval_accuracy`; of the prompt `name` among several, `untuned_NAME_accuracy` with `eval_NAME_accuracy`.
    """
    which = f"{name}_" if name else ""
    for metric, larger_is_better in (("accuracy", True), ("loss", False)):
        before, after = untuned.get(f"untuned_{which}{metric}"), tuned.get(f"eval_{which}{metric}")
        if before is not None and after is not None:
            better = after > before if larger_is_better else after < before
            learner = f"the prompt {name!r}" if name else "the prompt"
            found = f"its {metric} is {after:.4g}, and without it {before:.4g}"
            return None if better else f"Nothing was learned: {learner} is no better than none; {found}. {TO_TRY}"
    return None

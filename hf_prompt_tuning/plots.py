"""Pictures of a run."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_loss(log_history: list[dict[str, Any]], file: str | Path) -> bool:
    """Draws training and evaluation loss over steps.

    Args:
        log_history: `trainer.state.log_history`.
        file: the picture to write.

    Returns:
        False, and no picture, where nothing was logged.
    """
    curves = {
        "training": [(log["step"], log["loss"]) for log in log_history if "loss" in log],
        "evaluation": [(log["step"], log["eval_loss"]) for log in log_history if "eval_loss" in log],
    }
    if not any(curves.values()):
        return False
    # A Figure of its own, without pyplot: no window system, no state shared with the caller's plots.
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(xlabel="update step", ylabel="loss per token")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    return True

"""Draw a prompt's loss curves and confusion matrix."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..extras import check_installed
from .info import PromptInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_FILE = "loss.png"
CURVES_FILE = "losses.png"
FIELD_FILE = "field.png"
CONFUSION_FILE = "confusion_matrix.png"
LEVELS = {"eval_no_context_kl": "eval_kl, no context", "eval_first_tokens_kl": "eval_kl, the text's first tokens"}
"""What a prompt that was taught is compared with: levels beside its curves."""


def check_pictures(info: PromptInfo) -> None:
    """Raise PromptTuningError if there is something to draw and nothing to draw it with."""
    if any(info.history.values()) or info.confusion_matrix:
        check_installed("saving a trained prompt (its card has pictures)", ["matplotlib"])


def save_pictures(folder: str | Path, info: PromptInfo) -> None:
    """Write `loss.png` and `confusion_matrix.png`, each if it has data. Remove an earlier prompt's pictures."""
    for name in (LOSS_FILE, CONFUSION_FILE):
        (Path(folder) / name).unlink(missing_ok=True)
    if any(info.history.values()):
        curves = [(points, {"label": name}) for name, points in info.history.items()]
        levels = {label: info.metrics[name] for name, label in LEVELS.items() if name in info.metrics}
        _losses(curves, 6, 4, levels).savefig(Path(folder) / LOSS_FILE, dpi=120)
    if info.confusion_matrix:
        _confusion(info.confusion_matrix).savefig(Path(folder) / CONFUSION_FILE, dpi=120)


def new_axes(width: float, height: float) -> "Axes":
    """Return the axes of an empty figure; width and height are in inches."""
    check_installed("drawing", ["matplotlib"])
    # Import it here: matplotlib would take a quarter of the package's import time. Leave out pyplot: it uses a window
    # system and shares state with the caller's plots.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def _losses(
    curves: Iterable[tuple[list[list[float]], dict[str, Any]]],
    width: float,
    height: float,
    levels: Mapping[str, float] = MappingProxyType({}),
) -> "Figure":
    """Draw loss curves: the points of each, [update step, loss], and the options of its line; and levels by name."""
    axes = new_axes(width, height)
    for points, options in curves:
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", **options)
    for number, (label, level) in enumerate(levels.items()):
        axes.axhline(level, label=label, linestyle=("--", ":")[number % 2], color="gray")
    axes.set(xlabel="update step", ylabel="loss per token")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return axes.figure


def _confusion(matrix: dict) -> "Figure":
    labels, counts = matrix["labels"], matrix["counts"]
    side = 2.5 + 0.5 * len(labels)
    axes = new_axes(side, side)
    axes.imshow(counts, cmap="Blues")
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="predicted", ylabel="right label")
    if len(labels) <= 30:  # with more labels the numbers would overlap
        half = max(map(max, counts)) / 2
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                axes.text(j, i, str(count), ha="center", va="center", color="white" if count > half else "black")
    return axes.figure


def save_curves(
    folder: str | Path, histories: dict[str, dict[str, list[list[float]]]], file: str = CURVES_FILE
) -> None:
    """Write `file`: the losses of several prompts in one picture, by name. Write nothing if there are no losses.

    Training loss is a solid line, evaluation loss a dashed line.
    """
    if not any(points for history in histories.values() for points in history.values()):
        return
    curves = [
        (history.get(key, []), {"label": f"{name}{ending}", "linestyle": style, "color": f"C{i % 10}"})
        for i, (name, history) in enumerate(histories.items())
        for key, ending, style in (("loss", "", "-"), ("eval_loss", ", evaluation", "--"))
    ]
    _losses(curves, 8, 5).savefig(Path(folder) / file, dpi=120)

"""Draw the pictures of an inspection's page, as data URIs of SVG. They contain no text from a prompt."""

import base64
import io
from typing import TYPE_CHECKING

from ..prompts.plots import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import PromptInspection

MAIN, OTHER, QUIET = "#2f6db3", "#c2452d", "#c9d3df"
WIDTH = 7.2


def norms(prompt: "PromptInspection") -> str:
    """Draw the vocabulary's norms as a histogram, and the norms of the prompt's vectors as lines over it."""
    axes = new_axes(WIDTH, 2.6)
    counts, edges = prompt.vocabulary_norms["counts"], prompt.vocabulary_norms["edges"]
    axes.stairs(counts, edges, fill=True, color=QUIET, label="the vocabulary's")
    for position in prompt.positions:
        label = "the prompt's" if position.number == 1 else None
        axes.axvline(position.norm, color=MAIN, alpha=0.7, linewidth=1, label=label)
    axes.set(xlabel="norm", ylabel="tokens")
    axes.legend(frameon=False)
    return _uri(axes)


def moved(prompt: "PromptInspection") -> str:
    """Draw each vector's distance from its start."""
    return _bars([p.moved.distance for p in prompt.positions], "distance from the start")


def attention(prompt: "PromptInspection") -> str:
    """Draw the attention to each position in each layer: layers down, positions across."""
    axes = new_axes(WIDTH, max(2.2, 0.11 * len(prompt.attention_by_layer) + 1))
    from matplotlib.colors import PowerNorm

    shares = [[100 * share for share in layer] for layer in prompt.attention_by_layer]
    extent = (0.5, len(prompt.positions) + 0.5, len(shares) + 0.5, 0.5)
    # Not a linear scale: one vector often gets most of the attention (an attention sink), and all others would get the
    # same colour.
    scale = PowerNorm(0.4, vmin=0)
    image = axes.imshow(shares, aspect="auto", cmap="Blues", norm=scale, extent=extent, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="% of the text's attention")
    axes.set(xlabel="position", ylabel="layer")
    axes.set(xticks=_ticks(len(prompt.positions), 25), yticks=_ticks(len(shares), 8))
    return _uri(axes)


def loss_without(prompt: "PromptInspection") -> str:
    """Draw how the loss changes when a vector is removed (up is worse)."""
    changes = [p.loss_without - prompt.loss for p in prompt.positions]
    return _bars(changes, "change of the loss without it")


def accuracy_without(prompt: "PromptInspection") -> str:
    """Draw how the accuracy changes when a vector is removed, in percentage points (down is worse)."""
    changes = [100 * (p.accuracy_without - prompt.accuracy) for p in prompt.positions]
    return _bars(changes, "change of the accuracy\nwithout it (points)", worse_is_up=False)


def similarity(prompt: "PromptInspection") -> str:
    """Draw the cosine of every position with every other position."""
    axes = new_axes(5.2, 4.4)
    size = len(prompt.positions)
    extent = (0.5, size + 0.5, size + 0.5, 0.5)
    image = axes.imshow(prompt.similarity, cmap="RdBu_r", vmin=-1, vmax=1, extent=extent, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="cosine")
    axes.set(xlabel="position", ylabel="position", xticks=_ticks(size, 12), yticks=_ticks(size, 12))
    return _uri(axes)


def _bars(values: list[float], label: str, worse_is_up: bool = True) -> str:
    axes = new_axes(WIDTH, 2.4)
    better = [value < 0 if worse_is_up else value > 0 for value in values]
    axes.bar(range(1, len(values) + 1), values, color=[OTHER if b else MAIN for b in better])
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="position", ylabel=label, xlim=(0.4, len(values) + 0.6), xticks=_ticks(len(values), 25))
    return _uri(axes)


def _ticks(number: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced integers from 1 to `number`."""
    return list(range(1, number + 1, -(-number // most)))


def _uri(axes: "Axes") -> str:
    axes.spines[["top", "right"]].set_visible(False)
    svg = io.BytesIO()
    axes.figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()

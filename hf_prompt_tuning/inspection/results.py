"""What an inspection found, as data, with the three ways to show it."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from .comparison import PromptComparison
from .page import as_html
from .text import as_text


@dataclass(frozen=True)
class Word:
    """A token of the vocabulary, and how near its embedding is to a vector.

    Attributes:
        text: the token's.
        token_id: its id.
        cosine: of the two.
        distance: between them, euclidean.
    """

    text: str
    token_id: int
    cosine: float
    distance: float


@dataclass(frozen=True)
class Move:
    """How far training took a vector.

    Attributes:
        distance: from where it started, euclidean.
        relative: that distance, by the norm that it started with.
        cosine: with the vector that it started as.
        start: the word nearest to that one, as near as the two are.
        still_nearest: whether that word is still the nearest by cosine.
    """

    distance: float
    relative: float
    cosine: float
    start: Word
    still_nearest: bool


@dataclass
class Position:
    """One vector of a prompt.

    Attributes:
        number: from 1.
        by_cosine: the words of the highest cosine, nearest first.
        by_distance: the words of the least distance.
        norm: euclidean.
        norm_percentile: the share of the vocabulary's vectors that are shorter, in percent.
        moved: None where the start is not known.
        attention: the share of the text's attention, mean over layers, heads and rows; None where it is not known.
        loss_without: of the prompt without this vector; None where it is not known.
        accuracy_without: the same.
    """

    number: int
    by_cosine: list[Word]
    by_distance: list[Word]
    norm: float
    norm_percentile: float
    moved: Move | None = None
    attention: float | None = None
    loss_without: float | None = None
    accuracy_without: float | None = None


@dataclass
class PromptInspection:
    """One prompt.

    Attributes:
        name: its folder, Hub id, or name on the model.
        backbone: the name of the model that it is for, or its architecture.
        width: H.
        source: the template's source; None where the prompt has no template.
        targets: the label words, or the template's target.
        started_as: in words.
        recorded: the metrics that the prompt tells of itself.
        positions: P of them.
        similarity: [P, P], the cosine of every vector with every other.
        vocabulary_norms: `quantiles` (percent -> norm), and a histogram: `edges`, `counts`.
        rows: how many rows of text were looked at.
        labelled_rows: how many of them have a target; the losses and accuracies are theirs.
        loss: per token of the targets, with the whole prompt.
        accuracy: with the whole prompt, where labels are ranked.
        attention_by_layer: [layers, P].
        notes: for what is not known, by its name (`moved`, `attention`, `without`), why.
    """

    name: str
    backbone: str
    width: int
    source: str | None
    targets: list[str]
    started_as: str
    recorded: dict[str, float]
    positions: list[Position]
    similarity: list[list[float]]
    vocabulary_norms: dict[str, Any]
    rows: int = 0
    labelled_rows: int = 0
    loss: float | None = None
    accuracy: float | None = None
    attention_by_layer: list[list[float]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class Inspection:
    """What `inspect_prompt` found.

    Attributes:
        prompts: one or more.
        comparison: of them; None for a single one.
    """

    prompts: list[PromptInspection]
    comparison: PromptComparison | None = None

    def to_text(self) -> str:
        """Tables to read in a terminal; whatever the prompt's words hold, no control character is in it."""
        return as_text(self)

    def to_json(self) -> str:
        """All of it, by the names of these classes; a number that is not finite is null."""
        return json.dumps(_finite(asdict(self)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """One page with its pictures in it. It has no script and needs no network."""
        return as_html(self)


def _finite(value: Any) -> Any:
    """JSON has no NaN, which a backbone in half precision may give as a loss."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

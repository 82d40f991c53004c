"""Hold the results of an inspection, and convert them to text, JSON and HTML."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..prompts.json_files import finite
from .comparison import PromptComparison
from .page import as_html
from .text import as_text


@dataclass(frozen=True)
class Word:
    """A token of the vocabulary, and how near its embedding is to a vector.

    Attributes:
        text: text of the token.
        token_id: id of the token.
        cosine: cosine of the embedding and the vector.
        distance: euclidean distance between them.
    """

    text: str
    token_id: int
    cosine: float
    distance: float


@dataclass(frozen=True)
class Move:
    """How far training moved a vector from its start.

    Attributes:
        distance: euclidean distance from the start.
        relative: that distance, divided by the norm of the start.
        cosine: cosine of the vector and its start.
        start: the word nearest to the start, with its cosine and distance to the start.
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
        number: number of the position, from 1.
        by_cosine: the words with the highest cosine, nearest first.
        by_distance: the words with the smallest distance, nearest first.
        norm: euclidean norm.
        norm_percentile: share of the vocabulary's vectors that are shorter, in percent.
        moved: distance from the start; None if the start is unknown.
        attention: share of the text's attention, mean over layers, heads and rows; None if unknown.
        loss_without: loss of the prompt without this vector; None if unknown.
        accuracy_without: accuracy of the prompt without this vector; None if unknown.
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
    """The inspection of one prompt.

    Attributes:
        name: the prompt's folder, Hub id, or adapter name.
        backbone: name of the prompt's backbone, or its architecture.
        width: H.
        source: the template's source; None if the prompt has no template.
        targets: the label words, or the template's target.
        started_as: description of the initialisation, in words.
        recorded: the metrics recorded in the prompt.
        positions: the P positions.
        similarity: [P, P], the cosine of every vector with every other vector.
        vocabulary_norms: `quantiles` (percent -> norm), and a histogram: `edges`, `counts`.
        rows: number of rows of text.
        labelled_rows: number of rows with a target. Losses and accuracies are computed on these rows.
        loss: loss per target token with the whole prompt; None if unknown.
        accuracy: accuracy with the whole prompt; None if unknown, or if the prompt does not classify.
        attention_by_layer: [layers, P]; empty if unknown.
        notes: the reason for each unknown result, by its name (`moved`, `attention`, `without`).
        place: of a prompt that is not at the start, its position and the tokens that it stands behind (`PromptInfo`).
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
    place: dict[str, Any] = field(default_factory=dict)


@dataclass
class Inspection:
    """The result of `inspect_prompt`.

    Attributes:
        prompts: the inspections of one or more prompts.
        comparison: comparison of the prompts; None for a single prompt.
    """

    prompts: list[PromptInspection]
    comparison: PromptComparison | None = None

    def to_text(self) -> str:
        """Return tables for a terminal. Control characters in the prompt's words are escaped."""
        return as_text(self)

    def to_json(self) -> str:
        """Return all results as JSON, with the attribute names as keys. A number that is not finite becomes null."""
        return json.dumps(finite(asdict(self)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """Return one HTML page that includes its pictures. It has no scripts and needs no network."""
        return as_html(self)

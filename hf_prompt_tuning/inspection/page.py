"""Render an inspection as one HTML page.

The page has no scripts and loads nothing. Everything that comes from a prompt is escaped.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from . import plots
from .text import findings, place_in_words, printable, rows_in_words

if TYPE_CHECKING:
    from .results import Inspection, PromptInspection

TEMPLATE = Path(__file__).parent / "page.html.jinja"


def as_html(inspection: "Inspection") -> str:
    """Return the page as HTML text."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = printable
    environment.filters["place"] = place_in_words
    environment.filters["tint"] = _tint
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        prompts=[
            {"found": prompt, "findings": findings(prompt), "rows": rows_in_words(prompt), "plots": _pictures(prompt)}
            for prompt in inspection.prompts
        ],
        compared=inspection.comparison,
    )


def _pictures(prompt: "PromptInspection") -> dict[str, str]:
    """Return the pictures by name; leave out those of unknown values."""
    drawn = {"norms": True, "similarity": len(prompt.positions) > 1}
    drawn |= {"moved": prompt.positions[0].moved is not None, "attention": bool(prompt.attention_by_layer)}
    changed = any(position.accuracy_without != prompt.accuracy for position in prompt.positions)
    drawn |= {"loss_without": prompt.loss is not None, "accuracy_without": changed}
    return {name: getattr(plots, name)(prompt) for name, is_known in drawn.items() if is_known}


def _tint(cosine: float) -> str:
    """Return a table cell's colour: blue for 1, white for 0, red for -1."""
    red, green, blue = (47, 109, 179) if cosine > 0 else (194, 69, 45)
    return f"rgba({red}, {green}, {blue}, {min(abs(cosine), 1) * 0.75:.2f})"

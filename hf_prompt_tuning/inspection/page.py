"""Render an inspection as one HTML page.

The page has no scripts and loads nothing. Everything that comes from a prompt is escaped.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from . import plots
from .text import findings, printable, rows_in_words

if TYPE_CHECKING:
    from .results import Inspection, PromptInspection

TEMPLATE = Path(__file__).parent / "page.html.jinja"


def as_html(inspection: "Inspection") -> str:
    """Return the page as HTML text."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = printable
    environment.filters["tint"] = _tint
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        prompts=[
            {"found": one, "findings": findings(one), "rows": rows_in_words(one), "plots": _pictures(one)}
            for one in inspection.prompts
        ],
        compared=inspection.comparison,
    )


def _pictures(one: "PromptInspection") -> dict[str, str]:
    """Return the pictures by name; leave out those of unknown values."""
    known = {"norms": True, "similarity": len(one.positions) > 1}
    known |= {"moved": one.positions[0].moved is not None, "attention": bool(one.attention_by_layer)}
    changed = any(position.accuracy_without != one.accuracy for position in one.positions)
    known |= {"loss_without": one.loss is not None, "accuracy_without": changed}
    return {name: getattr(plots, name)(one) for name, there in known.items() if there}


def _tint(cosine: float) -> str:
    """Return a table cell's colour: blue for 1, white for 0, red for -1."""
    red, green, blue = (47, 109, 179) if cosine > 0 else (194, 69, 45)
    return f"rgba({red}, {green}, {blue}, {min(abs(cosine), 1) * 0.75:.2f})"

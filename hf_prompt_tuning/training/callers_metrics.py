"""Prepare the input of the caller's `compute_metrics`, and check and convert its result."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import PromptTuningError
from ..layouts.base import IGNORED


def labelled_rows(references: Any) -> np.ndarray:
    """Return a mask of the rows that have a reference, [N] bool.

    A row without one has None in texts, -1 in label indices [N], and all -100 in token labels [N, T].
    """
    if isinstance(references, list):
        return np.array([reference is not None for reference in references], dtype=bool)
    return references >= 0 if references.ndim == 1 else (references != IGNORED).any(1)


def of_rows(values: Any, rows: np.ndarray) -> Any:
    """Return the values of the selected rows, in their order. `rows` is a mask, [N] bool."""
    if isinstance(values, list):
        return [value for value, kept in zip(values, rows, strict=True) if kept]
    return None if values is None else values[rows]


def mean_losses(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return each row's mean loss over its labelled tokens, [N] (or [N, G] for G prompts)."""
    tokens = np.maximum(tokens, 1)
    return nll / (tokens if nll.ndim == 1 else tokens[:, None])


def plain_metrics(metrics: Any, best: str | None) -> dict[str, Any]:
    """Return a caller's metrics as plain Python numbers, lists, dicts and strings, which any log can store.

    Raise PromptTuningError if it is not a dict, or its value for `best`, the `metric_for_best_model`, is not a number.
    """
    if not isinstance(metrics, Mapping):
        raise PromptTuningError(
            f"compute_metrics returned a {type(metrics).__name__}; return a dict of each metric's name and value."
        )
    metrics = {str(name): _plain(value) for name, value in metrics.items()}
    for name, value in metrics.items():
        decides = best is not None and (best == name or best.endswith(f"_{name}"))
        if decides and not isinstance(value, int | float):
            raise PromptTuningError(
                f"metric_for_best_model is {best!r}, and compute_metrics gave {value!r:.80} for it; name a number."
            )
    return metrics


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value.item() if value.size == 1 else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set) else value

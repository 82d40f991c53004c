"""Calibrate a prompt's label scores with one temperature, fitted on evaluated rows."""

from typing import Any

import numpy as np

BINS = 10
CALIBRATION_ROWS = 128
"""Of more rows than this, whole batches of about so many are calibrated on, where labels may be left out."""
RANGE = (0.01, 100.0)
"""The range of temperatures. Beyond it all scores are equal, or one is 1 and the others are 0."""


def fit_calibration(scores: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """Fit the temperature that makes the softmax of scores / temperature most likely (Guo et al. 2017, section 4.2).

    The right label has the target (N+1)/(N+L), and each other label 1/(N+L), as in Platt (1999) for two labels.
    Without this, rows that are all predicted correctly would give a temperature of 0. `scores` are log-likelihoods,
    [N, L], and `references` [N] the right labels; rows with -1 are left out. Return `temperature`, `rows` (N), and the
    expected calibration error on these rows, without the temperature (`ece`) and with it (`calibrated_ece`). Empty
    without a labelled row.
    """
    from scipy.optimize import minimize_scalar  # of the extra `train`
    from scipy.special import log_softmax

    labelled = references >= 0
    scores, references = scores[labelled].astype(np.float64), references[labelled]
    rows, labels = scores.shape
    if not rows or not np.isfinite(scores).all():
        return {}
    targets = np.full(scores.shape, 1 / (rows + labels))
    targets[np.arange(rows), references] = (rows + 1) / (rows + labels)

    def loss(log_temperature: float) -> float:
        return -float((targets * log_softmax(scores / np.exp(log_temperature), axis=1)).sum()) / rows

    temperature = float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))
    return {
        "temperature": temperature,
        "rows": rows,
        "ece": expected_calibration_error(scores, references),
        "calibrated_ece": expected_calibration_error(scores / temperature, references),
    }


def expected_calibration_error(scores: np.ndarray, references: np.ndarray) -> float:
    """Return the mean difference between the best label's probability and its accuracy, over `BINS` equal bins.

    `scores` are unnormalised log-probabilities, [N, L], and `references` [N] the right labels.
    """
    from scipy.special import log_softmax

    probabilities = np.exp(log_softmax(scores, axis=1))
    sure, right = probabilities.max(1), probabilities.argmax(1) == references
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(sure[bins == b].sum() - right[bins == b].sum()) for b in np.unique(bins)]
    return float(sum(gaps) / len(references))

"""Score rows with a classification head, and compute their metrics."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from ..data.class_names import REGRESSION, SINGLE
from ..layouts.base import IGNORED
from ..models import scoring
from ..models.calibration import fit_calibration
from ..models.head_scoring import head_metrics
from ..prompts.info import PromptInfo
from .head_loss import HeadLoss
from .scorer import RowResults, Scorer, labelled_rows


@dataclass(frozen=True)
class HeadScorer(Scorer):
    """Score the rows of the active prompt with its head.

    `RowResults.label_scores` are logits [B, L]; of taggers `tags` are the predicted ones, and `logits` are there if
    somebody reads them. The loss is that of the labels, without weights and smoothing.

    Attributes:
        head: tells how the loss of a label is computed.
    """

    head: HeadLoss | None = None

    def score(self, model: nn.Module, batch: dict[str, Any], loss_only: bool = False) -> tuple[RowResults, Tensor]:
        """Return the results of a batch's rows, and their labels as the head takes them.

        Of taggers, each row's tokens come first, so that rows do not depend on where a batch is padded.
        """
        batch = dict(batch)
        ids = batch["input_ids"]
        labels = batch.pop("labels", None)
        labels = self.head.without_label(*ids.shape).to(ids.device) if labels is None else labels
        logits = model(**batch).logits
        if self.head.tags:
            logits, labels = _at_the_left(logits, labels, batch.get("attention_mask"))
        values, counts = self.head.parts(logits, labels)
        of_row = tuple(range(1, values.dim()))
        results = RowResults(
            nll=values.sum(of_row) if of_row else values, tokens=(counts.sum(of_row) if of_row else counts).long()
        )
        if loss_only:
            return results, labels
        if not self.head.tags:
            results.label_scores = logits
            return results, labels
        results.tags = logits.argmax(-1)
        if self.with_logits or self.compute_metrics is not None:
            results.logits = logits if self.preprocess_logits is None else self.preprocess_logits(logits, labels)
        return results, labels

    def readable(self, results: RowResults, references: np.ndarray) -> tuple[Any, Any]:
        """Return logits and labels, of numbers to predict [N] and [N]; None and None if there are only losses."""
        outputs = results.logits if self.head.tags else results.label_scores
        if outputs is None:
            return None, None
        is_number = not self.head.tags and outputs.shape[1] == 1 and self._kind(references) == REGRESSION
        return outputs[:, 0] if is_number else outputs, references

    def _kind(self, references: np.ndarray) -> str:
        return self.head.kind(torch.as_tensor(references[:1]))

    def metrics_of(
        self, results: RowResults, outputs: Any, references: Any, info: PromptInfo | None
    ) -> dict[str, float]:
        """Return the loss, and the metrics of the head's labels. Record confusion matrix and calibration in `info`."""
        found = scoring.loss_metrics(results.nll, results.tokens)
        metrics = {"loss": found["loss"]} if found else {}  # a perplexity is of tokens that are written
        predicted = results.tags if self.head.tags else results.label_scores
        if predicted is None:
            return metrics
        kind, classes = self._kind(references), self.head.classes
        if info is not None and kind == SINGLE and not self.head.tags:
            info.confusion_matrix = scoring.confusion_counts(predicted.argmax(1), references, classes)
            info.calibration = fit_calibration(predicted, references)
        return metrics | head_metrics(predicted, references, kind, classes, self.head.tags)

    def metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Return the metrics of all rows (`predictions` are `RowResults`), and those of the caller's function."""
        results = prediction.predictions
        outputs, references = self.readable(results, prediction.label_ids)
        metrics = self.metrics_of(results, outputs, prediction.label_ids, self.info)
        return metrics | self.callers_metrics(outputs, references, prediction)

    def labelled(self, references: Any) -> np.ndarray:
        """Return a mask of the rows that have a label, [N] bool: NaN is none among floats, -100 among indices."""
        if np.issubdtype(references.dtype, np.floating):
            return ~np.isnan(references.reshape(len(references), -1)).any(1)
        return labelled_rows(references)


def _at_the_left(logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a tagger's logits [B, T, L] and labels [B, T] with each row's real tokens first, -100 behind them."""
    if mask is None:
        return logits, labels
    order = torch.argsort(mask == 0, dim=1, stable=True)
    pads = mask.gather(1, order) == 0
    logits = logits.gather(1, order[..., None].expand_as(logits)).masked_fill(pads[..., None], IGNORED)
    return logits, labels.gather(1, order).masked_fill(pads, IGNORED)

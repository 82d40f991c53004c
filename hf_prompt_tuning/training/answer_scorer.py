"""Score windows with a head that finds answers, and compute the metrics of the rows that they are cut from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from transformers import EvalPrediction

from ..data.answer_collator import IN_CONTEXT
from ..data.answer_windows import CONTEXT, ENDS, REFERENCES, STARTS
from ..data.encoded_rows import ROW
from ..errors import PromptTuningError
from ..models import scoring
from ..models.answer_spans import Answer, answers_of_rows, best_spans
from .answer_loss import AnswerLoss
from .scorer import RowResults, Scorer, of_rows


@dataclass(frozen=True)
class AnswerScorer(Scorer):
    """Score the windows of the active prompt with its head, and find one answer for each row.

    Attributes:
        loss: the loss of windows.
        windows: the data that is scored; `reads` adds it.
    """

    loss: AnswerLoss = field(default_factory=AnswerLoss)
    windows: list[Dataset] = field(default_factory=list)

    def reads(self, data: Any) -> None:
        """Keep the windows that are to be scored, for the texts of their rows.

        Raise PromptTuningError for a stream, whose windows are not there when all are scored, for inputs in metrics,
        which are of windows, and for windows that are not in the order in which rows were cut into them.
        """
        if not isinstance(data, Dataset):
            raise PromptTuningError(
                "the data to evaluate is a stream, and an answer is the best of all windows of its row; give rows "
                "that have a length (Dataset.from_list(list(stream)))."
            )
        if "inputs" in self.args.include_for_metrics:
            raise PromptTuningError(
                "include_for_metrics has 'inputs', which are windows, and metrics are of rows; leave it out."
            )
        if not self.args.prediction_loss_only:
            _check_order(data)
        self.windows[:] = [data]

    def score(self, model: nn.Module, batch: dict[str, Any], loss_only: bool = False) -> tuple[RowResults, Tensor]:
        """Return the results of a batch's windows, and the columns of their answers, [B, 2]."""
        batch = dict(batch)
        labels, in_context = batch.pop("labels"), batch.pop(IN_CONTEXT)
        outputs = model(**batch)
        results = RowResults(nll=self.loss.parts(outputs, labels), tokens=(labels[:, 0] >= 0).long())
        if not loss_only:
            logits, longest = (outputs.start_logits, outputs.end_logits), self.encoder.template.longest_answer
            results.spans, results.span_scores = best_spans(*logits, in_context, batch["attention_mask"], longest)
        return results, labels

    def readable(self, results: RowResults, references: np.ndarray) -> tuple[Any, Any]:
        """Return the answer of each row, and the texts of its references, None if they are not known.

        Both are lists in the order of the rows; None and None if there are only losses.
        """
        if results.spans is None:
            return None, None
        windows = self.windows[0].with_format(None).select_columns([ROW, STARTS, ENDS, CONTEXT])
        allowed = self.encoder.template.no_answers
        answers = answers_of_rows(windows, results.spans, results.span_scores, allowed)
        return answers, self.windows[0].select(self._first_windows()).with_format(None)[REFERENCES][:]

    def _first_windows(self) -> np.ndarray:
        """Return the places of the rows' first windows, [rows]."""
        rows = np.asarray(self.windows[0].with_format(None)[ROW])
        return np.flatnonzero(np.diff(rows, prepend=-1))

    def metrics_of(self, results: RowResults, outputs: Any, references: Any, info: Any) -> dict[str, float]:
        """Return the mean loss of the windows, and exact match and F1 of the rows whose answers are known."""
        found = scoring.loss_metrics(results.nll, results.tokens)
        metrics = {"loss": found["loss"]} if found else {}  # a perplexity is of tokens that are written
        return metrics if outputs is None else metrics | answer_metrics(outputs, references)

    def callers_metrics(self, outputs: Any, references: Any, prediction: EvalPrediction) -> dict[str, Any]:
        """Return the caller's metrics of the rows whose answers are known; losses are each row's mean."""
        if self.compute_metrics is None or outputs is None:
            return {}
        first = self._first_windows()
        results = prediction.predictions
        of_row = [np.add.reduceat(values, first) for values in (results.nll, results.tokens)]
        rows = EvalPrediction(RowResults(nll=of_row[0], tokens=of_row[1]), prediction.label_ids)
        return super().callers_metrics(outputs, references, rows)


def _check_order(windows: Dataset) -> None:
    """Raise PromptTuningError if the windows of a row are not together, or its first one does not come first.

    The first window of a row holds the row's context and answers.
    """
    columns = windows.with_format(None)
    before, seen = None, set()
    for number, (row, context) in enumerate(zip(columns[ROW][:], columns[CONTEXT][:], strict=True), 1):
        begins, is_first = row != before, context is not None
        if begins != is_first or (begins and row in seen):
            what = "a first one" if is_first else "not the first one"
            raise PromptTuningError(
                f"window {number} of the data to evaluate is {what} of its row, and the windows of a row are read "
                "together, the first one first: keep the order of windows, and choose among rows before they are cut."
            )
        before = row
        seen.add(row)


def answer_metrics(answers: list[Answer], references: list[list[str] | None]) -> dict[str, float]:
    """Return exact match and F1 of the rows whose references are known; empty if none are."""
    known = np.array([texts is not None for texts in references], dtype=bool)
    if not known.any():
        return {}
    texts = [answer.text for answer in of_rows(answers, known)]
    return scoring.metric("answers.py").compute(predictions=texts, references=of_rows(references, known))

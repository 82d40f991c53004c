"""Score the rows of a batch, and compute the metrics of all scored rows."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import EvalPrediction, TrainingArguments
from transformers.utils import ModelOutput

from ..data.collator import beside_texts, split_teachers
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.base import IGNORED, LabelledLogits
from ..layouts.candidates import Trie
from ..layouts.label_search import LabelSearch
from ..models import scoring
from ..models.calibration import fit_calibration
from ..models.distillation import comparison, comparison_metrics, label_comparison
from ..prompts.info import PromptInfo
from .teaching import Teaching
from .token_rows import RowEncoder


@dataclass
class RowResults(ModelOutput):
    """The results of B rows. `Trainer` gathers them from all batches and processes as a `ModelOutput`.

    They are tensors of one batch, or NumPy arrays of all gathered rows. Of scores, ids and logits at most one is set.

    Attributes:
        nll: negative log-likelihood of each row's labels, [B].
        tokens: number of labelled tokens, [B].
        label_scores: log-likelihood of every label, [B, L] (classification); -inf for a label that cannot be the best
            and was left out.
        nodes: number of the labels' tokens that were computed, [B], if some may be left out.
        sampled: 1 for the rows that the calibration is fitted to, those of batches without a label left out, [B] long;
            None for all.
        generated_ids: token ids of generated texts, [B, T'], with -100 after their end (free text).
        tags: the most likely tag of each token, [B, T] long (taggers).
        spans: the first and last column of each window's best answer, without pads, [B, 2] long (answers).
        span_scores: the score of that answer, and that of none, [B, 2].
        logits: logits of the row's tokens, [B, T, V], or what `preprocess_logits_for_metrics` returned (token ids).
        kl: with a teacher, the sum of KL(teacher ‖ prompt) over the row's labelled tokens (or of its labels), [B].
        agreed: the number of positions at which both have the same most likely token (or label), [B].
        compared: the number of positions that were compared, [B].
    """

    nll: Any = None
    tokens: Any = None
    label_scores: Any = None
    nodes: Any = None
    sampled: Any = None
    generated_ids: Any = None
    tags: Any = None
    spans: Any = None
    span_scores: Any = None
    logits: Any = None
    kl: Any = None
    agreed: Any = None
    compared: Any = None


@dataclass(frozen=True)
class Scorer:
    """Score the rows of one prompt, the active one.

    Attributes:
        rows: turns the prompt's data into token ids.
        args: the run's arguments.
        max_new_tokens: maximum length of a generated text; None to generate none.
        compute_metrics: the caller's function.
        preprocess_logits: the caller's `preprocess_logits_for_metrics`.
        with_logits: whether to return the logits of rows of token ids, and the scores of all labels.
        info: description of the prompt, in which to record the confusion matrix and the calibration; None to record
            nothing.
        teaching: the run's teachers, with which predictions are compared; None without a teacher.
        constants: metrics that are known before, of all evaluations.
        calibrated_every: of how many batches one has the scores of all labels, which the calibration is fitted to.
        batches: counts the batches.
    """

    rows: RowEncoder
    args: TrainingArguments
    max_new_tokens: int | None = None
    compute_metrics: Any = None
    preprocess_logits: Any = None
    with_logits: bool = False
    info: PromptInfo | None = None
    teaching: Teaching | None = None
    constants: Mapping[str, float] = field(default_factory=dict)
    calibrated_every: int = 1
    batches: Iterator[int] = field(default_factory=itertools.count)

    @property
    def encoder(self) -> PromptTokenizer | None:
        """Return the tokenizer of raw rows; None if the rows are token ids."""
        return self.rows.tokenizer

    def reads(self, data: Any) -> None:
        """Take note of the encoded data whose batches are to be scored, for a scorer that joins batches."""

    @property
    def ranks_labels(self) -> bool:
        """Tell whether rows are classified by ranking their labels."""
        return self.encoder is not None and self.encoder.template.is_classification

    def score(self, model: nn.Module, batch: dict[str, Any], loss_only: bool = False) -> tuple[RowResults, Tensor]:
        """Return the results of a batch's rows, and what they are compared with.

        The batch is from the collator, with `adapter_names` if the rows have several prompts. `loss_only` leaves out
        all but losses and token counts. There is no loss of the batch, because a mean of batch means would depend on
        the batch size. The second value is label indices [B] (-1: no label) if labels are ranked, otherwise the labels
        [B, T]. Raise PromptTuningError if there is a template and the batch has inputs other than text.
        """
        batch, taught = split_teachers(batch)
        label = batch.pop("label", None)
        labels = batch.setdefault("labels", torch.full_like(batch["input_ids"], IGNORED))
        if self.encoder is not None and not self.rows.sees and (others := beside_texts(batch)):
            raise PromptTuningError(
                f"the batches have {others[0]!r} beside texts, and labels are ranked and texts written by the text "
                "alone; leave it out, or train on rows of token ids without a template."
            )
        if label is not None and self.ranks_labels and not loss_only:
            return self._compared(self._ranked(model, batch, label), model, batch, taught), label
        predictions = LabelledLogits(*scoring.labelled_logits(model, batch))
        results = RowResults(*scoring.nll_of(predictions, len(labels)))
        self._compared(results, model, batch, taught, predictions)
        if not loss_only and self.encoder is None and (self.with_logits or self.compute_metrics is not None):
            results.logits = self._logits(model, batch)
        elif not loss_only and self.max_new_tokens is not None:
            results.generated_ids = self._generate(extract_model_from_parallel(model), batch)
        return results, labels

    def _compared(
        self,
        results: RowResults,
        model: nn.Module,
        batch: dict[str, Any],
        taught: list[dict[str, Any]],
        predictions: LabelledLogits | None = None,
    ) -> RowResults:
        """Return the results with what the teachers say of the rows, if there are teachers.

        `predictions` are those of the labelled tokens, if they are known.
        """
        if not taught or self.teaching is None:
            return results
        if self.teaching.is_over_labels and results.label_scores is not None:
            ids, is_encoder_decoder = self.encoder.label_token_ids, self.encoder.is_encoder_decoder
            scores = self.teaching.scores(model, taught, ids, is_encoder_decoder)
            compared = label_comparison(results.label_scores, scores)
        else:
            own = predictions or LabelledLogits(*scoring.labelled_logits(model, batch))
            compared = comparison(own, self.teaching.predictions(model, taught), len(batch["input_ids"]))
        results.kl, results.agreed, results.compared = compared
        return results

    @property
    def needs_all_scores(self) -> bool:
        """Tell whether somebody reads the scores of all labels of all rows."""
        over_labels = self.teaching is not None and self.teaching.is_over_labels
        return self.with_logits or self.compute_metrics is not None or over_labels

    def _ranked(self, model: nn.Module, batch: dict[str, Any], label: Tensor) -> RowResults:
        """Return the results of rows whose right labels are `label`, [B]; -1 for a row without one."""
        ids, search, nodes, sampled = self.encoder.label_token_ids, None, None, None
        calibrates = self.info is not None and next(self.batches) % self.calibrated_every == 0
        if not self.needs_all_scores and not calibrates:
            search = LabelSearch(required=label)
        output = scoring.search_labels(model, batch, ids, self.encoder.is_encoder_decoder, search)
        if not self.needs_all_scores:
            nodes = output.nodes if output.nodes is not None else torch.full_like(label, self.label_nodes)
            # A row of which a search computes all labels is an uncertain one, so whole batches are taken or none.
            sampled = (nodes == self.label_nodes).all().long().repeat(len(nodes))
        losses = scoring.label_losses(output.scores, label, ids)
        return RowResults(*losses, label_scores=output.scores, nodes=nodes, sampled=sampled)

    @cached_property
    def label_nodes(self) -> int:
        """The number of the labels' tokens that are computed behind a row if all are."""
        return Trie.of(self.encoder.label_token_ids).computed

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        logits = model(**batch).logits
        logits = logits[:, logits.shape[1] - batch["labels"].shape[1] :]  # without those of the prompt
        return logits if self.preprocess_logits is None else self.preprocess_logits(logits, batch["labels"])

    def _generate(self, model: Any, batch: dict[str, Any]) -> Tensor:
        # ZeRO-3 gathers a prompt only in `forward`.
        with model.whole_prompt():
            encoder = self.encoder
            return scoring.generate_within(model, batch, encoder.tokenizer, self.max_new_tokens, encoder.end_ids)

    def metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Return the metrics of all rows (`predictions` are `RowResults`), and those of the caller's function."""
        outputs, references = self.readable(prediction.predictions, prediction.label_ids)
        metrics = self.metrics_of(prediction.predictions, outputs, references, self.info)
        results = prediction.predictions
        if results.kl is not None:
            metrics |= comparison_metrics(results.kl, results.agreed, results.compared) | self.constants
        return metrics | self.callers_metrics(outputs, references, prediction)

    def readable(self, results: RowResults, references: np.ndarray) -> tuple[Any, Any]:
        """Return predictions and references as a metric compares them; None and None if there are only losses.

        They are label scores and label indices, texts and texts (None for a missing reference), or logits and labels.
        """
        if results.generated_ids is not None:
            return scoring.decode(results.generated_ids, self.encoder.tokenizer), self.reference_texts(references)
        outputs = results.label_scores if results.label_scores is not None else results.logits
        return (None, None) if outputs is None else (outputs, references)

    def reference_texts(self, labels: np.ndarray) -> list[str | None]:
        """Return the text of each row's last target, in labels [B, T]; None for a row without labels."""
        targets = [scoring.last_target(row) for row in labels]
        texts = scoring.decode(targets, self.encoder.tokenizer)
        return [text if target else None for text, target in zip(texts, targets, strict=True)]

    def metrics_of(
        self, results: RowResults, outputs: Any, references: Any, info: PromptInfo | None
    ) -> dict[str, float]:
        """Return the metrics of one prompt: loss and perplexity, and those of its labels or texts.

        `outputs` and `references` are as `readable` returns them. Record confusion matrix and calibration in `info`.
        """
        metrics = scoring.loss_metrics(results.nll, results.tokens)
        if results.label_scores is not None:
            if info is not None:
                template = self.encoder.template
                words = [template.label_words[label] for label in template.labels]
                info.confusion_matrix = scoring.confusion_counts(outputs.argmax(1), references, words)
                sample = slice(None) if results.sampled is None else results.sampled == 1
                info.calibration = fit_calibration(outputs[sample], references[sample])
            return metrics | scoring.classification_metrics(outputs, references) | self._node_metrics(results.nodes)
        return metrics if results.generated_ids is None else metrics | scoring.text_metrics(outputs, references)

    def _node_metrics(self, nodes: np.ndarray | None) -> dict[str, float]:
        """Return how many of the labels' tokens a row had computed, on average, and of how many; empty for all."""
        if nodes is None or (nodes == self.label_nodes).all():
            return {}
        return {"computed_label_nodes": float(nodes.mean()), "label_nodes": self.label_nodes}

    def labelled(self, references: Any) -> np.ndarray:
        """Return a mask of the rows that have a reference (`labelled_rows`), [N] bool."""
        return labelled_rows(references)

    def callers_metrics(self, outputs: Any, references: Any, prediction: EvalPrediction) -> dict[str, Any]:
        """Return the caller's metrics of the rows that have a reference; an empty dict if no row has one."""
        if self.compute_metrics is None or outputs is None:
            return {}
        rows = self.labelled(references)
        if not rows.any():
            return {}
        if self.encoder is None:
            rows[:] = True  # rows of token ids always have labels, even if all are -100
        included = {}
        if "inputs" in self.args.include_for_metrics:
            included["inputs"] = of_rows(prediction.inputs, rows)
        if "loss" in self.args.include_for_metrics:
            results = prediction.predictions
            included["losses"] = of_rows(mean_losses(results.nll, results.tokens), rows)
        outputs, references = of_rows(outputs, rows), of_rows(references, rows)
        metrics = self.compute_metrics(EvalPrediction(predictions=outputs, label_ids=references, **included))
        return plain_metrics(metrics, self.args.metric_for_best_model)


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

"""Evaluate prompts: rank labels, generate texts, and average losses over tokens.

The results do not depend on the batch size.
"""

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput

from ..data.encoding import encode_data
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..models.calibration import fit_calibration
from ..models.metric_direction import value_of
from ..models.recording import to_record
from ..models.scoring import (
    beside_texts,
    classification_metrics,
    confusion_matrix,
    decode,
    generate_within,
    label_nll,
    longest_target,
    loss_metrics,
    rank_labels,
    text_metrics,
)
from ..prompts.info import PromptInfo
from ..sharding import whole
from .callers_metrics import labelled_rows, mean_losses, of_rows, plain_metrics
from .row_order import RowOrderTrainer
from .token_rows import ColumnCheck, with_labels

logger = logging.getLogger(__name__)


class EvaluatingTrainer(RowOrderTrainer):
    """Trainer that evaluates and predicts; a base class of `PromptTuningTrainer`."""

    _encoder: PromptTokenizer | None  # None if the rows are token ids
    _extra_metrics: Any
    _limit: int | None  # maximum number of tokens in a row
    _vocabulary: int | None  # number of rows of the backbone's embedding
    _described: PromptInfo | None = None  # set while `evaluate` runs on the trainer's own data
    _predicting = False
    _preprocess: Any = None  # `preprocess_logits_for_metrics`

    _columns: ColumnCheck
    _alone = True  # whether only one prompt trains

    def _encoded(self, data: Any, name: str, require_target: bool) -> Any:
        self._columns(data, name, None if self._encoder is None else self._encoder.template)
        return encode_data(data, name, self._encoder, self._limit, require_target, self._vocabulary)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the evaluation data loader as `Trainer` does. A dataset of raw columns is tokenized."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._encoded(eval_dataset, "evaluation", require_target=False)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Return the test data loader as `Trainer` does.

        A dataset of raw columns is tokenized. Rows of token ids may have no labels.
        """
        test_dataset = test_dataset if self._encoder is not None else with_labels(test_dataset)
        return super().get_test_dataloader(self._encoded(test_dataset, "test", require_target=False))

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, tuple[Any, ...], Tensor]:
        """Return results per row, as (None, results, labels).

        The results start with the negative log-likelihood of the row's labels [B] and the number of labelled tokens
        [B]. Unless `prediction_loss_only` is set, one of these follows, for `_compute_metrics`:

        - label scores [B, L] (classification);
        - generated ids [B, T'] (free text, with `predict_with_generate`);
        - token logits [B, T, V] (rows of token ids, in `predict` or if `compute_metrics` was given).

        There is no batch loss, because a mean of batch means would depend on the batch size.

        Raises:
            PromptTuningError: with a template, the batch has inputs other than text.
        """
        inputs = self._prepare_inputs(inputs)
        gold = inputs.pop("label", None)
        labels = inputs.setdefault("labels", torch.full_like(inputs["input_ids"], IGNORED))
        if self._encoder is not None and (others := beside_texts(inputs)):
            raise PromptTuningError(
                f"the batches have {others[0]!r} beside texts, and labels are ranked and texts written by the text "
                "alone; leave it out, or train on rows of token ids without a template."
            )
        with torch.no_grad(), self.compute_loss_context_manager():
            if gold is not None and self._encoder is not None and not prediction_loss_only:
                ids, seq2seq = self._encoder.label_token_ids, self._encoder.is_encoder_decoder
                scores = rank_labels(model, inputs, ids, seq2seq)
                sizes = torch.tensor([len(words) for words in ids], device=scores.device)
                known, index = gold >= 0, gold.clamp(min=0)
                nll = torch.where(known, -scores.gather(1, index[:, None])[:, 0], 0.0)
                return None, (nll, sizes[index] * known, scores), gold
            found: tuple[Any, ...] = label_nll(model, inputs)
            if prediction_loss_only:
                return None, found, labels
            if self._encoder is None and (self._extra_metrics is not None or self._predicting):
                found += (self._logits(model, inputs),)
            elif self._encoder is not None and getattr(self.args, "predict_with_generate", True):
                found += (self._generated(model, inputs),)
        return None, found, labels

    def _logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Any:
        """Return the logits of the rows' own tokens [B, T, V], or what `preprocess_logits_for_metrics` returns."""
        logits = model(**inputs).logits
        logits = logits[:, logits.shape[1] - inputs["labels"].shape[1] :]
        return logits if self._preprocess is None else self._preprocess(logits, inputs["labels"])

    def _generated(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        unwrapped = self.accelerator.unwrap_model(model)
        # ZeRO-3 gathers a prompt only in `forward`.
        with whole(unwrapped.prompt_encoder[unwrapped.active_adapter].embedding):
            return generate_within(unwrapped, inputs, self.processing_class, self._generation_limit())

    def _generation_limit(self) -> int:
        data = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        return self._encoder.template.max_target_length or longest_target(data)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        nll, tokens, *detail = prediction.predictions
        metrics = loss_metrics(nll, tokens)
        if not detail:
            return metrics
        outputs, references = self._readable(detail, prediction.label_ids)
        if self._encoder is not None and self._encoder.template.is_classification:
            metrics |= classification_metrics(outputs, references)
            if self._described is not None:
                self._describe_scores(self._described, outputs, references)
        elif self._encoder is not None:
            metrics |= text_metrics(outputs, references)
        return metrics | self._callers_metrics(outputs, references, prediction)

    def _callers_metrics(self, outputs: Any, references: Any, prediction: EvalPrediction) -> dict[str, Any]:
        """Return the caller's metrics of the rows that have a reference; an empty dict if no row has one."""
        known = labelled_rows(references)
        if self._extra_metrics is None or not known.any():
            return {}
        if self._encoder is None:
            known[:] = True  # rows of token ids always have labels, even if all are -100
        given = {}
        if "inputs" in self.args.include_for_metrics:
            given["inputs"] = of_rows(prediction.inputs, known)
        if "loss" in self.args.include_for_metrics:
            given["losses"] = of_rows(mean_losses(*prediction.predictions[:2]), known)
        outputs, references = of_rows(outputs, known), of_rows(references, known)
        found = self._extra_metrics(EvalPrediction(predictions=outputs, label_ids=references, **given))
        return plain_metrics(found, self.args.metric_for_best_model)

    def _describe_scores(self, info: PromptInfo, scores: np.ndarray, references: np.ndarray) -> None:
        info.confusion_matrix = confusion_matrix(scores, references, self._encoder.template)
        info.calibration = fit_calibration(scores, references)

    def _readable(self, detail: list[np.ndarray], labels: np.ndarray) -> tuple[Any, Any]:
        """Return the predictions and references that a metric compares.

        They are label scores and label indices, texts and texts (None for a missing reference), or logits and labels.
        """
        if not detail:
            return None, None
        if self._encoder is None or self._encoder.template.is_classification:
            return detail[0], labels
        return decode(detail[0], self.processing_class), self._references(labels)

    def _references(self, labels: np.ndarray) -> list[str | None]:
        known = (labels != IGNORED).any(1)
        texts = decode(labels, self.processing_class)
        return [text if there else None for text, there in zip(texts, known, strict=True)]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, and record the metrics in the prompt.

        Only metrics of the trainer's own evaluation data under the prefix "eval" are recorded.

        Args:
            eval_dataset: default: the trainer's evaluation data.
            ignore_keys: as in `Trainer`.
            metric_key_prefix: as in `Trainer`.
        """
        info = (
            self.accelerator.unwrap_model(self.model).info if self._is_own(eval_dataset, metric_key_prefix) else None
        )
        several = isinstance(self.eval_dataset, dict)
        if info is not None and several:
            info.confusion_matrix, info.calibration = {}, {}  # they would describe only one of the data sets
        metrics = self._evaluated(None if several else info, eval_dataset, ignore_keys, metric_key_prefix)
        if info is not None:
            info.metrics = to_record(metrics)
        return metrics

    def _is_own(self, data: Any, prefix: str) -> bool:
        """Tell whether an evaluation uses the trainer's own evaluation data and the prefix "eval"."""
        return (data is None or data is self.eval_dataset) and prefix == "eval"

    def _evaluated(self, info: PromptInfo | None, *args: Any) -> dict[str, float]:
        """Evaluate as `Trainer.evaluate` does, and write confusion matrix and calibration into `info`.

        They are written before the callbacks run, so that callbacks can read them.
        """
        self._described = info
        try:
            return super().evaluate(*args)
        finally:
            self._described = None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Determine the best metric as `Trainer` does, and warn if it is NaN.

        Raises:
            PromptTuningError: the evaluation does not return the metric.
        """
        name = self.args.metric_for_best_model
        if name is not None and math.isnan(value := value_of(metrics, name)):
            logger.warning("At step %d %s is %s: it is not the best.", self.state.global_step, name, value)
        return super()._determine_best_metric(metrics, trial)

    def evaluate_untuned(self, eval_dataset: Any = None) -> dict[str, float]:
        """Return the metrics of the backbone without the prompt, named `untuned_accuracy` and so on.

        Metrics of the trainer's own data are recorded in the prompt.

        Args:
            eval_dataset: default: the trainer's evaluation data. For a dict of datasets, each one is evaluated, and
                the metrics are named `untuned_NAME_accuracy` and so on.
        """
        data = eval_dataset if eval_dataset is not None else self.eval_dataset
        by_name = {f"untuned_{name}": rows for name, rows in data.items()} if isinstance(data, dict) else {}
        metrics: dict[str, float] = {}
        for prefix, rows in (by_name or {"untuned": data}).items():
            metrics |= self._without_prompt(rows, prefix)
        if self._is_own(eval_dataset, "eval"):
            self.accelerator.unwrap_model(self.model).info.untuned_metrics = to_record(metrics)
        return metrics

    def _without_prompt(self, data: Any, prefix: str) -> dict[str, float]:
        # A data loader draws a seed. Fork the random state, so that this evaluation does not change the run.
        with self.accelerator.unwrap_model(self.model).disable_adapter(), torch.random.fork_rng(devices=[]):
            # Do not call `evaluate`: its callbacks would take these metrics for the prompt's.
            return super().predict(data, metric_key_prefix=prefix).metrics

    def evaluate_transfer(self, datasets: dict[str, Any]) -> dict[str, float]:
        """Evaluate the prompt on other domains, which it was not trained on, and record the metrics in the prompt.

        This measures zero-shot transfer (Lester et al. 2021, section 5): a prompt that has not overfitted to its own
        domain does well on another domain.

        Args:
            datasets: data sets by name; their rows have the columns of the prompt's template.

        Returns:
            All metrics, named `transfer_<name>_<metric>`.
        """
        info, found = self.accelerator.unwrap_model(self.model).info, {}
        for name, data in datasets.items():
            metrics, rows = self._transferred(name, data)
            info.transfer[name] = to_record(metrics) | {"rows": rows}
            found |= {f"transfer_{name}_{metric}": value for metric, value in metrics.items()}
        return found

    def _transferred(self, name: str, data: Any) -> tuple[dict[str, float], int]:
        """Return the metrics on a data set, without prefix, and its number of rows."""
        data, prefix = self._encoded(data, f"transfer ({name})", require_target=False), f"transfer_{name}_"
        # Do not call `evaluate`: its callbacks would take these metrics for the validation's.
        metrics = super().predict(data, metric_key_prefix=prefix[:-1]).metrics
        return {key.removeprefix(prefix): value for key, value in metrics.items()}, len(data)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as `Trainer` does; return a `PredictionOutput` in the order of the rows.

        - Classification: `predictions` are label scores [N, L], log-likelihoods in the order of `template.labels`.
          `label_ids` is -1 for rows without a label.
        - Free text: `predictions` are the generated texts, and `label_ids` the reference texts, None for rows without
          one.
        - Rows of token ids: `predictions` are the logits.
        """
        self._predicting = True
        try:
            output = super().predict(test_dataset, *args, **kwargs)
        finally:
            self._predicting = False
        outputs, references = self._readable(list(output.predictions[2:]), output.label_ids)
        return output._replace(predictions=outputs, label_ids=references)

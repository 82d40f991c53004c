"""A Trainer's evaluation: labels by rank, texts by generation, losses by token, whatever the batches were."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput

from .calibration import fit_calibration
from .describing import to_record
from .evaluation import (
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
from .prompt_info import PromptInfo
from .row_order import RowOrderTrainer
from .sharding import whole
from .tokenization import PromptTokenizer
from .training_data import encode_data


class EvaluatingTrainer(RowOrderTrainer):
    """The part of `PromptTuningTrainer` that evaluates and predicts."""

    _encoder: PromptTokenizer | None  # None for rows of token ids
    _extra_metrics: Any
    _limit: int | None  # of a row's tokens
    _vocabulary: int | None  # rows of the backbone's embedding
    _described: PromptInfo | None  # while `evaluate` runs on the prompt, not on other data or without it

    def _encoded(self, data: Any, name: str, require_target: bool) -> Any:
        return encode_data(data, name, self._encoder, self._limit, require_target, self._vocabulary)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in `Trainer`; a dataset of raw columns is tokenized."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._encoded(eval_dataset, "evaluation", require_target=False)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As in `Trainer`; a dataset of raw columns is tokenized."""
        return super().get_test_dataloader(self._encoded(test_dataset, "test", require_target=False))

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, tuple[Tensor, ...], Tensor]:
        """Per example: its labels' negative log-likelihood [B] and tokens [B], then what `_compute_metrics` needs.

        That is label scores [B, L] (classification), generated ids [B, T'] (free text), or token logits [B, T, V]
        (rows of token ids, where `compute_metrics` was given). There is no batch loss: a mean of batch means would
        depend on the batch size.
        """
        inputs = self._prepare_inputs(inputs)
        gold = inputs.pop("label", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            if gold is not None and self._encoder is not None:
                ids, seq2seq = self._encoder.label_token_ids, self._encoder.is_encoder_decoder
                scores = rank_labels(model, inputs, ids, seq2seq)
                sizes = torch.tensor([len(words) for words in ids], device=scores.device)
                known, index = gold >= 0, gold.clamp(min=0)
                nll = torch.where(known, -scores.gather(1, index[:, None])[:, 0], 0.0)
                return None, (nll, sizes[index] * known, scores), gold
            nll, tokens = label_nll(model, inputs)
            if self._encoder is not None and getattr(self.args, "predict_with_generate", True):
                return None, (nll, tokens, self._generated(model, inputs)), inputs["labels"]
            if self._encoder is None and self._extra_metrics is not None:
                logits = model(**inputs).logits
                return None, (nll, tokens, logits[:, logits.shape[1] - inputs["labels"].shape[1] :]), inputs["labels"]
        return None, (nll, tokens), inputs["labels"]

    def _generated(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        unwrapped, limit = self.accelerator.unwrap_model(model), self._generation_limit()
        room = None if self._encoder.is_encoder_decoder else self._limit
        # ZeRO-3 gathers a prompt for `forward` alone.
        with whole(unwrapped.prompt_encoder[unwrapped.active_adapter].embedding):
            return generate_within(unwrapped, inputs, self.processing_class, limit, room)

    def _generation_limit(self) -> int:
        data = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        return self._encoder.template.max_target_length or longest_target(data)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        nll, tokens, *detail = prediction.predictions
        metrics = loss_metrics(nll, tokens)
        outputs, references = self._readable(detail, prediction.label_ids)
        if self._encoder is not None and self._encoder.template.is_classification:
            metrics |= classification_metrics(outputs, references)
            if self._described is not None:
                self._describe_scores(self._described, outputs, references)
        elif self._encoder is not None and detail:
            metrics |= text_metrics(outputs, references)
        if self._extra_metrics is not None:
            metrics |= self._extra_metrics(EvalPrediction(predictions=outputs, label_ids=references))
        return metrics

    def _describe_scores(self, info: PromptInfo, scores: np.ndarray, references: np.ndarray) -> None:
        info.confusion_matrix = confusion_matrix(scores, references, self._encoder.template)
        info.calibration = fit_calibration(scores, references)

    def _readable(self, detail: list[np.ndarray], labels: np.ndarray) -> tuple[Any, Any]:
        """What a metric compares: scores and indices, texts and texts, or logits and labels."""
        if not detail:
            return None, labels
        if self._encoder is None or self._encoder.template.is_classification:
            return detail[0], labels
        return decode(detail[0], self.processing_class), decode(labels, self.processing_class)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `Trainer`; the prompt remembers the metrics of its last evaluation."""
        # Filled while it evaluates, so that callbacks see it.
        self._described = info = self.accelerator.unwrap_model(self.model).info
        info.confusion_matrix, info.calibration = {}, {}
        metrics = super().evaluate(*args, **kwargs)
        info.metrics = to_record(metrics)
        return metrics

    def evaluate_untuned(self, eval_dataset: Any = None) -> dict[str, float]:
        """The metrics of the backbone without the prompt; the prompt remembers them beside its own.

        Args:
            eval_dataset: default the trainer's; of a dict of datasets, the first.
        """
        data = eval_dataset if eval_dataset is not None else self.eval_dataset
        if isinstance(data, dict):
            data = next(iter(data.values()))
        model = self.accelerator.unwrap_model(self.model)
        self._described = None
        # A data loader draws a seed; forked, so that the run is the same whether this was asked or not.
        with model.disable_adapter(), torch.random.fork_rng(devices=[]):
            # Not `evaluate`, whose callbacks would take these metrics for the prompt's.
            metrics = super().predict(data, metric_key_prefix="untuned").metrics
        model.info.untuned_metrics = to_record(metrics)
        return metrics

    def evaluate_transfer(self, datasets: dict[str, Any]) -> dict[str, float]:
        """The prompt's metrics on data of other domains, which it was not trained on; the prompt remembers them.

        Zero-shot transfer (Lester et al. 2021, section 5): a prompt that has not fitted itself to its own domain does
        well on another one.

        Args:
            datasets: by name; rows that the prompt's own template fits.

        Returns:
            All of them, named `transfer_<name>_<metric>`.
        """
        info, found = self.accelerator.unwrap_model(self.model).info, {}
        for name, data in datasets.items():
            prefix = f"transfer_{name}"
            data = self._encoded(data, f"transfer ({name})", require_target=False)
            self._described = None  # what the validation says of it stays
            # Not `evaluate`, whose callbacks would take these metrics for the validation's.
            metrics = super().predict(data, metric_key_prefix=prefix).metrics
            known = {key.removeprefix(f"{prefix}_"): value for key, value in to_record(metrics).items()}
            info.transfer[name] = known | {"rows": len(data)}
            found |= metrics
        return found

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As in `Trainer`. Predictions are label scores [N, L] (log-likelihoods, in the order of `template.labels`;
        `label_ids` is -1 for rows without a label), or the generated texts (with the texts of the references)."""
        self._described = None
        output = super().predict(test_dataset, *args, **kwargs)
        outputs, references = self._readable(list(output.predictions[2:]), output.label_ids)
        return output._replace(predictions=outputs, label_ids=references)

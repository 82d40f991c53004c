"""A Trainer that tunes a soft prompt. All it adds to transformers' is told in the names of its methods."""

import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedModel
from transformers.trainer_utils import PredictionOutput

from .backbone import max_positions
from .collator import DataCollatorForPromptTuning
from .config import PromptTuningArguments, PromptTuningConfig
from .errors import PromptTuningError
from .evaluation import (
    classification_metrics,
    confusion_matrix,
    decode,
    generate_targets,
    label_nll,
    longest_target,
    loss_history,
    loss_metrics,
    rank_labels,
    text_metrics,
)
from .inspection import nearest_words
from .modeling import get_prompt_tuning_model
from .prompt_info import PromptInfo
from .publishing import PublishingTrainer
from .soft_prompts import SoftPrompts
from .template import PromptTemplate
from .tokenization import PromptTokenizer

RECORDED = (
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
)
"""The hyperparameters that a prompt's card tells."""


class PromptTuningTrainer(PublishingTrainer):
    """Trains a soft prompt on raw columns (with a template) or on rows of token ids.

    Args:
        model: from `get_prompt_tuning_model`, or a plain backbone with `prompt_config`.
        args: `PromptTuningArguments`, or any `TrainingArguments`.
        data_collator: default `DataCollatorForPromptTuning`.
        train_dataset, eval_dataset: raw columns where there is a template, else rows of `input_ids` and `labels`.
        processing_class: the tokenizer.
        template: how a row becomes text; default the model's own.
        prompt_config: wraps a plain backbone.
        compute_metrics: further metrics, from an `EvalPrediction` of label scores [N, L] and label indices
            (classification), of texts (generation), or of token logits [N, T, V] and labels (rows of token ids).
        **kwargs: as in `transformers.Trainer`.

    Raises:
        PromptTuningError: whatever can be known to be wrong with model, template or data before training.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: PromptTuningArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        template: PromptTemplate | None = None,
        prompt_config: PromptTuningConfig | None = None,
        compute_metrics: Any = None,
        callbacks: list | None = None,
        **kwargs: Any,
    ):
        args = args if args is not None else PromptTuningArguments(output_dir="trainer_output")
        if processing_class is None and (template is not None or data_collator is None):
            raise PromptTuningError("processing_class is not given; give the backbone's tokenizer.")
        if template is not None:
            template = template.with_label_words(_columns_of(train_dataset), _columns_of(eval_dataset))
        model = self._wrapped(model, prompt_config, processing_class, template)
        self._encoder: PromptTokenizer | None = None
        template = template if template is not None else getattr(getattr(model, "info", None), "template", None)
        if template is not None and processing_class is not None:
            self._encoder = PromptTokenizer(template, processing_class, model.config.is_encoder_decoder)
            if isinstance(model, SoftPrompts):
                model.info.template = template
        self._extra_metrics = compute_metrics
        self._confusion: dict[str, Any] = {}
        self._limit = self._room(model)
        callbacks = list(callbacks or [])
        if getattr(args, "early_stopping_patience", None):
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or DataCollatorForPromptTuning(processing_class),
            train_dataset=self._encoded(train_dataset, "training", require_target=True),
            eval_dataset=self._encoded(eval_dataset, "evaluation", require_target=False),
            processing_class=processing_class,
            compute_metrics=self._compute_metrics,
            callbacks=callbacks,
            **kwargs,
        )
        if hasattr(self.model, "use_layout"):
            names = {"name": "layout", "max_packed_tokens": "max_packed_tokens", "check": "check_layout"}
            self.model.use_layout(**{k: getattr(args, name) for k, name in names.items() if hasattr(args, name)})
        # Our `forward` divides by `num_items_in_batch`, whatever the backbone's takes; and the first token's label
        # counts, because the prompt's last vector predicts it. Smoothing is done where the logits are.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.label_smoother = None
        self.label_names = ["labels"]
        if self._encoder is not None:
            # Not for rows without ids of their own (a sampler may want `length`): only what the collator reads stays.
            self._signature_columns = ["input_ids", "attention_mask", "labels", "label"]
            if isinstance(self.train_dataset, Dataset) and isinstance(model, SoftPrompts):
                # Here and not with each save, so that whoever may not show a row can take it out.
                model.info.example = self._encoder.readable(self.train_dataset[0])

    @staticmethod
    def _wrapped(model: Any, config: PromptTuningConfig | None, tokenizer: Any, template: Any) -> Any:
        """The model with its prompt; a plain backbone gets the one that `prompt_config` describes."""
        if model is None or isinstance(model, SoftPrompts):
            return model
        if config is None or not isinstance(model, PreTrainedModel):
            raise PromptTuningError(
                f"model is a {type(model).__name__}; give one from get_prompt_tuning_model, "
                "or a transformers backbone together with prompt_config."
            )
        return get_prompt_tuning_model(model, config, tokenizer=tokenizer, template=template)

    @staticmethod
    def _room(model: Any) -> int | None:
        """How many text tokens fit behind the prompt."""
        limit = max_positions(model.get_base_model()) if isinstance(model, SoftPrompts) else None
        return None if limit is None else limit - len(model.prompt)

    def _encoded(self, data: Any, name: str, require_target: bool) -> Any:
        """Token ids of a dataset (or of each in a dict of datasets); rows of token ids pass as they are."""
        if data is None:
            return None
        if isinstance(data, dict):
            return {key: self._encoded(value, key, require_target) for key, value in data.items()}
        if isinstance(data, list):
            data = Dataset.from_list(data)
        if hasattr(data, "__len__") and len(data) == 0:
            raise PromptTuningError(f"the {name} data has no rows; give it some, or leave it out.")
        if self._encoder is not None and "input_ids" not in (getattr(data, "column_names", None) or ()):
            data = self._encoder.encode_dataset(data, name, require_target)
        if isinstance(data, Dataset):
            self._check_rows(data, name)
        return data

    def _check_rows(self, data: Dataset, name: str) -> None:
        if "input_ids" not in data.column_names:
            raise PromptTuningError(
                f"the {name} data has the columns {', '.join(map(repr, data.column_names))} and no 'input_ids'. "
                "Give a template that makes text of the columns, or rows of token ids."
            )
        if self._limit is None:
            return
        lengths = data["length"] if "length" in data.column_names else [len(ids) for ids in data["input_ids"]]
        longest = int(np.argmax(lengths))
        if lengths[longest] > self._limit:
            raise PromptTuningError(
                f"row {longest + 1} of the {name} data has {lengths[longest]} tokens, and behind the prompt the "
                f"backbone has positions for {self._limit}. Lower max_source_length or num_virtual_tokens."
            )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in `Trainer`; a dataset of raw columns is tokenized."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._encoded(eval_dataset, "evaluation", require_target=False)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As in `Trainer`; a dataset of raw columns is tokenized."""
        return super().get_test_dataloader(self._encoded(test_dataset, "test", require_target=False))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`, asking the model for the labelled positions only."""
        inputs = {name: value for name, value in inputs.items() if name != "label"}
        inputs |= {"only_labelled": True, "label_smoothing": self.args.label_smoothing_factor}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As in `Trainer`; a loss that is not finite ends the run before it can reach the prompt.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not math.isfinite(loss.item()):
            last = self.state.best_model_checkpoint or self.args.output_dir
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; the run ends here and its saved "
                f"checkpoints (in {last}) are as they were. Lower learning_rate, or look at this batch's data."
            )
        return loss

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
        data = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        limit = self._encoder.template.max_target_length or longest_target(data)
        return generate_targets(self.accelerator.unwrap_model(model), inputs, self.processing_class, limit)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        nll, tokens, *detail = prediction.predictions
        metrics = loss_metrics(nll, tokens)
        outputs, references = self._readable(detail, prediction.label_ids)
        self._confusion = {}
        if self._encoder is not None and self._encoder.template.is_classification:
            metrics |= classification_metrics(outputs, references)
            self._confusion = confusion_matrix(outputs, references, self._encoder.template)
        elif self._encoder is not None and detail:
            metrics |= text_metrics(outputs, references)
        if self._extra_metrics is not None:
            metrics |= self._extra_metrics(EvalPrediction(predictions=outputs, label_ids=references))
        return metrics

    def _readable(self, detail: list[np.ndarray], labels: np.ndarray) -> tuple[Any, Any]:
        """What a metric compares: scores and indices, texts and texts, or logits and labels."""
        if not detail:
            return None, labels
        if self._encoder is None or self._encoder.template.is_classification:
            return detail[0], labels
        return decode(detail[0], self.processing_class), decode(labels, self.processing_class)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `Trainer`; the prompt remembers the metrics of its last evaluation."""
        metrics = super().evaluate(*args, **kwargs)
        info = self.accelerator.unwrap_model(self.model).info
        info.metrics, info.confusion_matrix = _to_record(metrics), self._confusion
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
        # A data loader draws a seed; forked, so that the run is the same whether this was asked or not.
        with model.disable_adapter(), torch.random.fork_rng(devices=[]):
            # Not `evaluate`, whose callbacks would take these metrics for the prompt's.
            metrics = super().predict(data, metric_key_prefix="untuned").metrics
        model.info.untuned_metrics = _to_record(metrics)
        return metrics

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As in `Trainer`. Predictions are label scores [N, L] (log-likelihoods, in the order of `template.labels`;
        `label_ids` is -1 for rows without a label), or the generated texts (with the texts of the references)."""
        output = super().predict(test_dataset, *args, **kwargs)
        outputs, references = self._readable(list(output.predictions[2:]), output.label_ids)
        return output._replace(predictions=outputs, label_ids=references)

    def _describe(self, info: PromptInfo) -> None:
        """Writes down in the prompt what this run knows of it."""
        values = {name: getattr(self.args, name) for name in RECORDED}
        info.training = {name: getattr(value, "value", value) for name, value in values.items()}
        for name, data in (("training_rows", self.train_dataset), ("evaluation_rows", self.eval_dataset)):
            if isinstance(data, Dataset):
                info.data[name] = len(data)
        info.history = loss_history(self.state.log_history)
        model = self.accelerator.unwrap_model(self.model)
        if self.processing_class is not None:
            info.nearest_words = nearest_words(model.prompt, model.word_embeddings, self.processing_class)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Not super()'s, which also pickles the arguments and copies the tokenizer: a prompt's folder holds neither.
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            self._describe(model.info)
            folder = output_dir or self.args.output_dir
            model.save_pretrained(folder, state_dict=state_dict, repo_id=self.hub_model_id)


def _to_record(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without those of the machine's speed."""
    left_out = ("_runtime", "_per_second", "_preparation_time", "epoch")
    return {name: value for name, value in metrics.items() if not name.endswith(left_out)}


def _columns_of(data: Any) -> Dataset | None:
    """The data as a Dataset whose label column can be read, where that is possible."""
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    if isinstance(data, list) and data:
        data = Dataset.from_list(data)
    return data if isinstance(data, Dataset) and not isinstance(data, IterableDataset) else None

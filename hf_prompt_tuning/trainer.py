"""A Trainer that tunes a soft prompt. All it adds to transformers' is told in the names of its methods."""

import math
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel

from .backbone import max_positions
from .collator import DataCollatorForPromptTuning
from .config import PromptTuningArguments, PromptTuningConfig
from .errors import PromptTuningError
from .evaluating import EvaluatingTrainer
from .evaluation import loss_history
from .inspection import nearest_words
from .modeling import get_prompt_tuning_model
from .prompt_info import PromptInfo
from .sharding import whole
from .soft_prompts import SoftPrompts
from .template import PromptTemplate
from .tokenization import PromptTokenizer
from .training_data import as_dataset

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


class PromptTuningTrainer(EvaluatingTrainer):
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
            template = template.with_label_words(as_dataset(train_dataset), as_dataset(eval_dataset))
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
        model = self.accelerator.unwrap_model(self.model)
        # On every process, because what is sharded is brought together: the embedding, for the nearest words, and with
        # ZeRO-3 the prompt.
        with whole(model.prompt_encoder[model.active_adapter].embedding):
            self._describe(model.info)
            if self.args.should_save:
                model.save_pretrained(output_dir or self.args.output_dir, repo_id=self.hub_model_id)

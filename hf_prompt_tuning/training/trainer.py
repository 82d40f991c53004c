"""Trainer for soft prompts."""

from dataclasses import replace
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..data.collator import DataCollatorForPromptTuning, beside_texts
from ..data.encoding import text_rows, with_label_words
from ..data.template import PromptTemplate
from ..data.token_ids import vocabulary_of
from ..errors import PromptTuningError
from ..extras import check_installed
from ..layouts import check_layout_name
from ..layouts.base import IGNORED
from ..models.create import with_prompt
from ..models.metric_direction import check_direction
from ..models.recording import describe_run
from ..models.soft_prompts import SoftPrompts
from ..prompts.config import PromptTuningConfig
from ..prompts.info import PromptInfo
from ..sharding import whole
from ..training.arguments import PromptTuningArguments
from .callbacks import DivergenceCallback
from .sampling import SeededLengthGroupedSampler
from .search import SearchingTrainer
from .token_rows import ColumnCheck, RowEncoder
from .trainer_checks import check_devices, check_options, check_together, warn_of_template


class PromptTuningTrainer(SearchingTrainer):
    """Train a soft prompt on raw columns (with a template) or on rows of token ids.

    Args:
        model: a model from `get_prompt_tuning_model`, or a plain backbone with `prompt_config`.
        args: `PromptTuningArguments`, or any `TrainingArguments`.
        data_collator: default: `DataCollatorForPromptTuning`.
        train_dataset: raw columns if there is a template, otherwise rows of `input_ids` and `labels`.
        eval_dataset: the same as `train_dataset`, or a dict of such data sets.
        processing_class: the tokenizer.
        template: turns a row into text; default: the model's template.
        prompt_config: the prompt to add to a plain backbone.
        callbacks: as in `transformers.Trainer`. A `DivergenceCallback` is added if there is none.
        compute_metrics: function that returns additional metrics. It receives an `EvalPrediction` of label scores
            [N, L] and label indices (classification), of texts (generation), or of token logits [N, T, V] and labels
            (rows of token ids).
        model_init: function that replaces `model` and returns a model from `get_prompt_tuning_model` for each training
            (see `hyperparameter_search`).
        **kwargs: as in `transformers.Trainer`.

    Raises:
        PromptTuningError: the model, the template, the data or an argument is invalid.
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
        model_init: Any = None,
        **kwargs: Any,
    ):
        check_installed("training")
        args = args if args is not None else PromptTuningArguments(output_dir="trainer_output")
        check_together(model, model_init, prompt_config, args, callbacks or ())
        if train_dataset is not None and not hasattr(train_dataset, "__len__") and args.max_steps <= 0:
            raise PromptTuningError(
                f"the training data is a stream and max_steps is {args.max_steps}; a stream has no length to count "
                "epochs by: give max_steps, 1 or more."
            )
        check_direction(args)
        self.model_init = model_init
        if model_init is not None:
            model = super().call_model_init()
        check_devices(model, args)
        template = self._made_by(template, model, processing_class, train_dataset, eval_dataset)
        check_options(args, kwargs, compute_metrics, template)
        self._preprocess = kwargs.pop("preprocess_logits_for_metrics", None)
        if prompt_config is not None:
            set_seed(args.seed)  # before the prompt's vectors are drawn
        model = self._wrapped(model, prompt_config, processing_class, template)
        self._extra_metrics = compute_metrics
        self._rows = RowEncoder(
            None if template is None else model.row_encoder(processing_class, template),
            self._room(model),
            vocabulary_of(model),
            ColumnCheck.of_run(model.get_base_model(), args, data_collator, self._alone),
        )
        callbacks = list(callbacks or [])
        if getattr(args, "early_stopping_patience", None):
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        kinds = [callback if isinstance(callback, type) else type(callback) for callback in callbacks]
        if not any(issubclass(kind, DivergenceCallback) for kind in kinds):
            callbacks.append(DivergenceCallback())
        train_dataset = self._rows(train_dataset, "training", require_target=True)
        eval_dataset = self._rows(eval_dataset, "evaluation", require_target=False)
        check_layout_name(getattr(args, "layout", "auto"))
        if isinstance(model, SoftPrompts) and not model.is_frozen:
            model.freeze_backbone()  # only after all checks, so that an error leaves the model unchanged
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or DataCollatorForPromptTuning(processing_class),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._compute_metrics,
            callbacks=callbacks,
            **kwargs,
        )
        # Do not pass it to super(), which would call it again.
        self.model_init = model_init
        # Our `forward` divides by `num_items_in_batch`, whether or not the backbone's does. The label of the first
        # token counts, because the prompt's last vector predicts it. `forward` also smooths the labels.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.label_smoother = None
        self.label_names = ["labels"]
        if self._rows.tokenizer is not None:
            # Keep only the columns that the collator reads. Rows of token ids keep more (a sampler may need `length`).
            self._signature_columns = ["input_ids", "attention_mask", "labels", "label"]
        self._introduced(self.model)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a model as `Trainer` does, set its template, and check that the data fits behind its prompt.

        Raises:
            PromptTuningError: `model_init` does not return a prompt-tuning model, or a row is too long for its prompt.
        """
        model = self._introduced(self._wrapped(super().call_model_init(trial), None, None, None))
        self._rows = replace(self._rows, limit=self._room(model), vocabulary=vocabulary_of(model))
        for name, data in (("training", self.train_dataset), ("evaluation", self.eval_dataset)):
            self._rows(data, name, require_target=False)
        return model

    def _introduced(self, model: nn.Module) -> nn.Module:
        if hasattr(model, "use_layout"):
            names = {"name": "layout", "max_packed_tokens": "max_packed_tokens", "check": "check_layout"}
            model.use_layout(**{k: getattr(self.args, name) for k, name in names.items() if hasattr(self.args, name)})
        if self._rows.tokenizer is not None and isinstance(model, SoftPrompts):
            model.info.template = self._rows.tokenizer.template
            if isinstance(self.train_dataset, Dataset):
                # Set here and not in each save, so that a user who may not publish a row can remove it.
                model.info.example = self._rows.tokenizer.readable(self.train_dataset[0])
        return model

    @staticmethod
    def _made_by(template: Any, model: Any, tokenizer: Any, train: Any, evaluation: Any) -> PromptTemplate | None:
        """Return the template for the data: the given one, or the prompt's; None if all data are token ids.

        Raises:
            PromptTuningError: the data is text and there is no tokenizer.
        """
        own = model.info.template if isinstance(model, SoftPrompts) else None
        warn_of_template(own, template)
        known = template if template is not None else own
        if known is None or tokenizer is not None:
            return with_label_words(known, train, evaluation)
        data = [rows for rows in (train, evaluation) if rows is not None]
        if template is not None or not data or any(text_rows(rows, known) is not None for rows in data):
            raise PromptTuningError("processing_class is not given; give the backbone's tokenizer.")
        return None

    @staticmethod
    def _wrapped(model: Any, config: PromptTuningConfig | None, tokenizer: Any, template: Any) -> Any:
        """Return the model with its prompt. A plain backbone gets a prompt from `prompt_config`."""
        if model is None or isinstance(model, SoftPrompts):
            return model
        if config is None:
            raise PromptTuningError(
                f"model is a {type(model).__name__}; give one from get_prompt_tuning_model, "
                "or a transformers backbone together with prompt_config."
            )
        return with_prompt(model, config, tokenizer, template, "default", frozen=False)

    @staticmethod
    def _room(model: Any) -> int | None:
        """Return how many text tokens fit behind the prompt; None if there is no limit."""
        return model.room() if isinstance(model, SoftPrompts) else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            size = sampler.batch_size * self.args.world_size
            sampler = SeededLengthGroupedSampler(size, sampler.lengths, seed)
        return sampler

    def set_initial_training_values(self, args: PromptTuningArguments, dataloader: Any) -> tuple:
        """Return the values as `Trainer` does, but run no step with `max_steps=0`, where `Trainer` runs one."""
        num_train_epochs, *values = super().set_initial_training_values(args, dataloader)
        return (0 if args.max_steps == 0 else num_train_epochs, *values)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as `Trainer` does. For rows of text, ask the model only for the labelled positions."""
        inputs = {name: value for name, value in inputs.items() if name != "label"}
        if not beside_texts(inputs):
            inputs["only_labelled"] = True
        elif not self.accelerator.unwrap_model(model).config.is_encoder_decoder and "labels" in inputs:
            # One position wider than the text, because the label of the first token counts.
            inputs["shift_labels"] = nn.functional.pad(inputs.pop("labels"), (0, 1), value=IGNORED)
        inputs["label_smoothing"] = self.args.label_smoothing_factor
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _describe(self, info: PromptInfo) -> None:
        """Record this run's arguments, results and data in the prompt."""
        describe_run(self.accelerator.unwrap_model(self.model), self.args, self.state, self.processing_class)
        for name, data in (("training_rows", self.train_dataset), ("evaluation_rows", self.eval_dataset)):
            if isinstance(data, Dataset):
                info.data[name] = len(data)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Do not call super(), which also pickles the arguments and copies the tokenizer. A prompt's folder holds
        # neither.
        model = self.accelerator.unwrap_model(self.model)
        # Run on every process, because sharded weights are gathered: the embedding, for the nearest words, and the
        # prompt (ZeRO-3).
        with whole(model.prompt_encoder[model.active_adapter].embedding):
            self._describe(model.info)
            if self.args.should_save:
                folder = output_dir or self.args.output_dir
                model.save_pretrained(folder, repo_id=self._card_repo_id, card=not self._unfinished)

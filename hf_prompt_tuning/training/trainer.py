"""Trainer for soft prompts."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import CommitInfo
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer
from transformers.trainer_utils import BestRun, TrainOutput

from ..data.answer_collator import IN_CONTEXT
from ..data.collator import TAUGHT_ROWS, beside_texts, split_teachers
from ..data.encoded_rows import count_rows
from ..data.encoding import vocabulary_of
from ..data.template import PromptTemplate
from ..extras import check_installed
from ..layouts.base import IGNORED
from ..models.classifiers import QUESTION_ANS
from ..models.recording import describe_run
from ..models.soft_prompts import SoftPrompts
from ..prompts.config import PromptTuningConfig
from ..prompts.ensemble_info import ENSEMBLE_FILE
from ..prompts.plots import CURVES_FILE, FIELD_FILE
from ..prompts.repository_files import PROMPT_FILES
from . import search, setup
from .answer_rows import AnswerRows
from .arguments import PromptTuningArguments
from .checkpointing import CheckpointMixin
from .evaluation import EvaluationMixin
from .head_loss import head_loss
from .head_optimizer import head_rate, move_head
from .head_rows import HeadRows
from .hooks import check_hooks
from .pictures import tokenizer_of
from .publishing import Publisher
from .push_arguments import destination
from .teacher import Teacher
from .teacher_rows import template_of_student
from .teaching import teaching_of
from .token_rows import ColumnCheck, RowEncoder

check_hooks()


class PromptTuningTrainer(EvaluationMixin, CheckpointMixin, Trainer):
    """Train a soft prompt on raw columns (with a template) or on rows of token ids.

    Args:
        model: a model from `get_prompt_tuning_model`, or a plain backbone with `prompt_config`.
        args: `PromptTuningArguments`, or any `TrainingArguments`.
        data_collator: default: `DataCollatorForPromptTuning`.
        train_dataset: raw columns if there is a template, otherwise rows of `input_ids` and `labels`.
        eval_dataset: the same as `train_dataset`, or a dict of such data sets.
        processing_class: the tokenizer. Of a backbone that sees, its processor also reads the pictures of rows; the
            trainer's `processing_class` is then the processor's tokenizer.
        template: turns a row into text; default: the model's template. A `ClassTemplate`, `TagTemplate` or
            `AnswerTemplate` if the backbone has such a head.
        prompt_config: the prompt to add to a plain backbone.
        callbacks: as in `transformers.Trainer`. A `DivergenceCallback` is added if there is none.
        compute_metrics: returns additional metrics of an `EvalPrediction` of label scores [N, L] and label indices
            (classification), of texts (generation), or of token logits [N, T, V] and labels (rows of token ids).
        teacher: what the backbone stands behind as a teacher, whose predictions the prompt learns; a list of several
            teachers' mean.
        model_init: in place of `model`: returns a model from `get_prompt_tuning_model` for each training (see
            `hyperparameter_search`).
        **kwargs: as in `transformers.Trainer`.

    Raises:
        PromptTuningError: the model, the template, the data or an argument is invalid.
    """

    finds_settings = False
    """Whether it trains the recipe auto."""

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
        teacher: Teacher | Sequence[Teacher] | None = None,
        **kwargs: Any,
    ):
        check_installed("training")
        setup.check_kinds(train_dataset, eval_dataset)
        args = args if args is not None else PromptTuningArguments(output_dir="trainer_output")
        setup.check_recipe(args, self)
        setup.check_together(model, model_init, prompt_config, args, callbacks or (), train_dataset, kwargs)
        self.model_init = model_init
        model = super().call_model_init() if model_init is not None else model
        setup.check_model(model, args, teacher)
        processor, processing_class = processing_class, tokenizer_of(processing_class, teacher, train_dataset, args)
        template = setup.choose_template(template, model, prompt_config, processor, train_dataset, eval_dataset)
        setup.check_options(args, kwargs, compute_metrics, template)
        model = setup.prompt_model(model, prompt_config, processing_class, template, args, train_dataset, teacher)
        template = template_of_student(teacher, template, model.active_peft_config.prompt_position, processing_class)
        columns = ColumnCheck.of_run(model.get_base_model(), args, data_collator, alone=True)
        self.teaching = teaching_of(teacher, model, args, processing_class, template, data_collator)
        rows, *data = self.encode_data(model, template, processor, columns, train_dataset, eval_dataset)
        self.head_loss, self.publisher = head_loss(setup.head_task(model), rows, args, data[0]), Publisher(self)
        if not model.is_frozen:
            model.freeze_backbone()  # only after all checks, so that an error leaves the model unchanged
        super().__init__(
            rows=rows,
            model=model,
            args=args,
            data_collator=data_collator or setup.collator(model, processor),
            train_dataset=data[0],
            eval_dataset=data[1],
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=setup.all_callbacks(callbacks, args),
            **kwargs,
        )
        setup.leave_loss_to_the_model(self)
        self.model_init = model_init  # not passed to super(), which would call it again
        setup.warn_of_starts(args, self._adopt(self.model), self.trained_prompts)

    def encode_data(
        self, model: SoftPrompts, template: Any, tokenizer: Any, columns: ColumnCheck, train: Any, evaluation: Any
    ) -> tuple[RowEncoder, Any, Any]:
        """Return what encodes the prompt's rows, and the training and evaluation data as token ids."""
        if (task := setup.head_task(model)) is not None:
            kind = AnswerRows if task == QUESTION_ANS else HeadRows
            rows = kind.of_head(model, tokenizer, template, columns)
        else:
            rows = replace(RowEncoder.behind(model, tokenizer, template, columns), teaching=self.teaching)
        own = rows if self.teaching is None else self.teaching.encoder_of_own_rows(rows)
        train = own(train, "training", require_target=self.teaching is None or self.teaching.needs_targets)
        evaluation = own(evaluation, "evaluation", require_target=False, may_be_several=True)
        if self.teaching is not None:
            self.teaching.find_contexts(train, evaluation)
        return rows, train, evaluation

    def _adopt(self, model: SoftPrompts) -> SoftPrompts:
        """Give a model the trainer's layout, template and example row, and give its rows the room that it has."""
        if not model.config.is_encoder_decoder:
            names = {"name": "layout", "max_packed_tokens": "max_packed_tokens", "check": "check_layout"}
            model.use_layout(**{k: getattr(self.args, name) for k, name in names.items() if hasattr(self.args, name)})
        limits = {"limit": model.room(), "vocabulary": vocabulary_of(model), "head": model.active_peft_config.head}
        self.rows = replace(self.rows, **limits)
        self.rows.describe(model.info, self.train_dataset)
        if self.teaching is not None:
            self.teaching.attach(model)
            self.teaching.write_targets(self)
            self._known_baselines = {}  # they depend on the prompt's length
        return model

    def call_model_init(self, trial: Any = None) -> SoftPrompts:
        """Make a model as `Trainer` does, set its template, and check that the data fits behind its prompt.

        Raise PromptTuningError if it does not, or `model_init` returns no prompt-tuning model.
        """
        model = self._adopt(setup.prompt_model(super().call_model_init(trial)))
        for name, data in (("training", self.train_dataset), ("evaluation", self.eval_dataset)):
            self.rows(data, name, require_target=False, may_be_several=True)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train as `Trainer` does, and resume exactly.

        A resumed run ends with the same prompt, bit for bit, as a run that was never interrupted.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the newest complete one in `output_dir`. If there
                is none, training starts from the beginning and logs a warning.
            trial, ignore_keys_for_eval: as in `Trainer`. A trial of a search saves its prompt (some kilobytes) in
                `run-<number>`.

        Raises:
            PromptTuningError: the checkpoint folder is missing or damaged, the prompt was loaded without
                `is_trainable=True`, or the checkpoint was saved with another optimizer, schedule or precision.
            CheckpointSaveError: a checkpoint could not be written.
            TrainingInterrupted: SIGTERM or SIGINT arrived with `save_on_signal` on; the run is saved.
        """
        if self.model is not None:  # otherwise `model_init` makes the model later
            setup.check_trains(self.unwrapped, self.trained_prompts)
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        with self.watching_signals("saving after this step"):
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
        if getattr(trial, "number", None) is not None:
            self._trial_folders[str(trial.number)] = search.keep_trial(self, trial)
        return output

    @property
    def trained_prompts(self) -> list[str]:
        """The names of the prompts that train."""
        return [self.unwrapped.active_adapter]

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Any = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Search as `Trainer` does. Afterwards the trainer holds the best trial's prompt, metrics and hyperparameters.

        `model_init(trial)` makes each trial's prompt, always on the same backbone. It is also called once with None,
        before the search. It suggests the properties of the prompt (`trial.suggest_int("num_virtual_tokens", …)`);
        `hp_space` suggests the training arguments.

        Args:
            hp_space: function that returns a trial's `TrainingArguments` values by name.
            compute_objective: function of an evaluation's metrics; default: the value of `metric_for_best_model`, or
                the loss. (`Trainer`'s default is the sum of all metrics.)
            n_trials: number of trials.
            direction: "minimize" or "maximize"; default: that of the metric, from `greater_is_better` or its name.
                Pass it if you pass `compute_objective`.
            **kwargs: passed to `optuna.create_study` (`sampler`, `pruner`, `storage`, …) and `Study.optimize`.

        Raises:
            PromptTuningError: the evaluation does not return the metric.
        """
        self._trial_folders: dict[str, Path] = {}
        direction = search.direction_of(self.args) if direction is None else direction
        compute_objective = compute_objective or search.objective_of(self.args)
        best = super().hyperparameter_search(hp_space, compute_objective, n_trials, direction=direction, **kwargs)
        if isinstance(best, BestRun) and best.run_id in self._trial_folders:
            folder = self._trial_folders[best.run_id]
            # After a search there is no model. Only the backbone of the new one is used.
            model = self._adopt(search.load_trial(super().call_model_init(), folder))
            search.restore_trial(self, model, folder, best.hyperparameters)
        return best

    def set_initial_training_values(self, args: PromptTuningArguments, dataloader: Any) -> tuple:
        """Return the values as `Trainer` does, but run no step with `max_steps=0`, where `Trainer` runs one."""
        num_train_epochs, *values = super().set_initial_training_values(args, dataloader)
        return (0 if args.max_steps == 0 else num_train_epochs, *values)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Create the optimizer as `Trainer` does. A classification head has a learning rate of its own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        rate = None if self.head_loss is None else head_rate(self.args)
        if is_new and rate is not None:
            move_head(optimizer, self.unwrapped, rate)
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as `Trainer` does. For rows of text, ask the model only for the labelled positions."""
        if self.head_loss is not None:
            inputs.pop(IN_CONTEXT, None)  # which is for predictions
            return super().compute_loss(model, inputs, *args, **kwargs)
        inputs, taught = split_teachers(inputs)
        label = inputs.pop("label", None)
        if self.teaching is None:  # rows that were encoded for another run may have columns of its teachers
            taught = []
        if taught and self.teaching.is_over_labels:
            inputs = self.teaching.lesson_of_labels(model, inputs, label, taught, self.rows.tokenizer)
            return super().compute_loss(model, inputs, *args, **kwargs)
        if not beside_texts(inputs) or self.rows.sees:
            inputs["only_labelled"] = True
        elif not self.accelerator.unwrap_model(model).config.is_encoder_decoder and "labels" in inputs:
            # One position wider than the text, because the label of the first token counts.
            inputs["shift_labels"] = nn.functional.pad(inputs.pop("labels"), (0, 1), value=IGNORED)
        if taught:
            inputs["distillation"] = self.teaching.lesson(model, taught)
        inputs["label_smoothing"] = self.args.label_smoothing_factor
        return super().compute_loss(model, inputs, *args, **kwargs)

    @property
    def counted_column(self) -> str:
        """The column of a batch whose values other than -100 are the items of its loss."""
        over_labels = self.teaching is not None and self.teaching.is_over_labels
        return TAUGHT_ROWS if over_labels else super().counted_column

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Do not call super(), which also pickles the arguments and copies the tokenizer. A prompt's folder holds
        # neither.
        model = self.unwrapped
        # Run on every process, because sharded weights are gathered: the embedding, for the nearest words, and the
        # prompt (ZeRO-3).
        with model.whole_prompt():
            rows = {"training_rows": self.train_dataset, "evaluation_rows": self.eval_dataset}
            model.info.data |= {name: count_rows(data) for name, data in rows.items() if isinstance(data, Dataset)}
            if self.teaching is not None:
                data = self.train_dataset if self.train_dataset is not None else self.eval_dataset
                self.teaching.describe(model, data, measure=self.args.should_save and not self.is_saving_checkpoint)
            describe_run(model, self.args, self.state, self.processing_class)
            if self.args.should_save:
                folder = output_dir or self.args.output_dir
                model.save_pretrained(folder, repo_id=self.publisher.repo_id, card=not self.is_saving_checkpoint)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the Hub repository as `Trainer` does, for all processes.

        If the Hub is unreachable, the first push creates it. Raise PromptTuningError if the token, the namespace, the
        branch or the visibility is invalid.
        """
        self.publisher.create_repository(token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        tokenizer: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Push the prompt with its description, card and pictures to `hub_model_id`.

        If the Hub does not accept the push, nothing is raised, because the prompt is saved in `output_dir`. A warning
        gives the command that pushes it later.

        Args:
            commit_message: message of the commit.
            blocking: whether to wait until the push is finished.
            token, revision, private: default: `hub_token`, `hub_revision` and `hub_private_repo` of the training
                arguments. The branch is created if missing; `private` is for a new repository.
            tokenizer: whether to push the tokenizer, too.
            **kwargs: `language`, `license` and `tags` for the card. Other arguments of `Trainer`'s model card are
                accepted and ignored, because the prompt's card fills them in by itself.

        Raises:
            PromptTuningError: the repository or branch name is invalid, an argument is unknown, or `private` is set
                and the repository is public.
            TrainingInterrupted: SIGTERM or SIGINT arrived with `save_on_signal` on; the push is finished or given up.
        """
        to = destination(self.args, token=token, revision=revision, private=private)
        return self.publisher.push(to, commit_message or "End of training", blocking, tokenizer, kwargs)

    @property
    def pushed_files(self) -> list[str]:
        """The paths in `output_dir` of all files that a push may contain.

        A single prompt replaces the files in the root of a run with several prompts.
        """
        return [*PROMPT_FILES, ENSEMBLE_FILE, CURVES_FILE, FIELD_FILE]

    def save_for_hub(self, folder: Path, repo_id: str, tokenizer: Any) -> Path:
        """Save the files to push in `folder`; return the folder that holds them."""
        return self.unwrapped.save_for_hub(folder, repo_id, tokenizer)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Do not call super(), which pushes everything in the output folder, including pickles.
        self.publisher.push_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        self.publisher.finish()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the prompt is saved with its own card."""

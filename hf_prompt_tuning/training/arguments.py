"""Define the training arguments, with defaults for prompt tuning."""

import math
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from transformers import SchedulerType, TrainingArguments
from transformers.hf_argparser import HfArg

from ..compat.torch import set_process_timeout
from ..errors import PromptTuningError
from ..models.metric_direction import greater_is_better
from .recipes import AUTO, RECIPES, check_recipe, missing_values


@dataclass
class PromptTuningArguments(TrainingArguments):
    """`TrainingArguments` with defaults for prompt tuning: AdamW at 3e-2, linear schedule, no weight decay.

    The backbone is frozen and only P·H numbers train. So the learning rate is about 1000 times that of full
    fine-tuning.

    A named `recipe` sets the training arguments that are not given. Where every argument is passed (by a parser that
    fills in defaults, or by `dataclasses.replace`), those that differ from their default count as given.

    Attributes:
        given: the names of the arguments that the caller gave.
        set_by_recipe: the values that a named recipe sets, by the names of the arguments.

    Raises:
        PromptTuningError: a value is invalid.
    """

    recipe: str | None = HfArg(
        default=None,
        help="Values of arguments that are not given: default, few_shot, examples, lester2021 or peft. Or auto: train "
        "prompts together, with other learning rates and starts, and keep the best.",
    )
    learning_rate: float = HfArg(default=3e-2, help="Peak learning rate of the prompt.")
    head_learning_rate: float | None = HfArg(
        default=None, help="Peak learning rate of a classification head. Default: 1e-3."
    )
    class_weights: str | None = HfArg(
        default=None,
        help="With a classification head, the weight of each class in the loss: balanced, or as JSON a list or an "
        'object, e.g. {"spam": 4, "other": 1}.',
    )
    pos_weight: str | None = HfArg(
        default=None, help="With several labels a row, the weight of a label that a row has, as class_weights."
    )
    recipe_budget: float = HfArg(
        default=4.0, help="With recipe auto: how many times the rows of an ordinary run it may train on."
    )
    recipe_lengths: list[int] | None = HfArg(
        default=None, help="With recipe auto: the prompt lengths to try. Default: that of the prompt."
    )
    num_train_epochs: float = HfArg(default=10.0, help="Passes over the training data.")
    logging_steps: float = HfArg(default=10, help="Update steps between two logs; below 1, a share of the run.")
    early_stopping_patience: int | None = HfArg(
        default=None, help="Stop after so many evaluations without a better metric, and keep the best prompt."
    )
    average_last: float = HfArg(
        default=0.0,
        help="End with the mean of the prompts of this last share of the steps; 0: with the last one.",
    )
    layout: str = HfArg(
        default="auto", help="Layout of prompts and examples: auto, packed, cached or padded. Changes the cost only."
    )
    max_packed_tokens: int | None = HfArg(default=None, help="Maximum tokens of a packed row. Default: 2048.")
    check_layout: bool = HfArg(default=True, help="Compare the layout with padded on two rows before the first batch.")
    predict_with_generate: bool = HfArg(
        default=True, help="Evaluate free text by generating it (exact match, ROUGE-L), not only by its loss."
    )
    save_on_signal: bool = HfArg(
        default=False,
        help="On SIGTERM and Ctrl-C, finish the step, save and end the run. The command's default is True.",
    )
    distillation_temperature: float = HfArg(
        default=1.0, help="Temperature of the teacher's and the student's distributions, with a teacher."
    )
    distillation_weight: float = HfArg(
        default=1.0, help="Share of the teacher in the loss, 0 to 1. The rest is the usual loss of the given targets."
    )
    distill_over: str = HfArg(
        default="tokens", help="What is compared with the teacher: tokens, or, for templates with labels, labels."
    )
    teacher_top_k: int | None = HfArg(
        default=None, help="Learn only from so many of the teacher's most likely tokens. Default: from all, exactly."
    )
    teacher_writes: int | None = HfArg(
        default=None, help="Have the teacher write so many answers to each training row, as its targets."
    )
    teacher_temperature: float = HfArg(default=1.0, help="Temperature of the answers; 0 takes the most likely tokens.")
    teacher_top_p: float = HfArg(default=1.0, help="Sample the answers from tokens of so much probability.")
    teacher_max_new_tokens: int | None = HfArg(
        default=None, help="Maximum tokens of an answer. Default: the template's max_target_length, or 128."
    )
    publish_teacher_text: bool = HfArg(
        default=False, help="Write the teacher's text into the prompt's description and card, not only its length."
    )
    restore_callback_states_from_checkpoint: bool = HfArg(
        default=True, help="Resume early stopping's counters, and the states of other callbacks."
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> "PromptTuningArguments":
        """Note which arguments are given, which a dataclass does not tell from defaults."""
        arguments = super().__new__(cls)
        defaults = {field.name: field.default for field in fields(cls) if field.init}
        values = dict(zip(defaults, args, strict=False)) | kwargs
        if values.keys() == defaults.keys():
            values = {name: value for name, value in values.items() if value != defaults[name]}
        arguments.given = frozenset(values)
        return arguments

    def __post_init__(self):
        self._apply_recipe()
        self._check_teaching()
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1:
                raise PromptTuningError(
                    f"early_stopping_patience is {self.early_stopping_patience}; it counts evaluations: give 1 or more"
                )
            self.load_best_model_at_end = True
            if self.eval_strategy == "no":
                self.eval_strategy = self.save_strategy = "epoch"
        if not 0 <= self.label_smoothing_factor <= 1:
            raise PromptTuningError(
                f"label_smoothing_factor is {self.label_smoothing_factor}; give a share of the loss, from 0 to 1."
            )
        if not 0 <= self.average_last <= 1:
            raise PromptTuningError(f"average_last is {self.average_last}; give a share of the run, 0 to 1.")
        if self.average_last and self.load_best_model_at_end:
            raise PromptTuningError(
                f"average_last is {self.average_last}, and load_best_model_at_end (or early_stopping_patience) keeps "
                "the prompt of one step; leave one of them out."
            )
        if self.metric_for_best_model is not None:
            # transformers treats every name that does not end in "loss" as a score, even perplexity.
            self.greater_is_better = greater_is_better(self.metric_for_best_model, self.greater_is_better)
        super().__post_init__()
        if self.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode} | (self.lr_scheduler_kwargs or {})
        if self.device.type == "cpu":
            # Pinned memory speeds up copies to an accelerator. Without an accelerator, torch warns in every epoch.
            self.dataloader_pin_memory = False
            if dist.is_initialized():
                # transformers sets the timeout only for GPU processes.
                set_process_timeout(timedelta(seconds=self.ddp_timeout))

    def _apply_recipe(self) -> None:
        """Set the values of the recipe whose arguments are not given. Raise PromptTuningError if it is unknown."""
        self.set_by_recipe = {}
        if self.recipe == AUTO:
            return
        if self.recipe_budget != type(self).recipe_budget or self.recipe_lengths is not None:
            name = "recipe_budget" if self.recipe_lengths is None else "recipe_lengths"
            raise PromptTuningError(f"{name} is {getattr(self, name)}, and is for the recipe auto; give both.")
        if self.recipe is None:
            return
        check_recipe(self.recipe)
        self.set_by_recipe = missing_values(RECIPES[self.recipe].training, self.given)
        for name, value in self.set_by_recipe.items():
            setattr(self, name, value)

    def _check_teaching(self) -> None:
        """Raise PromptTuningError for an invalid argument of learning from a teacher."""
        if not 0 < self.distillation_temperature < math.inf:
            raise PromptTuningError(
                f"distillation_temperature is {self.distillation_temperature}; give a number above 0."
            )
        if not 0 <= self.distillation_weight <= 1:
            raise PromptTuningError(f"distillation_weight is {self.distillation_weight}; give a share from 0 to 1.")
        if self.distill_over not in ("tokens", "labels"):
            raise PromptTuningError(f"distill_over is {self.distill_over!r:.80}; give 'tokens' or 'labels'.")
        if self.teacher_top_k is not None and self.teacher_top_k < 1:
            raise PromptTuningError(f"teacher_top_k is {self.teacher_top_k}; give 1 or more tokens, or leave it out.")
        if self.teacher_writes is not None and self.teacher_writes < 1:
            raise PromptTuningError(f"teacher_writes is {self.teacher_writes}; give 1 or more answers a row.")
        if self.teacher_temperature < 0 or not 0 < self.teacher_top_p <= 1:
            raise PromptTuningError(
                f"teacher_temperature is {self.teacher_temperature} and teacher_top_p {self.teacher_top_p}; give 0 or "
                "more, and a share above 0, up to 1."
            )
        if not self.teacher_temperature and (self.teacher_writes or 1) > 1:
            raise PromptTuningError(
                f"teacher_writes is {self.teacher_writes} and teacher_temperature 0, with which all answers to a row "
                "are the same; give 1, or a temperature."
            )
        if self.teacher_max_new_tokens is not None and self.teacher_max_new_tokens < 1:
            raise PromptTuningError(f"teacher_max_new_tokens is {self.teacher_max_new_tokens}; give 1 or more.")

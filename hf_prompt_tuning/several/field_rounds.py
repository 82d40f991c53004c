"""The rounds of a field: prompts for one task train together, and the worse half is dropped at set steps."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from ..data.chat_tokenization import RowTemplate
from ..data.examples import StartRows, rows_of_examples, target_kinds
from ..models.soft_prompts import SoftPrompts
from ..prompts.config import PromptTuningConfig, PromptTuningInit
from ..training.arguments import PromptTuningArguments
from ..training.callbacks import DivergenceCallback
from ..training.recipes import AUTO
from ..training.scorer import RowResults, Scorer
from ..training.setup import kind_of
from .batches import rows_of_prompts
from .checks import check_field, check_warmup
from .ensemble_trainer import EnsembleTrainer
from .field import ONE, TWO, Round, cost, plan_field
from .field_choice import best_first, order
from .field_state import FieldState
from .rows_apart import are_learned_later, check_is_no_stream, check_labelled, divide
from .streams import with_first_rows
from .task import PromptTask
from .task_run import TaskRun

logger = logging.getLogger(__name__)

AVERAGED = 0.5
"""Of few training rows: the last share of the run whose prompts are averaged, unless the arguments give one."""
NEARER = "whose loss on the rows held apart is clearly higher, or who are further from the default"
"""Why prompts go where losses alone do not decide."""


class FieldRounds(EnsembleTrainer):
    """Trainer of a field until its last round. `FieldTrainer` says what a field is, and has the arguments.

    The rows held apart are of the evaluation data. Without any, they are of the training rows; if these are few, the
    last round leaves one prompt, which then learns from all rows, and ends as its mean over the last half of the run.

    Attributes:
        finds_settings: whether the recipe auto may be given.
        learns_from_all: whether the prompt that is left learns from the rows held apart, too.
    """

    finds_settings = True
    drops_prompts = True

    def __init__(
        self,
        model: nn.Module,
        args: PromptTuningArguments | None = None,
        prompt_config: PromptTuningConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        template: RowTemplate | None = None,
        callbacks: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        args = args if args is not None else PromptTuningArguments(output_dir="trainer_output", recipe=AUTO)
        check_field(model, args, train_dataset, template, kwargs)
        check_is_no_stream(train_dataset, "training")
        check_is_no_stream(eval_dataset, "evaluation")
        config = PromptTuningConfig.from_peft(prompt_config if prompt_config is not None else PromptTuningConfig())
        self.learns_from_all = are_learned_later(train_dataset, eval_dataset)
        left = ONE if self.learns_from_all else TWO
        self._field = plan_field(config, template, args.recipe_lengths, args.seed, args.recipe_budget, left)
        self._holds_training_rows = eval_dataset is None
        self._seed = args.seed
        callbacks = [*(callbacks or ()), FieldState()]
        if self.learns_from_all and "average_last" not in args.given:
            args = copy.copy(args)
            args.average_last = AVERAGED
        if not any(issubclass(kind_of(callback), DivergenceCallback) for callback in callbacks):
            # Rates that are too low or too high are in every field, and are dropped without a warning.
            callbacks.append(DivergenceCallback(max_norm=math.inf, min_move=0.0))
        data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        tokenizer = {"processing_class": processing_class, "template": template}
        super().__init__(model, args, self._field.members, **data, **tokenizer, callbacks=callbacks, **kwargs)

    def check_runs(self, model: SoftPrompts, args: PromptTuningArguments) -> None:
        """Plan the rounds; further, raise PromptTuningError if there are too few steps, or the warm-up is too long."""
        super().check_runs(model, args)
        self._rounds = self._field.rounds(args.max_steps)
        check_warmup(args, self._rounds[0].step)

    def check_resumed(self, checkpoint: str) -> None:
        """Check as `MultiPromptTrainer` does; further, raise PromptTuningError if the rounds are others."""
        super().check_resumed(checkpoint)
        self._progress.check_resumed(checkpoint)

    def rows_to_start_from(self, train_dataset: Any, members: Sequence[PromptTask]) -> StartRows | None:
        """Leave out the training rows that are held apart: a prompt that started from them would know them."""
        if not self._holds_training_rows or not any(
            member.config.prompt_tuning_init == PromptTuningInit.EXAMPLES for member in members
        ):
            return super().rows_to_start_from(train_dataset, members)
        template = members[0].template
        rows = rows_of_examples(train_dataset, template)
        first, _ = divide(target_kinds(rows, template), self._seed, not template.is_classification)
        return StartRows(train_dataset, first)

    def divided(self, train: Dataset, evaluation: Dataset | None) -> dict[str, Any]:
        """Return the rows to train on and those to evaluate; without evaluation data, some rows are held apart."""
        self._apart = evaluation
        if evaluation is None:
            are_texts = "label" not in train.column_names
            labels = [0] * len(train) if are_texts else train["label"]
            self._first, held = divide(labels, self._seed, are_texts)
            self._apart = train.select(held)
        check_labelled(self._apart)
        if self.learns_from_all:
            return {"train_dataset": train, "eval_dataset": None}
        if evaluation is None:
            train = train.select(self._first)
        return {"train_dataset": train, "eval_dataset": self._apart}

    def prepared(self, run: TaskRun) -> TaskRun:
        """Keep the rows held apart from a prompt until the last round."""
        if not self.learns_from_all:
            return run
        last = self._field.rounds(len(run.stream.steps))[-1]
        return replace(run, stream=with_first_rows(run.stream, self._first, last.step, run.args))

    @property
    def _progress(self) -> FieldState:
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, FieldState))

    @property
    def members(self) -> list[str]:
        """The names of the prompts that train."""
        rounds, failed = self._progress.rounds, {entry["prompt"] for entry in self._progress.failed}
        return [name for name in (rounds[-1]["stay"] if rounds else self.tasks) if name not in failed]

    @property
    def cost(self) -> float:
        """The rows that the field trains on, as a multiple of an ordinary run's."""
        return cost(len(self.tasks), self._rounds, self.args.max_steps)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Run an update step as `MultiPromptTrainer` does, without the rows of prompts that were dropped.

        If a loss or gradient is not finite, each prompt makes the step alone, and those that are not finite alone go.
        """
        before = self._losses.so_far()

        def step(names: set[str]) -> Tensor:
            # Here and not in the data loader, whose workers prepare batches before a round ends.
            batches = [batch for batch in inputs["micro_batches"] if not names.isdisjoint(batch["adapter_names"])]
            batches = [rows_of_prompts(batch, names, self.data_collator) for batch in batches]
            return super(FieldRounds, self).training_step(model, {"micro_batches": batches}, *args, **kwargs)

        loss = step(set(self.members))
        if self._is_finite(loss):
            return loss
        self._losses.go_back(*before)
        return self._steps_alone(step)

    def _is_finite(self, loss: Tensor) -> bool:
        """Tell whether the loss and the gradients are finite. A gradient scaler (fp16) takes care of gradients."""
        weights = self.prompts.values() if self.accelerator.scaler is None else ()
        values = [loss, *(weight.grad for weight in weights if weight.grad is not None)]
        return bool(torch.stack([torch.isfinite(value).all() for value in values]).all())

    def _steps_alone(self, step: Callable[[set[str]], Tensor]) -> Tensor:
        """Let each prompt make its step alone: NaN in one spoils all that share a packed row with it.

        Return the mean loss of those that are finite. The others go, and keep the vectors that they had. Raise
        FloatingPointError if there are no others.
        """
        weights, losses, gradients = self.prompts, [], {}
        for name in self.members:
            before = self._losses.so_far()
            for weight in weights.values():
                weight.grad = None
            loss = step({name})
            if self._is_finite(loss):
                losses.append(loss)
                gradients[name] = weights[name].grad
            else:
                self._losses.go_back(*before)
                self._let_go(name, self.state.global_step + 1)
        if not losses:
            self._nothing_is_finite(self.state.global_step + 1)
        for name, weight in weights.items():
            weight.grad = gradients.get(name)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, DivergenceCallback):
                callback.forget_step()
        return torch.stack(losses).mean()

    def _let_go(self, name: str, step: int) -> None:
        logger.warning(
            "At step %d the loss or gradient of %s is not finite; it goes, and the others train on.",
            *(step, self._named(name)),
        )
        self._progress.failed.append({"prompt": name, "step": step})

    def _nothing_is_finite(self, step: int) -> NoReturn:
        raise FloatingPointError(
            f"at step {step} no prompt of the field has a finite loss; look at the data, or use bf16 where the model "
            "is in fp16."
        )

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # A round ends before its step is saved, so that the checkpoint holds what the round decided.
        rounds = self._progress.rounds
        while len(rounds) < len(self._rounds) and self.state.global_step >= self._rounds[len(rounds)].step:
            self._end_round(self._rounds[len(rounds)])
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _end_round(self, end: Round) -> None:
        """Compare the prompts on the rows held apart, and drop all but the best (`best_first`)."""
        losses, results, _ = self._losses_apart()
        names = self.members
        labelled = results.tokens > 0
        of_rows = {name: results.nll[labelled, i] for i, name in enumerate(names)}
        best = best_first(losses, of_rows, self._field.distances)
        stay = [name for name in names if name in best[: end.stay]]
        self._progress.rounds.append({"step": self.state.global_step, "losses": losses, "stay": stay})
        by_loss = set(order(losses)[: end.stay]) == set(stay)
        told = [f"{self._named(name)} {losses[name]:.4g}" for name in best]
        go, why = ", ".join(told[end.stay :]), "whose loss on the rows held apart is higher" if by_loss else NEARER
        logger.info(
            "Round %d of %d, step %d of %d: %s stay; %s.",
            *(len(self._progress.rounds), len(self._rounds), self.state.global_step, self.args.max_steps),
            *(", ".join(told[: end.stay]), f"{go} go, {why}" if go else "none goes"),
        )

    def _named(self, name: str) -> str:
        task = self.tasks[name]
        start, length = task.config.prompt_tuning_init.value, len(self.prompts[name])
        return f"{name} ({task.learning_rate:g}, {start}, {length} vectors)"

    def _losses_apart(self) -> tuple[dict[str, float], RowResults, Any]:
        """Return each member's loss on the rows held apart, and the rows' results and references.

        Members whose loss is not finite go. Raise FloatingPointError if there are no others.
        """
        scorer = self.make_scorer(max_new_tokens=None, compute_metrics=None)
        output = self._scored(scorer)
        losses = {name: float(metrics["loss"]) for name, metrics in scorer.of_members.items()}
        if all(map(math.isfinite, losses.values())):
            return losses, output.predictions, output.label_ids
        # NaN in one prompt spoils all that share a packed row with it: compare each alone.
        outputs = {}
        for name in losses:
            with self._using(name):
                outputs[name] = self._alone()
        losses = {name: output.metrics["apart_loss"] for name, output in outputs.items()}
        for name in [name for name, loss in losses.items() if not math.isfinite(loss)]:
            self._let_go(name, self.state.global_step)
        if not self.members:
            self._nothing_is_finite(self.state.global_step)
        of_members = [outputs[name].predictions for name in self.members]
        results = {key: np.stack([of[key] for of in of_members], 1) for key in of_members[0] if key != "tokens"}
        results = RowResults(results | {"tokens": of_members[0].tokens})
        return {name: losses[name] for name in self.members}, results, output.label_ids

    def _alone(self) -> Any:
        """Return the output of the active prompt on the rows held apart."""
        return self._scored(self.scorer_of_prompt(max_new_tokens=None, compute_metrics=None))

    def _scored(self, scorer: Scorer) -> Any:
        # A data loader draws a seed. Fork the random state, so that comparing does not change the run.
        with torch.random.fork_rng(devices=[]):
            return self.predict_with(scorer, self._apart, "apart")

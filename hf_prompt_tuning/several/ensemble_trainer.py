"""Train several prompts for one task in one run, as an ensemble (Lester et al. 2021, section 6)."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.chat_tokenization import RowTemplate
from ..data.encoding import check_kind, with_label_words
from ..data.examples import StartRows
from ..errors import PromptTuningError
from ..models.metric_direction import greater_is_better
from ..models.recording import to_record
from ..models.saving import write_start_and_card
from ..models.scoring import loss_history
from ..models.soft_prompts import SoftPrompts
from ..prompts.config import PromptTuningInit
from ..prompts.ensemble_info import ENSEMBLE_FILE, EnsembleInfo
from ..prompts.files import CONFIG_FILE, WEIGHTS_FILE
from ..prompts.repository_files import PROMPT_FILES
from ..training.arguments import PromptTuningArguments
from ..training.token_rows import ColumnCheck, RowEncoder
from .checks import check_has_length, check_prompts
from .task import PromptTask, model_with_prompts
from .task_run import TaskRun
from .trainer import MultiPromptTrainer
from .voting import encoder_for_members
from .voting_scorer import VotingScorer

DRAWN = (PromptTuningInit.SAMPLE_VOCAB, PromptTuningInit.RANDOM, PromptTuningInit.EXAMPLES)
"""The initialisations that another seed draws otherwise."""


class EnsembleTrainer(MultiPromptTrainer):
    """Train several prompts on the same rows of one task; evaluate each prompt and their majority vote.

    In training and in evaluation, each batch is one call of the backbone for all prompts.

    Args:
        model: a plain backbone.
        members: the prompts to train, each with its name, config, and other differences (learning rate, seeds).
            All train on the run's data.
        train_dataset, eval_dataset: rows of raw columns; one data set each.
        template: turns a row into text.
        args, processing_class, **kwargs: as in `PromptTuningTrainer`; `compute_metrics` gets the predictions of the
            vote, as label indices or texts.

    Raises:
        PromptTuningError: there are fewer than two members, two members would stay the same, or `MultiPromptTrainer`
            refuses an argument.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        members: Sequence[PromptTask],
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        template: RowTemplate | None = None,
        **kwargs: Any,
    ):
        check_kind(train_dataset, "training")
        check_has_length(train_dataset, "training")
        check_kind(eval_dataset, "evaluation", may_be_several=True)  # a dict is refused below
        if len(members) < 2:
            raise PromptTuningError(f"an ensemble has {len(members)} member; give at least two, or train one prompt.")
        if template is None or processing_class is None or isinstance(eval_dataset, dict):
            raise PromptTuningError(
                "an ensemble needs the template and the tokenizer (processing_class), and one evaluation data set."
            )
        template = with_label_words(template, train_dataset, eval_dataset)
        args = args if args is not None else PromptTuningArguments(output_dir="trainer_output")
        members = [replace(member, template=template) for member in members]
        if not isinstance(model, SoftPrompts):
            rows = self.rows_to_start_from(train_dataset, members)
            made = [replace(member, train_dataset=rows) for member in members]
            model = model_with_prompts(model, made, processing_class, args.seed)
        check_prompts(model, members)
        self._encoder = encoder_for_members(model, [member.name for member in members], processing_class, template)
        columns = ColumnCheck.of_run(model.get_base_model(), args, kwargs.get("data_collator"), alone=False)
        encode = RowEncoder(self._encoder, None, None, columns)
        # Tokenize once for all members.
        train = encode(train_dataset, "training", require_target=True)
        data = self.divided(train, encode(eval_dataset, "evaluation", require_target=False))
        super().__init__(model, args, [replace(member, **data) for member in members], processing_class, **kwargs)
        for member in members:  # each run got encoded rows, which do not tell what their pictures were called
            encode.describe(self.unwrapped.prompt_info[member.name], None)
        self._description = EnsembleInfo(self.members, best=self.members[0])

    def rows_to_start_from(self, train_dataset: Any, members: Sequence[PromptTask]) -> StartRows | None:
        """Return the training rows that prompts may start from (`EXAMPLES`); None without any."""
        return None if train_dataset is None else StartRows(train_dataset)

    def divided(self, train: Any, evaluation: Any) -> dict[str, Any]:
        """Return the rows of token ids that the members train on, and those that they are evaluated on."""
        return {"train_dataset": train, "eval_dataset": evaluation}

    @property
    def members(self) -> list[str]:
        """The names of the prompts that vote."""
        return list(self.tasks)

    def _evaluation_data(self) -> Any:
        return next(iter(self.tasks.values())).eval_dataset

    def check_runs(self, model: SoftPrompts, args: PromptTuningArguments) -> None:
        """Raise PromptTuningError if two members would stay the same."""
        prompts = model.prompt_encoder
        for first, second in combinations(self.tasks, 2):
            one_start = torch.equal(prompts[first].embedding.weight, prompts[second].embedding.weight)
            one, other = self._runs[first], self._runs[second]
            if one_start and one.args.learning_rate == other.args.learning_rate and _rows(one) == _rows(other):
                raise PromptTuningError(
                    f"{first!r} and {second!r} start from the same vectors, have the same learning rate and see the "
                    f"rows in the same order, so they would stay the same. {_other_starts(one, other)}, other "
                    "lengths, other learning rates, or other orders (--data_seeds, data_seed)."
                )

    def make_scorer(self, **options: Any) -> VotingScorer:
        """Return the scorer of all members and their vote; `options` are fields of `VotingScorer`."""
        return VotingScorer(**vars(self.scorer_of_prompt()) | {"members": tuple(self.members)} | options)

    def rows_and_data(self) -> tuple[RowEncoder, Any]:
        """Return what encodes rows for all members, and the data of their task."""
        # The members have the same rows, so they have the room behind the longest prompt. With one in the system turn,
        # the rows of all have that turn.
        longest = max(self.members, key=lambda name: len(self.prompts[name]))
        return replace(self._runs[longest].rows, tokenizer=self._encoder), super().rows_and_data()[1]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate each prompt (`eval_NAME_accuracy` and so on) and the vote (`eval_accuracy` and so on).

        `eval_loss` is the mean of the prompts' losses. Arguments are those of `PromptTuningTrainer.evaluate`.
        """
        infos = self.unwrapped.prompt_info
        own = self.is_own(eval_dataset, metric_key_prefix)
        scorer = self.make_scorer(infos=infos if own else {})
        metrics = self.evaluate_with(scorer, eval_dataset, ignore_keys, metric_key_prefix)
        if own:
            for name in self.members:
                infos[name].metrics = _as_evaluation(scorer.of_members[name])
            self._description.metrics = _as_evaluation(scorer.of_vote)
            self._check_best(scorer.of_members)
        return metrics

    def evaluate_untuned(self, eval_dataset: Any = None) -> dict[str, float]:
        """Return the metrics of the backbone without a prompt, and record them in every member."""
        metrics = self.metrics_without_prompt(self.eval_dataset if eval_dataset is None else eval_dataset, "untuned")
        if self.is_own(eval_dataset, "eval"):
            for name in self.members:
                self.unwrapped.prompt_info[name].untuned_metrics = to_record(metrics)
        return metrics

    def evaluate_transfer(self, datasets: dict[str, Any]) -> dict[str, float]:
        """Evaluate other domains as `PromptTuningTrainer` does.

        Each member records its own metrics, and the ensemble records those of the vote. Return all metrics, named
        `transfer_<name>_<metric>` (of the vote) and `transfer_<name>_<member>_<metric>`.
        """
        infos, transfer = self.unwrapped.prompt_info, {}
        for name, data in datasets.items():
            scorer = self.make_scorer()
            metrics, rows = self.transfer_metrics(scorer, name, data)
            for member in self.members:
                infos[member].transfer[name] = to_record(scorer.of_members[member]) | {"rows": rows}
            self._description.transfer[name] = to_record(scorer.of_vote) | {"rows": rows}
            transfer |= {f"transfer_{name}_{metric}": value for metric, value in metrics.items()}
        return transfer

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict as `Trainer` does. Predictions are label scores [N, G, L] (see `voting.vote`) or G texts per row."""
        return self._predict_rows(test_dataset, *args, **kwargs)

    @property
    def best_member(self) -> str:
        """The best prompt in the last evaluation, or by the last training loss if there was no evaluation.

        The metric is `metric_for_best_model`, or else accuracy (classification) or loss. The loss breaks ties.
        """
        metric = self._deciding
        larger = greater_is_better(metric, self.args.greater_is_better if self.args.metric_for_best_model else None)

        def rank(name: str) -> tuple[float, float]:
            metrics, history = self.unwrapped.prompt_info[name].metrics, loss_history(self.state.log_history, name)
            loss = metrics.get("eval_loss", history["loss"][-1][1] if history.get("loss") else 0.0)
            # A member without this metric (NaN, or not evaluated) ranks last.
            value = metrics.get(f"eval_{metric}", -math.inf if larger else math.inf)
            return (-value if larger else value, loss)

        return min(self.members, key=rank)

    @property
    def _deciding(self) -> str:
        """The metric for the choice of the best member, without its prefix."""
        default = "accuracy" if self.rows.tokenizer.template.is_classification else "loss"
        return (self.args.metric_for_best_model or default).removeprefix("eval_")

    def _check_best(self, of_members: dict[str, dict[str, float]]) -> None:
        """Raise PromptTuningError if the members' metrics do not contain `metric_for_best_model`."""
        if self.args.metric_for_best_model and not any(self._deciding in metrics for metrics in of_members.values()):
            raise PromptTuningError(
                f"metric_for_best_model is {self._deciding!r}, and each member is evaluated by "
                f"{', '.join(next(iter(of_members.values())))}; name one of these (compute_metrics is of the vote)."
            )

    @property
    def pushed_files(self) -> list[str]:
        """The paths in `output_dir` of all files that a push may contain."""
        return [*super().pushed_files, *PROMPT_FILES, ENSEMBLE_FILE]

    def _write_root(self, model: SoftPrompts, folder: Path, repo_id: str | None) -> None:
        """Copy the best prompt into the ensemble's folder, with the description of the ensemble."""
        best = self._description.best = self.best_member
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copy(folder / best / file, folder)
        prompt, config = model.prompt_encoder[best], model.peft_config[best]
        prompt.info.write(folder)
        self._description.write(folder)
        write_start_and_card(folder, prompt, config, model.base_model, repo_id, ensemble=self._description)


def _other_starts(one: TaskRun, other: TaskRun) -> str:
    """Return the advice for two prompts that start from the same vectors."""
    init, length = one.task.config.prompt_tuning_init, one.task.config.num_virtual_tokens
    if init == PromptTuningInit.EXAMPLES and one.task.seed != other.task.seed:
        return (
            f"They are of other draws of the rows, but num_virtual_tokens ({length}) has room for the end of a row "
            "alone, or there are too few rows: use more vectors, more rows"
        )
    seeds = "by other seeds (--prompt_seeds, PromptTask(seed=…))"
    if init in DRAWN:
        return f"Draw them {seeds}"
    return f"Use an initialisation that is drawn (SAMPLE_VOCAB, RANDOM) {seeds}"


def _rows(run: TaskRun) -> list[list[int]]:
    """Return the numbers of the rows of each update step. Within a step their order changes nothing."""
    steps = [] if run.stream is None else run.stream.steps
    return [sorted(row for batch in step for row in batch) for step in steps]


def _as_evaluation(metrics: dict[str, Any]) -> dict[str, float]:
    return to_record({f"eval_{name}": value for name, value in metrics.items()})

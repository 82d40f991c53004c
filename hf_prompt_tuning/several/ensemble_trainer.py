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

from ..data.encoding import with_label_words
from ..data.template import PromptTemplate
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..models.metric_direction import greater_is_better
from ..models.recording import to_record
from ..models.soft_prompts import SoftPrompts
from ..models.wrapping import check_backbone
from ..prompts.card import write_card
from ..prompts.ensemble_info import ENSEMBLE_FILE, EnsembleInfo
from ..prompts.files import CONFIG_FILE, START_FILE, WEIGHTS_FILE
from ..prompts.plots import save_pictures
from ..prompts.repository_files import PROMPT_FILES
from ..training.arguments import PromptTuningArguments
from ..training.token_rows import ColumnCheck, RowEncoder
from ..training.trainer import PromptTuningTrainer
from .task import PromptTask
from .trainer import MultiPromptTrainer
from .voting_scorer import VotingScorer


class EnsembleTrainer(MultiPromptTrainer):
    """Train several prompts on the same rows of one task; evaluate each prompt and their majority vote.

    In training and in evaluation, each batch is one call of the backbone for all prompts.

    Args:
        model: a plain backbone.
        args: as for `PromptTuningTrainer`.
        members: the prompts to train, each with its name, config, and other differences (learning rate, seed). All
            train on the run's data.
        train_dataset: rows of raw columns.
        eval_dataset: rows of raw columns; one data set.
        processing_class: the backbone's tokenizer.
        template: turns a row into text.
        **kwargs: as in `PromptTuningTrainer`; `compute_metrics` gets the predictions of the vote, as label indices or
            texts.

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
        template: PromptTemplate | None = None,
        **kwargs: Any,
    ):
        if len(members) < 2:
            raise PromptTuningError(f"an ensemble has {len(members)} member; give at least two, or train one prompt.")
        if template is None or processing_class is None or isinstance(eval_dataset, dict):
            raise PromptTuningError(
                "an ensemble needs the template and the tokenizer (processing_class), and one evaluation data set."
            )
        if not isinstance(model, SoftPrompts):
            check_backbone(model)
        template = with_label_words(template, train_dataset, eval_dataset)
        args = args if args is not None else PromptTuningArguments(output_dir="trainer_output")
        encoder = PromptTokenizer(template, processing_class, model.config.is_encoder_decoder)
        columns = ColumnCheck.of_run(model, args, kwargs.get("data_collator"), alone=False)
        # Tokenize once for all members.
        encode = RowEncoder(encoder, None, None, columns)
        train = encode(train_dataset, "training", require_target=True)
        evaluation = encode(eval_dataset, "evaluation", require_target=False)
        data = {"train_dataset": train, "eval_dataset": evaluation, "template": template}
        super().__init__(model, args, [replace(member, **data) for member in members], processing_class, **kwargs)
        self.eval_dataset = evaluation
        self.members = list(self.tasks)
        self._refuse_twins()
        self._vote_metrics: dict[str, float] = {}
        self._vote_transfer: dict[str, dict[str, float]] = {}

    def _refuse_twins(self) -> None:
        for one, other in combinations(self.tasks.values(), 2):
            same_rate = (one.learning_rate or self.args.learning_rate) == (
                other.learning_rate or self.args.learning_rate
            )
            if same_rate and torch.equal(self._weights[one.name], self._weights[other.name]):
                raise PromptTuningError(
                    f"{one.name!r} and {other.name!r} start from the same vectors and have the same learning rate, so "
                    "they would stay the same. Use an initialisation that is drawn (SAMPLE_VOCAB, RANDOM), other "
                    "lengths, or other learning rates."
                )

    def _make_scorer(self, **options: Any) -> VotingScorer:
        scorer = self._scorer_of_prompt()
        # The shortest room of all members is the one for their common rows.
        rows = min(self._row_encoders.values(), key=lambda rows: math.inf if rows.limit is None else rows.limit)
        return VotingScorer(**vars(scorer) | {"rows": rows, "members": tuple(self.members)} | options)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate each prompt (`eval_NAME_accuracy` and so on) and the vote (`eval_accuracy` and so on).

        `eval_loss` is the mean of the prompts' losses.

        Args:
            eval_dataset: default: the trainer's evaluation data.
            ignore_keys: as in `Trainer`.
            metric_key_prefix: as in `Trainer`.
        """
        model, own = self.accelerator.unwrap_model(self.model), self._is_own(eval_dataset, metric_key_prefix)
        scorer = self._make_scorer(infos=model.prompt_info if own else {})
        metrics = self._evaluated(scorer, eval_dataset, ignore_keys, metric_key_prefix)
        if own:
            for name in self.members:
                model.prompt_info[name].metrics = _as_evaluation(scorer.of_members[name])
            self._vote_metrics = _as_evaluation(scorer.of_vote)
            self._check_best(scorer)
        return metrics

    def evaluate_untuned(self, eval_dataset: Any = None) -> dict[str, float]:
        """Return the metrics of the backbone without a prompt, and record them in every member."""
        metrics = PromptTuningTrainer.evaluate_untuned(self, eval_dataset)
        if self._is_own(eval_dataset, "eval"):
            for name in self.members:
                self.accelerator.unwrap_model(self.model).prompt_info[name].untuned_metrics = to_record(metrics)
        return metrics

    def evaluate_transfer(self, datasets: dict[str, Any]) -> dict[str, float]:
        """Evaluate other domains as `PromptTuningTrainer` does.

        Each member records its own metrics, and the ensemble records those of the vote.

        Args:
            datasets: data sets by name; their rows have the template's columns.

        Returns:
            All metrics, named `transfer_<name>_<metric>` (of the vote) and `transfer_<name>_<member>_<metric>`.
        """
        model, found = self.accelerator.unwrap_model(self.model), {}
        for name, data in datasets.items():
            scorer = self._make_scorer()
            metrics, rows = self._transferred(scorer, name, data)
            for member in self.members:
                model.prompt_info[member].transfer[name] = to_record(scorer.of_members[member]) | {"rows": rows}
            self._vote_transfer[name] = to_record(scorer.of_vote) | {"rows": rows}
            found |= {f"transfer_{name}_{metric}": value for metric, value in metrics.items()}
        return found

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict as `Trainer` does. Predictions are label scores [N, G, L] (see `voting.vote`) or G texts per row."""
        return PromptTuningTrainer.predict(self, test_dataset, *args, **kwargs)

    @property
    def best_member(self) -> str:
        """The best prompt in the last evaluation, or by the last training loss if there was no evaluation.

        The metric is `metric_for_best_model`, or else accuracy (classification) or loss. The loss breaks ties.
        """
        model = self.accelerator.unwrap_model(self.model)
        asked = self._deciding
        larger = greater_is_better(asked, self.args.greater_is_better if self.args.metric_for_best_model else None)

        def rank(name: str) -> tuple[float, float]:
            metrics, history = model.prompt_info[name].metrics, self._history(name)
            loss = metrics.get("eval_loss", history["loss"][-1][1] if history.get("loss") else 0.0)
            # A member without this metric (NaN, or not evaluated) ranks last.
            value = metrics.get(f"eval_{asked}", -math.inf if larger else math.inf)
            return (-value if larger else value, loss)

        return min(self.members, key=rank)

    @property
    def _deciding(self) -> str:
        """The metric for the choice of the best member, without its prefix."""
        default = "accuracy" if self._rows.tokenizer.template.is_classification else "loss"
        return (self.args.metric_for_best_model or default).removeprefix("eval_")

    def _check_best(self, scorer: VotingScorer) -> None:
        """Raise PromptTuningError if the members' metrics do not contain `metric_for_best_model`."""
        if self.args.metric_for_best_model and not any(self._deciding in own for own in scorer.of_members.values()):
            known = ", ".join(next(iter(scorer.of_members.values())))
            raise PromptTuningError(
                f"metric_for_best_model is {self._deciding!r}, and each member is evaluated by {known}; name one of "
                "these (compute_metrics is of the vote)."
            )

    def _own_files(self) -> list[str]:
        return [*super()._own_files(), *PROMPT_FILES, ENSEMBLE_FILE]

    def _write_root_card(self, folder: Path, repo_id: str | None) -> None:
        """Do nothing: the root has the best prompt's card."""

    def _save_prompts(self, folder: Path, repo_id: str | None, card: bool) -> None:
        super()._save_prompts(folder, repo_id, card)
        if not card:
            return  # a checkpoint holds only the members: the best one is known at the end
        model, best = self.accelerator.unwrap_model(self.model), self.best_member
        # Not all prompts have this file, so an existing one may belong to an earlier best prompt.
        (folder / START_FILE).unlink(missing_ok=True)
        for file in (CONFIG_FILE, WEIGHTS_FILE, START_FILE):
            if (folder / best / file).exists():
                shutil.copy(folder / best / file, folder)
        config, info = model.peft_config[best], model.prompt_info[best]
        ensemble = EnsembleInfo(self.members, best, self._vote_metrics, self._vote_transfer)
        info.write(folder)
        ensemble.write(folder)
        save_pictures(folder, info)
        size = sum(p.numel() for p in model.base_model.parameters())
        write_card(folder, config, info, size, repo_id, ensemble)


def _as_evaluation(metrics: dict[str, Any]) -> dict[str, float]:
    return to_record({f"eval_{name}": value for name, value in metrics.items()})

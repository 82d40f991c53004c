"""Train a field of prompts for one task, drop the worse half at set steps, and end with the best."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import TrainOutput

from ..errors import PromptTuningError
from ..hub.background import temporary_folder
from ..models.saving import write_start_and_card
from ..models.soft_prompts import SoftPrompts
from ..prompts.ensemble_info import ENSEMBLE_FILE
from ..prompts.plots import CURVES_FILE, FIELD_FILE, save_curves
from ..prompts.repository_files import PROMPT_FILES
from ..training.learned import TO_TRY
from ..training.recipes import AUTO
from ..training.scorer import Scorer
from ..training.trainer import PromptTuningTrainer
from .field_choice import order
from .field_end import FieldEnd, is_clear, wins_of
from .field_rounds import FieldRounds
from .voting import vote

logger = logging.getLogger(__name__)


class FieldTrainer(FieldRounds):
    """Trainer of the recipe auto: find the learning rate and the start of a prompt in one run.

    A field of prompts trains together, with learning rates of 0.003 to 0.3 and two starts. At set steps the prompts
    whose loss on rows held apart is in the worse half are dropped: they get no more rows, and no longer change. A
    prompt whose loss or gradient is not finite goes at once. The schedule of each spans the whole run. The last two
    train to the end. Then the better of the two is kept, or their average or their vote where that is better on the
    rows held apart. Without evaluation data, and with fewer than 500 training rows, the last round leaves one prompt
    instead, which then learns from the rows held apart, too.

    Before `train`, the trainer evaluates and saves as `EnsembleTrainer`. After it, it is the trainer of one prompt; or
    of an ensemble of two, if the vote won.

    Args:
        model: a plain backbone.
        args: as in `PromptTuningTrainer`. `recipe_budget` bounds the cost, `recipe_lengths` are the prompts' lengths.
        prompt_config: the prompt's own start, its length and its place; default 20 words drawn from the vocabulary.
        train_dataset: rows of raw columns.
        eval_dataset: the rows held apart; default a part of the training rows (`rows_apart`).
        processing_class: the tokenizer; for rows with pictures, the processor.
        template: turns a row into text.
        **kwargs: as in `PromptTuningTrainer`.

    Attributes:
        end: what the field ended with; None before the end of `train`.
        learns_from_all: whether the prompt that is left learns from the rows held apart, too.

    Raises:
        PromptTuningError: the budget is too small, a setting is given that the recipe finds, or `EnsembleTrainer`
            refuses an argument.
    """

    end: FieldEnd | None = None

    @property
    def members(self) -> list[str]:
        """The names of the prompts that train; after the end, of those that are kept."""
        return [self.end.prompt] if self._is_one else super().members

    @property
    def _is_one(self) -> bool:
        """Whether the field has ended with one prompt."""
        return self.end is not None and self.end.kind != "vote"

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the field, and keep what is best on the rows held apart.

        Arguments and errors are those of `PromptTuningTrainer.train`; also raise PromptTuningError if the field has
        ended before, and FloatingPointError if no prompt has a finite loss. The cost is in the metrics, as
        `recipe_cost`.
        """
        if self.end is not None:
            raise PromptTuningError("the field has ended; make a new FieldTrainer, or train its prompt on as one.")
        self._progress.begin(self._rounds)
        steps, apart = self.args.max_steps, len(self._apart)
        logger.info(
            "The field has %d prompts; rounds end at the steps %s of %d. It costs %.2f ordinary runs. Prompts are "
            "compared on %d rows held apart%s%s.",
            *(len(self.tasks), ", ".join(str(end.step) for end in self._rounds), steps, self.cost, apart),
            ", which are training rows" if self._holds_training_rows else "",
            ", and the last one then learns from these, too" if self.learns_from_all else "",
        )
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._keep_the_last() if self.learns_from_all else self._decide()
        output.metrics["recipe_cost"] = self.cost
        return output

    def _decide(self) -> None:
        """Keep the better of the two prompts that are left, or their average or vote (`FieldEnd`)."""
        losses, results, labels = self._losses_apart()
        model, names = self.unwrapped, self.members
        prompt = order(losses)[0]
        model.set_adapter(prompt)
        kind, scores = "one", results.label_scores
        predicted = None if scores is None else scores[:, names.index(prompt)].argmax(1)
        if len({len(self.prompts[name]) for name in names}) == 1:
            average = torch.stack([self.prompts[name].detach() for name in names]).mean(0)
            with model.replaced_prompt(average):
                output = self._alone()
            losses["average"] = output.metrics["apart_loss"]
            if order(losses)[0] == "average":
                kind, found = "average", output.predictions.label_scores
                predicted = None if found is None else found.argmax(1)
        wins = None if scores is None else wins_of(vote(scores), predicted, labels)
        if wins is not None and is_clear(wins):
            kind = "vote"
        elif kind == "average":
            with torch.no_grad():
                self.prompts[prompt].copy_(average)
        self._set_end(kind, prompt, losses, wins)

    def _keep_the_last(self) -> None:
        """Keep the prompt that the last round left. It has learned from the rows held apart, so none is compared."""
        last = self._progress.rounds[-1]
        prompt = last["stay"][0]
        self.unwrapped.set_adapter(prompt)
        self._set_end("one", prompt, dict(last["losses"]), None)

    def _set_end(self, kind: str, prompt: str, losses: dict[str, float], wins: tuple[int, int] | None) -> None:
        names = self.members
        with self.unwrapped.disable_adapter():
            losses["no prompt"] = self._alone().metrics["apart_loss"]
        self.end = FieldEnd(kind, prompt, losses, len(self._apart), wins)
        self._say_end(names)

    def _say_end(self, names: Sequence[str]) -> None:
        end, both = self.end, " and ".join(map(self._named, names))
        what = {"one": self._named(end.prompt), "average": f"the average of {both}", "vote": f"the vote of {both}"}
        of_vote = (
            ""
            if end.wins is None
            else " On {} rows the vote alone is right, on {} one prompt alone.".format(*end.wins)
        )
        told = ", ".join(f"{name} {loss:.4g}" for name, loss in end.losses.items())
        before = ", before they were learned from" if self.learns_from_all else ""
        logger.info(
            "The field ends with %s. Losses on the rows held apart%s: %s.%s", what[end.kind], before, told, of_vote
        )
        if order(end.losses)[0] == "no prompt":
            logger.warning(
                "Nothing was learned: no prompt's loss on the rows held apart is lower than without one. %s", TO_TRY
            )

    def make_scorer(self, **options: Any) -> Scorer:
        """Return the scorer of the prompts that train and their vote, or of the one prompt that is kept."""
        return self.scorer_of_prompt(**options) if self._is_one else super().make_scorer(**options)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `EnsembleTrainer` does; with one prompt, as `PromptTuningTrainer`."""
        if self._is_one:
            return PromptTuningTrainer.evaluate(self, *args, **kwargs)
        return super().evaluate(*args, **kwargs)

    def evaluate_transfer(self, datasets: dict[str, Any]) -> dict[str, float]:
        """Evaluate other domains as `EnsembleTrainer` does; with one prompt, as `PromptTuningTrainer`."""
        if self._is_one:
            return PromptTuningTrainer.evaluate_transfer(self, datasets)
        return super().evaluate_transfer(datasets)

    @property
    def best_member(self) -> str:
        """The better prompt on the rows held apart; before the end, as in `EnsembleTrainer`."""
        return super().best_member if self.end is None else self.end.prompt

    @property
    def saved_prompts(self) -> list[str]:
        """The prompts that a save writes: those that are left, and in a checkpoint all."""
        return list(self.tasks) if self.is_saving_checkpoint else self.members

    def describe_prompt(self, name: str) -> None:
        """Record the run as `MultiPromptTrainer` does, and what the field was."""
        super().describe_prompt(name)
        record = {"recipe": AUTO, "field_prompts": len(self.tasks), "field_cost": round(self.cost, 4)}
        record |= {"rows_held_apart": len(self._apart), "of_the_training_rows": self._holds_training_rows}
        record["learned_from_later"] = self.learns_from_all
        if failed := self._progress.failed:
            record["field_failed"] = [entry["prompt"] for entry in failed]
        if self.end is not None:
            record["field_end"] = self.end.kind
        self.unwrapped.prompt_info[name].training |= record

    def _save_prompts(self, folder: Path, repo_id: str | None, card: bool) -> None:
        if self._is_one and card:
            self._save_one(folder, repo_id)
        else:
            super()._save_prompts(folder, repo_id, card)
        if card:
            self._draw(folder)

    def _save_one(self, folder: Path, repo_id: str | None) -> None:
        """Save the prompt that is kept in `folder` itself, where PEFT saves the prompt of one that is alone."""
        model, name = self.unwrapped, self.end.prompt
        self.describe_prompt(name)
        with temporary_folder() as made:
            model.save_pretrained(made, selected_adapters=[name], card=False)
            folder.mkdir(parents=True, exist_ok=True)
            for file in (made / name).iterdir():
                shutil.copy(file, folder)
        for file in (ENSEMBLE_FILE, CURVES_FILE):  # of an earlier run
            (folder / file).unlink(missing_ok=True)
        prompt, config = model.prompt_encoder[name], model.peft_config[name]
        write_start_and_card(folder, prompt, config, model.base_model, repo_id)

    def _draw(self, folder: Path) -> None:
        """Draw the losses of all prompts of the field: in training, and at the ends of rounds on the rows apart."""
        histories = {}
        for name in self.tasks:
            logged = [[log["step"], log[f"loss_{name}"]] for log in self.state.log_history if f"loss_{name}" in log]
            apart = [[end["step"], end["losses"][name]] for end in self._progress.rounds if name in end["losses"]]
            histories[self._named(name)] = {"loss": logged, "eval_loss": apart}
        save_curves(folder, histories, FIELD_FILE)

    def _write_root(self, model: SoftPrompts, folder: Path, repo_id: str | None) -> None:
        self._description.members = self.members
        super()._write_root(model, folder, repo_id)

    @property
    def pushed_files(self) -> list[str]:
        """The paths in `output_dir` of all files that a push may contain."""
        return [FIELD_FILE, *(PROMPT_FILES if self._is_one else super().pushed_files)]

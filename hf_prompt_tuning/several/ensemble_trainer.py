"""Train several prompts for one task in one run, as an ensemble (Lester et al. 2021, section 6)."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from ..data.collator import DataCollatorForPromptTuning
from ..data.encoding import encode_data, with_label_words
from ..data.template import PromptTemplate
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..models.metric_direction import greater_is_better
from ..models.recording import to_record
from ..models.scoring import (
    classification_metrics,
    decode,
    generate_within,
    label_nll,
    loss_metrics,
    rank_labels,
    text_metrics,
)
from ..models.soft_prompts import SoftPrompts
from ..models.wrapping import check_backbone
from ..prompts.card import write_card
from ..prompts.ensemble_info import ENSEMBLE_FILE, EnsembleInfo
from ..prompts.files import CONFIG_FILE, START_FILE, WEIGHTS_FILE
from ..prompts.plots import save_pictures
from ..prompts.repository_files import PROMPT_FILES
from ..training.token_rows import ColumnCheck
from ..training.trainer import PromptTuningTrainer
from .task import PromptTask
from .trainer import MultiPromptTrainer
from .voting import vote, vote_on_texts


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
        encoder = PromptTokenizer(template, processing_class, model.config.is_encoder_decoder)
        ours = isinstance(kwargs.get("data_collator"), DataCollatorForPromptTuning | None)
        check = ColumnCheck(model, getattr(args, "remove_unused_columns", True), ours, alone=False)
        check(train_dataset, "training", template)
        check(eval_dataset, "evaluation", template)
        # Tokenize once for all members.
        train = encode_data(train_dataset, "training", encoder, None, require_target=True)
        evaluation = encode_data(eval_dataset, "evaluation", encoder, None, require_target=False)
        data = {"train_dataset": train, "eval_dataset": evaluation, "template": template}
        super().__init__(model, args, [replace(member, **data) for member in members], processing_class, **kwargs)
        self.eval_dataset = evaluation
        self.members = list(self.tasks)
        self._limit = None if None in self._limits.values() else min(self._limits.values())
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

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, tuple[Tensor, ...], Tensor]:
        """Return results per row as `PromptTuningTrainer` does, for G prompts at once.

        The results are negative log-likelihoods [B, G] and token counts [B], then label scores [B, G, L] or generated
        ids [B, G, T']. Without prompts (`evaluate_untuned`) there is no dimension G.
        """
        unwrapped = self.accelerator.unwrap_model(model)
        if unwrapped._adapters_disabled:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        gold = inputs.pop("label", None)
        size, many = len(inputs["input_ids"]), len(self.members)
        rows = {name: value.repeat(many, 1) for name, value in inputs.items()}
        rows["adapter_names"] = [name for name in self.members for _ in range(size)]
        with torch.no_grad(), self.compute_loss_context_manager():
            if gold is not None and not prediction_loss_only:
                ids, seq2seq = self._encoder.label_token_ids, self._encoder.is_encoder_decoder
                scores = rank_labels(model, rows, ids, seq2seq).view(many, size, -1).transpose(0, 1)
                sizes = torch.tensor([len(words) for words in ids], device=scores.device)
                known, index = gold >= 0, gold.clamp(min=0)
                right = scores.gather(2, index[:, None, None].expand(-1, many, 1))[..., 0]
                return None, (torch.where(known[:, None], -right, 0.0), sizes[index] * known, scores), gold
            nll, tokens = label_nll(model, rows)
            found = nll.view(many, size).T, tokens.view(many, size)[0]
            if not prediction_loss_only and getattr(self.args, "predict_with_generate", True):
                found += (self._texts_of_all(unwrapped, rows),)
        return None, found, inputs["labels"]

    def _texts_of_all(self, model: Any, rows: dict[str, Any]) -> Tensor:
        """Return the ids that each prompt generates, [B, G, T'], padded with -100."""
        limit = self._generation_limit()
        ids = generate_within(model, rows, self.processing_class, limit)
        # Pad to the same width in every batch, because the batches are concatenated later.
        ids = nn.functional.pad(ids, (0, limit - ids.shape[1]), value=IGNORED)
        return ids.view(len(self.members), -1, limit).transpose(0, 1)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        nll, tokens, *detail = prediction.predictions
        if nll.ndim == 1:
            return super()._compute_metrics(prediction)
        template = self._encoder.template
        outputs, references = self._readable(detail, prediction.label_ids)
        self._own = {}
        for g, name in enumerate(self.members):
            own = loss_metrics(nll[:, g], tokens)
            if outputs is not None and template.is_classification:
                own |= classification_metrics(outputs[:, g], references)
                if self._described is not None:
                    info = self.accelerator.unwrap_model(self.model).prompt_info[name]
                    self._describe_scores(info, outputs[:, g], references)
            elif outputs is not None:
                own |= text_metrics([texts[g] for texts in outputs], references)
            self._own[name] = own
        losses = [own["loss"] for own in self._own.values() if "loss" in own]
        self._vote = {"loss": sum(losses) / len(losses)} if losses else {}
        self._vote |= self._metrics_of_the_vote(outputs, references, prediction)
        return {f"{name}_{key}": value for name, own in self._own.items() for key, value in own.items()} | self._vote

    def _metrics_of_the_vote(self, outputs: Any, references: Any, prediction: EvalPrediction) -> dict[str, Any]:
        if outputs is None:
            return {}
        if self._encoder.template.is_classification:
            decided = vote(outputs)
            metrics = classification_metrics(np.eye(outputs.shape[2])[decided], references)
        else:
            decided = [vote_on_texts(texts) for texts in outputs]
            metrics = text_metrics(decided, references)
        return metrics | self._callers_metrics(decided, references, prediction)

    def _readable(self, detail: list[np.ndarray], labels: np.ndarray) -> tuple[Any, Any]:
        if not detail or self._encoder.template.is_classification or detail[0].ndim == 2:
            return super()._readable(detail, labels)
        by_member = [decode(detail[0][:, g], self.processing_class) for g in range(len(self.members))]
        return [list(texts) for texts in zip(*by_member, strict=True)], self._references(labels)

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
        metrics = self._evaluated(model.info if own else None, eval_dataset, ignore_keys, metric_key_prefix)
        if own:
            for name in self.members:
                model.prompt_info[name].metrics = _as_evaluation(self._own[name])
            self._vote_metrics = _as_evaluation(self._vote)
            self._check_best()
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
            metrics, rows = self._transferred(name, data)
            for member in self.members:
                model.prompt_info[member].transfer[name] = to_record(self._own[member]) | {"rows": rows}
            self._vote_transfer[name] = to_record(self._vote) | {"rows": rows}
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
        default = "accuracy" if self._encoder.template.is_classification else "loss"
        return (self.args.metric_for_best_model or default).removeprefix("eval_")

    def _check_best(self) -> None:
        """Raise PromptTuningError if the members' metrics do not contain `metric_for_best_model`."""
        if self.args.metric_for_best_model and not any(self._deciding in own for own in self._own.values()):
            known = ", ".join(next(iter(self._own.values())))
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

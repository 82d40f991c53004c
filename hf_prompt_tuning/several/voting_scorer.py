"""Score rows with all prompts of an ensemble at once, and compute the metrics of each prompt and of their vote."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import EvalPrediction

from ..layouts.base import IGNORED
from ..models.scoring import classification_metrics, decode, text_metrics
from ..prompts.info import PromptInfo
from ..training.scorer import RowResults, Scorer
from .voting import by_member, for_members, vote, vote_on_texts


@dataclass(frozen=True)
class VotingScorer(Scorer):
    """Score the rows of an ensemble of G prompts.

    `RowResults` has a dimension G after B, except in `tokens`.

    Attributes:
        members: names of the G prompts.
        infos: descriptions of the members, by name, in which to record confusion matrix and calibration; empty to
            record nothing.
        of_members: each member's metrics by name; `metrics` sets it.
        of_vote: the metrics of the vote; `metrics` sets it.
    """

    members: tuple[str, ...] = ()
    infos: Mapping[str, PromptInfo] = field(default_factory=dict)
    of_members: dict[str, dict[str, float]] = field(default_factory=dict)
    of_vote: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_all_scores(self) -> bool:
        """Tell that a tie is decided by the scores of all members."""
        return True

    def score(self, model: nn.Module, batch: dict[str, Any], loss_only: bool = False) -> tuple[RowResults, Tensor]:
        """Return the results of a batch's rows for all members, as `Scorer.score` does, with one call of the model."""
        results, references = super().score(model, for_members(batch, self.members), loss_only)
        if (ids := results.generated_ids) is not None:
            # Pad to the same width in every batch, because the batches are concatenated later.
            results.generated_ids = nn.functional.pad(ids, (0, self.max_new_tokens - ids.shape[1]), value=IGNORED)
        of_members = {name: by_member(value, self.members) for name, value in results.items()}
        size = len(batch["input_ids"])
        return RowResults(of_members | {"tokens": results.tokens[:size]}), references[:size]

    def readable(self, results: RowResults, references: np.ndarray) -> tuple[Any, Any]:
        """Return predictions and references as `Scorer.readable` does: label scores [N, G, L], or G texts per row."""
        if results.generated_ids is None:
            return super().readable(results, references)
        texts = [decode(ids, self.encoder.tokenizer) for ids in results.generated_ids]
        return texts, self.reference_texts(references)

    def metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Return the metrics of each member, named `NAME_accuracy` and so on, and those of the vote."""
        results = prediction.predictions
        outputs, references = self.readable(results, prediction.label_ids)
        for g, name in enumerate(self.members):
            member = RowResults({key: value if key == "tokens" else value[:, g] for key, value in results.items()})
            of_member = [texts[g] for texts in outputs] if isinstance(outputs, list) else member.label_scores
            self.of_members[name] = self.metrics_of(member, of_member, references, self.infos.get(name))
        losses = [metrics["loss"] for metrics in self.of_members.values() if "loss" in metrics]
        self.of_vote.update({"loss": sum(losses) / len(losses)} if losses else {})
        self.of_vote.update(self._metrics_of_the_vote(outputs, references, prediction))
        named = {f"{name}_{key}": value for name, own in self.of_members.items() for key, value in own.items()}
        return named | self.of_vote

    def _metrics_of_the_vote(self, outputs: Any, references: Any, prediction: EvalPrediction) -> dict[str, Any]:
        if outputs is None:
            return {}
        if isinstance(outputs, list):
            decided: Any = [vote_on_texts(texts) for texts in outputs]
            metrics = text_metrics(decided, references)
        else:
            decided = vote(outputs)
            metrics = classification_metrics(np.eye(outputs.shape[2])[decided], references)
        return metrics | self.callers_metrics(decided, references, prediction)

"""Rank labels behind any vectors and any weights, for quality.py, and watch a run: seconds, rows and prompts."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from hf_prompt_tuning import (
    DataCollatorForPromptTuning,
    PromptTemplate,
    PromptTuningConfig,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.models.scoring import rank_labels
from hf_prompt_tuning.several.voting import vote

RANKED_AT_ONCE = 16


class Ranker:
    """Rank the template's labels with a backbone, which may change: all methods are evaluated here.

    `place` is where vectors stand, a `prompt_position`. Make it before a LoRA is put into the backbone.
    """

    def __init__(
        self, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, place: str
    ):
        config = PromptTuningConfig(num_virtual_tokens=1, prompt_tuning_init="RANDOM", prompt_position=place)
        self.model = get_prompt_tuning_model(backbone, config, tokenizer, template, frozen=False)
        self.encoder = self.model.row_encoder(tokenizer)

    def scores(self, rows: Dataset, vectors: Tensor | None) -> Tensor:
        """Return the log-likelihood of every label's words after every row, [N, L] fp32, in the order of the rows.

        `rows` are of `encoder.encode_dataset`. The rows stand behind `vectors`, [P, H], or behind nothing.
        """
        backbone = self.model.get_base_model()
        was_training = backbone.training
        order = sorted(range(len(rows)), key=lambda i: -rows[i]["length"])
        scores = torch.empty(len(rows), len(self.encoder.label_token_ids))
        collate, ids = DataCollatorForPromptTuning(), self.encoder.label_token_ids
        behind = self.model.disable_adapter() if vectors is None else self.model.replaced_prompt(vectors)
        self.model.eval()
        with behind:
            for start in range(0, len(order), RANKED_AT_ONCE):
                part = order[start : start + RANKED_AT_ONCE]
                batch = collate([rows[i] for i in part])
                batch = {name: batch[name].to(backbone.device) for name in ("input_ids", "attention_mask", "labels")}
                scores[part] = rank_labels(self.model, batch, ids, False).cpu()
        self.model.train(was_training)
        return scores

    def metrics(self, rows: Dataset, *prompts: Tensor | None) -> dict[str, float]:
        """Return the accuracy, macro F1 and the mean negative log-likelihood of the right label's words.

        `prompts` are vectors as for `scores`; several vote, and their losses are averaged.
        """
        scores = torch.stack([self.scores(rows, vectors) for vectors in prompts], 1)
        labels, predicted = torch.tensor(rows["label"]), vote(scores.numpy())
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "f1": float(f1_score(labels, predicted, average="macro")),
            "loss": float(-scores.mean(1)[torch.arange(len(labels)), labels].mean()),
        }


class CountingCollator:
    """Make batches as `DataCollatorForPromptTuning` does, padded at the right, and count their rows."""

    def __init__(self):
        self.rows = 0
        self._collate = DataCollatorForPromptTuning()

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        self.rows += len(features)
        return self._collate(features)


class Watch(TrainerCallback):
    """Count the seconds of a run's steps, and evaluate it at some points, which do not count.

    Args:
        points: the number of evaluations, evenly spread over the steps.
        evaluate: returns the metrics of the rows that are watched.

    Attributes:
        seconds: the processor's seconds of the steps, which other programs hardly change; on a GPU, the clock's.
        wall_seconds: the clock's seconds of the steps.
        curve: for each point the steps, the seconds until then, accuracy and macro F1.
    """

    def __init__(self, points: int, evaluate: Callable[[], dict[str, float]]):
        self.points, self.evaluate = points, evaluate
        self.seconds = self.wall_seconds = 0.0
        self.curve: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks = {-(-state.max_steps * i // self.points) for i in range(1, self.points + 1)}

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds, wall_seconds = (end - start for end, start in zip(now(), self._start, strict=True))
        self.seconds += seconds
        self.wall_seconds += wall_seconds
        if state.global_step in self.marks:
            self.add_point(state.global_step)

    def add_point(self, step: int) -> None:
        """Evaluate now."""
        found = self.evaluate()
        point = [step, self.seconds, found["accuracy"], found["f1"]]
        self.curve.append([round(value, 4) for value in point])


class Steps(TrainerCallback):
    """Keep the prompt after every step, before the end of the run puts a mean in its place.

    Attributes:
        prompts: one for each step, [P, H].
    """

    def __init__(self):
        self.prompts: list[Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.prompts.append(model.prompt.detach().clone())

    def mean_of_last(self, share: float) -> Tensor:
        return torch.stack(self.prompts[-max(1, round(share * len(self.prompts))) :]).mean(0)


def now() -> tuple[float, float]:
    """Return the seconds that are compared (see `Watch`), and those of the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter(), time.perf_counter()
    return time.process_time(), time.perf_counter()

"""TRL's trainers, which know nothing of prompts: where a step of descent moves one."""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from ..families import CAUSAL
from ..rows import IGNORED
from ..tables import TEXTS
from ..world import Setting, World
from .foreign_trainers import STEP, Step, StepEntry, score

BETA = 0.4
COMPLETIONS = (" complaint", " no complaint at all", " да", " a")


@dataclass(frozen=True)
class Texts:
    """Prompts and completions, as they are drawn.

    Attributes:
        texts: of each row, the place of its prompt in `TEXTS`.
        seed: of the samples.
    """

    texts: tuple[int, ...]
    seed: int

    def prompt(self, row: int) -> str:
        return f"Message : {TEXTS[self.texts[row]].strip()} Label :"


class TrlEntry(StepEntry):
    """A trainer of TRL."""

    # TRL adds the routers' loss to those of experts, and fails with Llama 4, also without a prompt.
    families = [name for name in CAUSAL if name not in ("llama4", "jamba", "gpt_oss")]  # noqa: RUF012
    kind: type[Trainer]
    config: type[TrainingArguments]
    least = 1
    options: dict[str, Any] = {}  # noqa: RUF012

    def arguments(self, draw: Any, setting: Setting) -> Texts:
        texts = draw(st.lists(st.integers(0, len(TEXTS) - 1), min_size=self.least, max_size=4, unique=True))
        return Texts(tuple(texts), draw(st.integers(0, 5)))

    def data(self, asked: Texts, row: int) -> dict[str, Any]:
        """One row as TRL takes it."""
        raise NotImplementedError

    def values(self, asked: Texts) -> dict[str, Any]:
        """Of the config."""
        return {"per_device_train_batch_size": len(asked.texts)}

    def trainer(self, world: World, asked: Texts, tokenizer: PreTrainedTokenizerBase, folder: str) -> Trainer:
        data = Dataset.from_list([self.data(asked, row) for row in range(len(asked.texts))])
        args = self.config(folder, bf16=False, **STEP | self.values(asked))
        return self.kind(model=world.model, args=args, train_dataset=data, processing_class=tokenizer, **self.options)


def _two(asked: Texts, row: int) -> tuple[str, str]:
    place = asked.texts[row]
    return COMPLETIONS[place % 4], COMPLETIONS[(place + 1) % 4]


class Sft(TrlEntry):
    """The loss of completions."""

    name, cases, kind, config = "SFTTrainer", 80, SFTTrainer, SFTConfig

    def data(self, asked: Texts, row: int) -> dict[str, Any]:
        return {"prompt": asked.prompt(row), "completion": _two(asked, row)[0]}

    def loss(self, world: World, step: Step, vectors: Tensor) -> Tensor:
        total, count = torch.zeros(()), 0
        for row in step.rows:
            ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            start = int((labels == IGNORED).sum())
            total, count = total - score(world, vectors, ids[:start], ids[start:]), count + len(ids) - start
        return total / count


class Dpo(TrlEntry):
    """Against the prompt as it was before."""

    name, cases, kind, config = "DPOTrainer", 80, DPOTrainer, DPOConfig

    def data(self, asked: Texts, row: int) -> dict[str, Any]:
        chosen, rejected = _two(asked, row)
        return {"prompt": asked.prompt(row), "chosen": chosen, "rejected": rejected}

    def values(self, asked: Texts) -> dict[str, Any]:
        return super().values(asked) | {"beta": BETA}

    def loss(self, world: World, step: Step, vectors: Tensor) -> Tensor:
        margins = []
        for row in step.rows:
            new, old = (
                [score(world, prompt, row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids")]
                for prompt in (vectors, step.before)
            )
            margins.append((new[0] - old[0]) - (new[1] - old[1]))
        return -logsigmoid(BETA * torch.stack(margins)).mean()


class Kto(TrlEntry):
    """At the first step nothing has moved from the reference, so the point of zero is 0."""

    name, cases, kind, config, least = "KTOTrainer", 60, KTOTrainer, KTOConfig, 2

    def data(self, asked: Texts, row: int) -> dict[str, Any]:
        return {"prompt": asked.prompt(row), "completion": _two(asked, row)[0], "label": row % 2 == 0}

    def values(self, asked: Texts) -> dict[str, Any]:
        return super().values(asked) | {"beta": BETA}

    def loss(self, world: World, step: Step, vectors: Tensor) -> Tensor:
        losses = []
        for row in step.rows:
            new, old = (
                score(world, prompt, row["prompt_ids"], row["completion_ids"]) for prompt in (vectors, step.before)
            )
            losses.append(1 - torch.sigmoid(BETA * (new - old) * (1 if row["label"] else -1)))
        return torch.stack(losses).mean()


class _Watched(GRPOTrainer):
    """Keeps what its step is given."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        self.given = super()._prepare_inputs(inputs)
        return self.given


def _reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


class Grpo(TrlEntry):
    """The gain of samples over the others of their prompt; at the first step no sample is cut."""

    name, cases, kind, config = "GRPOTrainer", 60, _Watched, GRPOConfig
    options = {"reward_funcs": _reward}  # noqa: RUF012

    def data(self, asked: Texts, row: int) -> dict[str, Any]:
        return {"prompt": asked.prompt(row)}

    def values(self, asked: Texts) -> dict[str, Any]:
        size = 2 * len(asked.texts)
        return {
            "per_device_train_batch_size": size,
            "num_generations": 2,
            "max_completion_length": 1 + asked.seed % 3,
            "beta": 0.0,
            "seed": asked.seed,
        }

    def rows(self, trainer: Trainer) -> list[Any]:
        given = trainer.given
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        columns = zip(*(given[name] for name in names), strict=True)
        return [(ids[shown.bool()], words[kept.bool()]) for ids, shown, words, kept in columns]

    def loss(self, world: World, step: Step, vectors: Tensor) -> Tensor:
        rewards = torch.tensor(_reward([words.tolist() for _, words in step.rows]))
        total, count = torch.zeros(()), 0
        for row, (ids, words) in enumerate(step.rows):
            # The trainer has shuffled the samples.
            group = rewards[[torch.equal(ids, other) for other, _ in step.rows]]
            gain = (rewards[row] - group.mean()) / (group.std() + 1e-4)
            new = score(world, vectors, ids, words)
            # Each token's ratio is 1, and has the gradient of its log-likelihood.
            total, count = total - gain * (len(words) + new - new.detach()), count + len(words)
        return total / count

"""transformers' `Trainer` and TRL's trainers, which know nothing of prompts: where a step of descent moves one."""

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from .. import oracle
from ..families import CAUSAL
from ..rows import IGNORED, Rows, batch_of, rows
from ..tables import TEXTS
from ..tokenizers import tokenizer_of
from ..world import Setting, World
from .base import EntryPoint
from .trainers import QUIET, SINGLE

RATE, BETA = 0.5, 0.4
STEP = QUIET | dict(
    optim="sgd",
    lr_scheduler_type="constant",
    learning_rate=RATE,
    max_grad_norm=0.0,
    max_steps=1,
    dataloader_pin_memory=False,
)
COMPLETIONS = (" complaint", " no complaint at all", " да", " a")


@dataclass(frozen=True)
class Step:
    """What a trainer gave: the prompt before and after its step, the loss, and the rows as it encoded them."""

    before: Tensor
    after: Tensor
    loss: float
    rows: list[Any]


class StepEntry(EntryPoint):
    """One step of gradient descent over all rows, beside the same step by hand."""

    befores, dtypes = SINGLE, ("float32",)
    free = ("modes", "config", "generation config", "hooks")  # TRL gives the backbone a forward of its own

    def trainer(self, world: World, asked: Any, tokenizer: PreTrainedTokenizerBase, folder: str) -> Trainer:
        raise NotImplementedError

    def rows(self, trainer: Trainer) -> list[Any]:
        """As the trainer encoded them."""
        return list(trainer.train_dataset)

    def loss(self, world: World, step: Step, vectors: Tensor) -> Tensor:
        """The loss by hand, with these vectors as the prompt."""
        raise NotImplementedError

    def call(self, world: World, asked: Any) -> Step:
        tokenizer = tokenizer_of(world.setting.family)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        before = world.prompt(world.active)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(world, asked, tokenizer, folder)
            trainer.remove_callback(PrinterCallback)
            loss = trainer.train().training_loss
        after = world.prompt(world.active)
        if "ref" in world.model.peft_config:
            world.model.delete_adapter("ref")
        return Step(before, after, loss, self.rows(trainer))

    def check(self, world: World, asked: Any, got: Step) -> None:
        vectors = got.before.clone().requires_grad_()
        loss = self.loss(world, got, vectors)
        world.require_close("loss", got.loss, loss)
        (gradient,) = torch.autograd.grad(loss, vectors, allow_unused=True) if loss.requires_grad else (None,)
        gradient = torch.zeros_like(vectors) if gradient is None else gradient
        scale = gradient.abs().max().clamp(min=1e-2)
        world.require_close("step", (got.before - got.after) / RATE / scale, gradient / scale)


def score(world: World, prompt: Tensor, ids: Any, words: Any) -> Tensor:
    """The log-likelihood of words behind a text."""
    return oracle.score(world.bare, prompt, torch.as_tensor(ids), torch.as_tensor(words))


class VanillaTrainer(StepEntry):
    """transformers' own, on rows of token ids."""

    name, cases = "Trainer", 150

    def arguments(self, draw: Any, setting: Setting) -> Rows:
        return draw(rows(mask=True))

    def trainer(self, world: World, asked: Rows, tokenizer: PreTrainedTokenizerBase, folder: str) -> Trainer:
        given = batch_of(asked, world.setting.family)
        data = [
            {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": labels.tolist()}
            for ids, labels in zip(given.texts, given.targets, strict=True)
        ]
        if not (asked.specials or world.family.is_encoder_decoder):
            for row in data:  # else it is refused where Trainer does not count it
                row["labels"][0] = IGNORED
        tokenizer.padding_side = "left" if asked.pads == "left" else "right"
        args = TrainingArguments(folder, per_device_train_batch_size=len(data), **STEP)
        collator = DataCollatorForSeq2Seq(tokenizer)
        return Trainer(world.model, args, data_collator=collator, train_dataset=Dataset.from_list(data))

    def loss(self, world: World, step: Step, vectors: Tensor) -> Tensor:
        found = [
            oracle.nll(world.bare, vectors, torch.tensor(row["input_ids"]), torch.tensor(row["labels"]))
            for row in step.rows
        ]
        return sum(nll for nll, _ in found) / max(sum(count for _, count in found), 1)


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

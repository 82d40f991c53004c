"""transformers' `Trainer`, which knows nothing of prompts: where a step of descent moves one."""

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from .. import oracle
from ..rows import IGNORED, Rows, batch_of, rows
from ..tokenizers import tokenizer_of
from ..world import Setting, World
from .base import EntryPoint
from .trainers import QUIET, SINGLE

RATE = 0.5
STEP = QUIET | dict(
    optim="sgd",
    lr_scheduler_type="constant",
    learning_rate=RATE,
    max_grad_norm=0.0,
    max_steps=1,
    dataloader_pin_memory=False,
)


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

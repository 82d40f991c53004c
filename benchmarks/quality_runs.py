"""A run of quality.py: what a method is given, and how it trains under transformers' Trainer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

# Run as a script, a benchmark finds the files beside it.
from quality_ranking import CountingCollator, Ranker, Watch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_prompt_tuning import PromptTuningConfig

BATCH = 8


@dataclass
class Run:
    """What a method is given, and what it counts.

    Attributes:
        backbone: the method's own copy, all of whose parameters train.
        raw: the training rows as they are in the file.
        rows: the encoded training rows.
        text: the words that a prompt starts from; None for words of the vocabulary.
        ranker: ranks with the backbone.
        watch: counts seconds and evaluates; its `evaluate` reads `prompts`.
        prompts: returns what the rows stand behind when they are ranked: vectors [P, H], or None; several vote.
        ends: for a training that several methods share, the prompts that each of them ends with.
        trained: the number of trained numbers.
        rows_seen: the number of rows that were trained on, by default those of the batches.
        callbacks: further callbacks of the trainer.
    """

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ranker: Ranker
    raw: Dataset
    rows: Dataset
    text: str | None
    labels: Sequence[str]
    seed: int
    epochs: float
    rate: float | None
    folder: str
    prompts: Callable[[], Sequence[Tensor | None]] = field(default=lambda: [None])
    ends: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    watch: Watch = field(default_factory=lambda: Watch(0, dict))
    collator: CountingCollator = field(default_factory=CountingCollator)
    trained: int = 0
    rows_seen: int | None = None
    callbacks: Sequence[TrainerCallback] = ()

    def train(self, kind: type[Trainer], model: nn.Module, args: TrainingArguments, **options: Any) -> Trainer:
        """Train the model's trainable parameters on the rows. Return the trainer."""
        self.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        trainer = kind(model, args, data_collator=self.collator, callbacks=[self.watch, *self.callbacks], **options)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer

    def train_plainly(self, model: nn.Module, **values: Any) -> None:
        """Train under transformers' own Trainer, whose models take no label index."""
        rows = self.rows.select_columns(["input_ids", "labels"])
        args = TrainingArguments(**self.arguments() | {"learning_rate": self.rate, **values})
        args.dataloader_pin_memory = args.device.type != "cpu"
        self.train(Trainer, model, args, train_dataset=rows)

    def train_several(self, kind: type[Trainer], args: TrainingArguments, **options: Any) -> Trainer:
        """Train several prompts at once. The curve has their end alone: only then it is known which ones are kept."""
        self.watch.points = 0
        template = self.ranker.encoder.template
        given = {"train_dataset": self.raw, "processing_class": self.tokenizer, "template": template}
        return self.train(kind, self.backbone, args, **given, **options)

    def config(self, **values: Any) -> PromptTuningConfig:
        """Return the config of our prompts, which start from the task's text if there is one."""
        start = {} if self.text is None else {"prompt_tuning_init_text": self.text}
        return PromptTuningConfig(**start | {"prompt_position": "auto"} | values)

    def arguments(self) -> dict[str, Any]:
        """Return the training arguments that all methods share."""
        return {
            "output_dir": self.folder,
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": self.epochs,
            "seed": self.seed,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": self.backbone.device.type == "cpu",
        }

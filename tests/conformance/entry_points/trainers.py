"""`PromptTuningTrainer`: evaluate, predict, predictions.jsonl, and a training step."""

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import PrinterCallback

from hf_prompt_tuning import PromptTemplate, PromptTuningArguments, PromptTuningTrainer
from hf_prompt_tuning.cli.main import save_predictions

from .. import oracle
from ..rows import ends
from ..tables import SOURCES, Table, source_ids, tables, target_ids
from ..tokenizers import tokenizer_of
from ..world import Setting, World, require
from .base import BEFORE, EntryPoint
from .generate import SOON
from .pipelines import written

QUIET = dict(report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no", logging_strategy="no")
SINGLE = [name for name in BEFORE if "thread" not in name]


@dataclass(frozen=True)
class Run:
    """What a trainer is given, as it is drawn.

    Attributes:
        table: the rows.
        batch_size: of an evaluation, or of each accumulated batch of a step.
        side: of the tokenizer's pads.
        grouped: whether training groups rows by length, which evaluation must not.
        shape: of the data: a Dataset or a list of dicts.
    """

    table: Table
    batch_size: int
    side: str
    grouped: bool
    shape: str

    def data(self) -> Any:
        return self.table.dataset() if self.shape == "dataset" else self.table.dataset().to_list()


class TrainerEntry(EntryPoint):
    """What they share: a classification template, one trainer, and the oracle's scores."""

    befores = SINGLE
    free = ("modes", "config")  # transformers turns `use_cache` off for a trainer
    labelled = False

    def arguments(self, draw: Any, setting: Setting) -> Run:
        table = draw(tables(labelled=self.labelled))
        return Run(
            table=table,
            batch_size=draw(st.integers(1, 4)),
            side=draw(st.sampled_from(["right", "left"])),
            grouped=draw(st.booleans()),
            # Plain rows do not say that a number is a name's.
            shape=draw(st.sampled_from(["dataset", "list"])) if table.kind not in ("names", "digits") else "dataset",
        )

    def template(self, run: Run) -> PromptTemplate:
        return run.table.template()

    def others(self, world: World, run: Run, folder: str) -> dict[str, Any]:
        """Other arguments of the trainer."""
        return {}

    def trainer(self, world: World, run: Run, folder: str, **values: Any) -> PromptTuningTrainer:
        tokenizer = tokenizer_of(world.setting.family)
        tokenizer.padding_side = run.side
        values = QUIET | values | {"per_device_eval_batch_size": run.batch_size}
        values |= {"layout": world.setting.layout, "check_layout": world.setting.check_layout}
        if run.grouped:
            values["train_sampling_strategy"] = "group_by_length"
        data = {"train_dataset" if self.labelled else "eval_dataset": run.data()}
        trainer = PromptTuningTrainer(
            model=world.model,
            args=PromptTuningArguments(output_dir=folder, **values),
            processing_class=tokenizer,
            template=self.template(run),
            **data,
            **self.others(world, run, folder),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def candidates(table: Table) -> list[int]:
    """The labels that are candidates: all whose words are given, or those that rows have."""
    return [i for i in range(table.count) if table.given or i in table.labels]


def _scores(world: World, table: Table) -> list[dict[str, Tensor]]:
    """Each row's score of each label's words, by hand."""
    tokenizer, family, found = tokenizer_of(world.setting.family), world.setting.family, []
    words = [table.words_of()[i] for i in candidates(table)]
    for row in range(len(table.texts)):
        ids = source_ids(family, tokenizer, table.source_text(row))
        targets = [target_ids(family, tokenizer, SOURCES[table.source], text) for text in words]
        scores = [oracle.score(world.bare, world.prompt(world.active), ids, target) for target in targets]
        found.append(dict(zip(words, scores, strict=True)))
    return found


def _gold(table: Table, row: int) -> str | None:
    label = table.labels[row]
    return None if label < 0 else table.words_of()[label]


def _require_best(scores: dict[str, Tensor], said: str) -> None:
    best = max(scores, key=scores.get)
    tie = said in scores and float(scores[best] - scores[said]) <= 1e-4 * abs(float(scores[best]))
    require(said == best or tie, f"{said!r} is predicted, not {best!r}")


class Evaluate(TrainerEntry):
    """The loss over all labelled rows' tokens, and the accuracy."""

    name, cases, dtypes = "trainer.evaluate", 200, ("float32",)

    def call(self, world: World, run: Run) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            return self.trainer(world, run, folder).evaluate()

    @torch.no_grad()
    def check(self, world: World, run: Run, got: dict[str, float]) -> None:
        table, tokenizer = run.table, tokenizer_of(world.setting.family)
        scores = _scores(world, table)
        gold = {row: _gold(table, row) for row in range(len(scores)) if _gold(table, row) is not None}
        if not gold:
            require("eval_loss" not in got, "a loss of rows without labels")
            return
        nll = -sum(scores[row][words] for row, words in gold.items())
        source = SOURCES[table.source]
        sizes = sum(len(target_ids(world.setting.family, tokenizer, source, words)) for words in gold.values())
        world.require_close("loss", got["eval_loss"], nll / sizes)
        right = sum(max(scores[row], key=scores[row].get) == words for row, words in gold.items())
        require(abs(got["eval_accuracy"] - right / len(gold)) < 1e-6, f"accuracy {got['eval_accuracy']}, not {right}")


class Predict(TrainerEntry):
    """The labels' scores of each row, in the rows' order."""

    name, cases = "trainer.predict", 200

    def call(self, world: World, run: Run) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(world, run, folder)
            output = trainer.predict(run.data())
            return list(trainer.model.info.template.label_words.values()), output

    @torch.no_grad()
    def check(self, world: World, run: Run, got: Any) -> None:
        words, output = got
        scores = _scores(world, run.table)
        require(sorted(words) == sorted(scores[0]), f"the labels' words are {words}")
        expected = torch.stack([torch.stack([row[word] for word in words]) for row in scores])
        world.require_close("scores", output.predictions, expected)
        gold = [_gold(run.table, row) for row in range(len(scores))]
        said = [None if number < 0 else words[number] for number in output.label_ids]
        require(said == gold, f"references are {said}, not {gold}")


class Predictions(TrainerEntry):
    """`predictions.jsonl`: a line for each row."""

    name, cases, dtypes = "predictions.jsonl", 200, ("float32",)

    def call(self, world: World, run: Run) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            trainer, data = self.trainer(world, run, folder), run.table.dataset()
            file = save_predictions(trainer, trainer.predict(run.data()), data)
            return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]

    @torch.no_grad()
    def check(self, world: World, run: Run, got: list[dict[str, Any]]) -> None:
        scores = _scores(world, run.table)
        require(len(got) == len(scores), f"{len(got)} lines for {len(scores)} rows")
        for row, (line, right) in enumerate(zip(got, scores, strict=True)):
            require(line["row"] == row, f"line {row} is of row {line['row']}")
            require(line["input"] == run.table.source_text(row), f"the input is {line['input']!r}")
            require(line["reference"] == _gold(run.table, row), f"the reference is {line['reference']!r}")
            require(sorted(line["scores"]) == sorted(right), f"the labels' words are {list(line['scores'])}")
            world.require_close(
                "scores", list(line["scores"].values()), torch.stack([right[w] for w in line["scores"]])
            )
            _require_best(right, line["prediction"])


class Texts(TrainerEntry):
    """Free text: what is written behind each row, and the loss of those that have a reference."""

    name, cases, dtypes, limit = "trainer.predict of texts", 150, ("float32",), 16

    def arguments(self, draw: Any, setting: Setting) -> Run:
        run = super().arguments(draw, setting)
        return dataclasses.replace(run, table=dataclasses.replace(run.table, kind="text", given=True))

    def prepare(self, world: World, run: Run) -> None:
        if run.grouped:
            world.backbone.generation_config.eos_token_id = list(SOON)

    def template(self, run: Run) -> PromptTemplate:
        template, target = run.table.template(), "{" + run.table.label_column + "}"
        return dataclasses.replace(
            template, label_column=None, label_words=None, target=target, max_target_length=self.limit
        )

    def call(self, world: World, run: Run) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return self.trainer(world, run, folder).predict(run.data())

    @torch.no_grad()
    def check(self, world: World, run: Run, got: Any) -> None:
        table, family, tokenizer = run.table, world.setting.family, tokenizer_of(world.setting.family)
        total, count = 0.0, 0
        for row, said in enumerate(got.predictions):
            ids = source_ids(family, tokenizer, table.source_text(row))
            expected = written(world, world.active, ids, self.limit, SOON if run.grouped else ends(family))
            require(expected in (said, None), f"row {row}: {said!r}, not {expected!r}")
            if table.labels[row] >= 0:
                reference = table.values[table.labels[row]]
                require(got.label_ids[row] == reference, f"the reference is {got.label_ids[row]!r}, not {reference!r}")
                words = target_ids(family, tokenizer, SOURCES[table.source], reference)
                total = total - oracle.score(world.bare, world.prompt(world.active), ids, words)
                count += len(words)
        require(len(got.predictions) == len(table.texts), f"{len(got.predictions)} texts")
        require(("test_loss" in got.metrics) == (count > 0), "a loss of rows without references, or none of others")
        if count:
            world.require_close("loss", got.metrics["test_loss"], total / count)


class Train(TrainerEntry):
    """One step of gradient descent over all rows: where the prompt moves."""

    name, cases, labelled = "training step", 150, True
    slack = 1.0
    free = ("modes", "config", "generation config")

    def call(self, world: World, run: Run) -> tuple[Tensor, Tensor, float]:
        batches = -(-len(run.table.texts) // run.batch_size)
        options = dict(optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, max_steps=1, learning_rate=0.5)
        options |= {"per_device_train_batch_size": run.batch_size, "gradient_accumulation_steps": batches}
        before = world.prompt(world.active)
        with tempfile.TemporaryDirectory() as folder:
            loss = self.trainer(world, run, folder, **options).train().training_loss
        return before, world.prompt(world.active), loss

    def check(self, world: World, run: Run, got: tuple[Tensor, Tensor, float]) -> None:
        before, after, loss = got
        vectors = before.clone().requires_grad_()
        expected = self.expected(world, run, vectors)
        world.require_close("loss", loss, expected, self.slack)
        (gradient,) = torch.autograd.grad(expected, vectors)
        # The step is read off vectors that are rounded to fp32: it cannot be told more finely than that.
        rounding = torch.finfo(before.dtype).eps * before.abs().max() / 0.5
        scale = self.scale(world, run, vectors, gradient)
        scale = scale.clamp(min=max(1e-3, float(rounding) / world.tolerance))
        world.require_close("step", (before - after) / 0.5 / scale, gradient / scale, self.slack)

    def scale(self, world: World, run: Run, vectors: Tensor, gradient: Tensor) -> Tensor:
        """How large gradients are that are told apart from rounding."""
        return gradient.abs().max()

    def expected(self, world: World, run: Run, vectors: Tensor) -> Tensor:
        """The loss of the prompt's vectors, by hand."""
        table, tokenizer, family = run.table, tokenizer_of(world.setting.family), world.setting.family
        total, count = torch.zeros(()), 0
        for row in range(len(table.texts)):
            ids = source_ids(family, tokenizer, table.source_text(row))
            words = target_ids(family, tokenizer, SOURCES[table.source], _gold(table, row))
            total, count = total - oracle.score(world.bare, vectors, ids, words), count + len(words)
        return total / count

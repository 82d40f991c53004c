"""A training step of `PromptTuningTrainer` with teachers: texts, a text of each row, other prompts, an ensemble."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from hf_prompt_tuning import PromptTuningConfig, PromptTuningTrainer, Teacher
from hf_prompt_tuning.prompts.ensemble_info import EnsembleInfo
from tests.shared.teaching import kl, loss_by_hand

from .. import oracle
from ..prompts import set_vectors, vectors
from ..rows import IGNORED
from ..tables import SOURCES, source_ids, target_ids
from ..tokenizers import tokenizer_of
from ..world import Setting, World
from .trainers import Run, Train, candidates

TEXTS = ("Be kind.", "a dog", "the old town ", "нет")
COLUMN = "what the teacher reads"
PROMPTS = ("teacher", "another-teacher")
KINDS = ("text", "column", "prompt", "ensemble", "text and prompt")


@dataclass(frozen=True)
class Lesson(Run):
    """What a trainer is given, as it is drawn.

    Attributes:
        teacher: one of `KINDS`.
        over: "tokens" or "labels".
        weight, temperature: of the loss.
    """

    teacher: str
    over: str
    weight: float
    temperature: float

    def data(self) -> Any:
        rows = super().data()
        texts = [TEXTS[(row + 1) % len(TEXTS)] for row in range(len(self.table.texts))]
        if self.shape == "dataset":
            return rows.add_column(COLUMN, texts)
        return [row | {COLUMN: text} for row, text in zip(rows, texts, strict=True)]

    def texts(self, row: int) -> list[str]:
        """The texts that teach a row."""
        return {"text": [TEXTS[0]], "column": [TEXTS[(row + 1) % len(TEXTS)]], "text and prompt": [TEXTS[0]]}.get(
            self.teacher, []
        )

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that teach."""
        return {"prompt": PROMPTS[:1], "text and prompt": PROMPTS[:1], "ensemble": PROMPTS}.get(self.teacher, ())


class Taught(Train):
    """One step of gradient descent over all rows: the loss, and where the prompt moves."""

    name, cases = "taught step", 150
    # Divergences are differences: rounding in half precision is large beside them.
    dtypes = ("float32",)
    slack = 3.0  # the teachers' rounding adds to the student's
    befores = [before for before in Train.befores if before != "half"]  # noqa: RUF012

    def arguments(self, draw: Any, setting: Setting) -> Lesson:
        run = super().arguments(draw, setting)
        table = dataclasses.replace(run.table, given=True)  # labels without words are drawn elsewhere
        return Lesson(
            **vars(run) | {"table": table},
            teacher=draw(st.sampled_from(KINDS)),
            over=draw(st.sampled_from(["tokens", "labels"])),
            weight=draw(st.sampled_from([1.0, 0.4])),
            temperature=draw(st.sampled_from([1.0, 2.0])),
        )

    def prepare(self, world: World, run: Lesson) -> None:
        for seed, name in enumerate(PROMPTS):
            kind = world.model.peft_config[world.active].task_type
            config = PromptTuningConfig(num_virtual_tokens=4 + seed, prompt_tuning_init="RANDOM", task_type=kind)
            world.model.add_adapter(name, config)
            set_vectors(world.model, name, vectors(world.backbone, 4 + seed, 70 + seed))

    def trainer(self, world: World, run: Lesson, folder: str, **values: Any) -> PromptTuningTrainer:
        values |= {"distill_over": run.over, "distillation_weight": run.weight}
        return super().trainer(world, run, folder, **values, distillation_temperature=run.temperature)

    def others(self, world: World, run: Lesson, folder: str) -> dict[str, Any]:
        kinds = {
            "text": lambda: Teacher(text=TEXTS[0]),
            "column": lambda: Teacher(column=COLUMN),
            "prompt": lambda: Teacher(prompt=PROMPTS[0]),
            "ensemble": lambda: Teacher(prompt=self._ensemble(world)),
            "text and prompt": lambda: [Teacher(text=TEXTS[0]), Teacher(prompt=PROMPTS[0])],
        }
        return {"teacher": kinds[run.teacher]()}

    @staticmethod
    def _ensemble(world: World) -> str:
        folder = tempfile.mkdtemp()
        world.model.save_pretrained(folder, selected_adapters=list(PROMPTS))
        EnsembleInfo(list(PROMPTS), PROMPTS[0]).write(Path(folder))
        return folder

    def scale(self, world: World, run: Lesson, vectors: Tensor, gradient: Tensor) -> Tensor:
        """At least that of an ordinary loss: where student and teacher agree, large gradients leave a small one.

        `require_close` takes a hundredth of the scale for the least of largest numbers: ten times a gradient allows
        it an error of a hundred thousandth, which is rounding.
        """
        (ordinary,) = torch.autograd.grad(super().expected(world, run, vectors), vectors)
        return torch.maximum(gradient.abs().max(), 10 * ordinary.abs().max())

    def expected(self, world: World, run: Lesson, own: Tensor) -> Tensor:
        by_hand = self._over_labels if run.over == "labels" else self._over_tokens
        return by_hand(world, run, own)

    def _over_tokens(self, world: World, run: Lesson, own: Tensor) -> Tensor:
        """The mean over the tokens of the right labels' words."""
        students, teachers, targets = [], [], []
        for row in range(len(run.table.texts)):
            ids, words = self._ids(world, run, row), self._words(world, run)[run.table.labels[row]]
            logits, labels = _predictions(world, own, ids, words)
            students.append(logits)
            targets.append(labels)
            with torch.no_grad():
                each = [_predictions(world, *read, words)[0].double() for read in self._read(world, run, row, ids)]
            teachers.append(torch.stack([one.softmax(-1) for one in each]).mean(0).log())
        return loss_by_hand(teachers, students, targets, run.temperature, run.weight)

    def _over_labels(self, world: World, run: Lesson, own: Tensor) -> Tensor:
        """The mean over the rows."""
        words, total = self._words(world, run), torch.zeros((), dtype=torch.float64)
        for row, label in enumerate(run.table.labels):
            ids = self._ids(world, run, row)
            student = _scores(world, own, ids, words)
            with torch.no_grad():
                each = [_scores(world, *read, words) for read in self._read(world, run, row, ids)]
            teacher = torch.stack([scores.double().softmax(-1) for scores in each]).mean(0).log()
            usual = -student[list(words).index(label)] / len(words[label])
            taught = run.temperature**2 * kl(teacher, student, run.temperature)
            total = total + run.weight * taught + (1 - run.weight) * usual
        return total / len(run.table.labels)

    @staticmethod
    def _ids(world: World, run: Lesson, row: int) -> Tensor:
        family = world.setting.family
        return source_ids(family, tokenizer_of(family), run.table.source_text(row))

    @staticmethod
    def _words(world: World, run: Lesson) -> dict[int, Tensor]:
        """The tokens of each label's words, by its number."""
        tokenizer, family, source = tokenizer_of(world.setting.family), world.setting.family, SOURCES[run.table.source]
        words = run.table.words_of()
        return {i: target_ids(family, tokenizer, source, words[i]) for i in candidates(run.table)}

    @staticmethod
    def _read(world: World, run: Lesson, row: int, ids: Tensor) -> list[tuple[Tensor | None, Tensor]]:
        """Of each teacher the prompt, or None, and the tokens of the source."""
        tokenizer, start = tokenizer_of(world.setting.family), len(world.family.start)
        found: list[tuple[Tensor | None, Tensor]] = []
        for text in run.texts(row):
            between = "" if text[-1].isspace() else "\n\n"
            context = torch.tensor(tokenizer(text + between, add_special_tokens=False)["input_ids"])
            found.append((None, torch.cat([ids[:start], context, ids[start:]])))
        return found + [(world.prompt(name), ids) for name in run.prompts]


def _predictions(world: World, prompt: Tensor | None, ids: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    if world.family.is_encoder_decoder:
        return oracle.predictions(world.bare, prompt, ids, words)
    labels = torch.cat([torch.full_like(ids, IGNORED), words])
    return oracle.predictions(world.bare, prompt, torch.cat([ids, words]), labels)


def _scores(world: World, prompt: Tensor | None, ids: Tensor, words: dict[int, Tensor]) -> Tensor:
    return torch.stack([oracle.score(world.bare, prompt, ids, one) for one in words.values()])

"""Let a teacher write the targets of rows before training, and keep them in `output_dir`.

A run that is resumed, or started again, reads the same targets. One that died while they were written goes on where it
stopped: what is sampled for a batch depends on the seed and on the batch's place, and not on those before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ..data.chat_targets import last_run
from ..data.collator import DataCollatorForPromptTuning, split_teachers
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..models.prompt import embedding_hash
from ..models.scoring import generate_within
from ..models.soft_prompts import SoftPrompts
from .answer_files import (
    ANSWERS_FILE,
    UNFINISHED_FILE,
    Answers,
    Settings,
    Unfinished,
    check_count,
    check_same,
    digest,
    read_answers,
    save_answers,
)
from .arguments import PromptTuningArguments
from .voices import Voice

TEXTS = ("input_ids", "attention_mask", "labels")
DEFAULT_LENGTH = 128
"""The length of an answer if neither `teacher_max_new_tokens` nor the template has a limit."""


def without_target(row: dict[str, Any], is_encoder_decoder: bool) -> dict[str, Any]:
    """Return an encoded row without its last target and what follows it: what its source is if it is to be answered.

    A row without a target is as it was.
    """
    ids = row["input_ids"]
    if not is_encoder_decoder:
        ids = ids[: last_run([label != IGNORED for label in row["labels"]]).start]
    labels = [] if is_encoder_decoder else [IGNORED] * len(ids)
    return {"input_ids": ids, "labels": labels, "length": len(ids)}


def with_answers(data: Dataset, answers: Answers, limits: dict[str, int | None], is_encoder_decoder: bool) -> Dataset:
    """Return a row for each answer: the student's and each teacher's ids, and the answer as their target.

    `limits` are the largest number of tokens in each column of ids, None for no limit. An answer ends where any of a
    row's columns would be longer.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for row, written in zip(data.with_format(None), answers, strict=True):
            rooms = [most - len(row[name]) for name, most in limits.items() if most is not None]
            room = None if is_encoder_decoder else min(rooms, default=None)
            for answer in written:
                yield row | _completed(row, answer[:room], is_encoder_decoder)

    columns: dict[str, list[Any]] = {name: [] for name in data.column_names}
    for row in rows():
        for name, values in columns.items():
            values.append(row[name])
    return Dataset.from_dict(columns, features=data.features, info=data.info)


def _completed(row: dict[str, Any], answer: list[int], is_encoder_decoder: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in [name for name in row if name.endswith("input_ids")]:
        ids, labels = row[name], name.replace("input_ids", "labels")
        values[labels] = answer if is_encoder_decoder else [IGNORED] * len(ids) + answer
        values[name] = ids if is_encoder_decoder else ids + answer
    return values | {"length": len(values["input_ids"])}


@dataclass(frozen=True)
class Writer:
    """Writes the answers of a run.

    Attributes:
        model: the model, which holds the teachers' prompts.
        args: the run's arguments.
        encoder: turned the rows into token ids; it has the tokenizer and the tokens that end an answer.
        voices: the run's teachers, which take turns if there are several.
    """

    model: SoftPrompts
    args: PromptTuningArguments
    encoder: PromptTokenizer
    voices: Sequence[Voice]

    @property
    def length(self) -> int:
        """The largest number of tokens of an answer."""
        return self.args.teacher_max_new_tokens or self.encoder.template.max_target_length or DEFAULT_LENGTH

    def settings(self, data: Dataset, copies: int) -> Settings:
        """Return what the answers of a data set depend on."""
        prompts = [embedding_hash(self.model.fixed_vectors(name)) for voice in self.voices for name in voice.names]
        read = {
            name: digest(list(data.with_format(None)[name]))
            for name in sorted(data.column_names)
            if name == "input_ids" or (name.startswith("teacher_") and name.endswith("input_ids"))
        }
        return {
            "teacher_writes": copies,
            "seed": self.args.seed,
            "teacher_temperature": self.args.teacher_temperature,
            "teacher_top_p": self.args.teacher_top_p,
            "teacher_max_new_tokens": self.length,
            "backbone": digest(self.model.fingerprint),
            "rows": read.pop("input_ids"),
            "teacher": [*read.values(), *prompts],
        }

    def answered(self, data: Dataset, name: str, copies: int) -> Answers:
        """Return the answers for a data set: those of the file, or new ones, which are written to it.

        Raises:
            PromptTuningError: the file has answers of another teacher, of other rows, or with other settings.
        """
        file, settings = Path(self.args.output_dir, ANSWERS_FILE), self.settings(data, copies)
        # Other processes wait until the first one has written the file, so that all train on the same rows.
        with self.args.main_process_first(local=self.args.save_on_each_node, desc="writing the teacher's answers"):
            kept = read_answers(file)
            if name in kept:
                check_same(kept[name][0], settings, name, file)
                check_count(kept[name][1], len(data), name, file)
                return kept[name][1]
            if not self.args.should_save:
                raise PromptTuningError(
                    f"process {self.args.process_index} finds no {name} answers in {file}, where another process has "
                    "written them; give an output_dir that all processes share."
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Unfinished(file.with_name(UNFINISHED_FILE), name, settings, len(data) * copies, kept)
            answers = self._write(data, copies, name, unfinished)
            save_answers(file, kept | {name: (settings, answers)}, self.encoder.tokenizer)
            unfinished.file.unlink()
        return answers

    def _write(self, data: Dataset, copies: int, name: str, unfinished: Unfinished) -> Answers:
        """Sample answers, in batches of rows of similar length, after those that are there."""
        rows = data.with_format(None)
        lengths = [len(ids) for ids in rows["teacher_0_input_ids"]]
        items = [(row, copy) for row in range(len(rows)) for copy in range(copies)]
        items.sort(key=lambda item: lengths[item[0]])
        size, done = self.args.per_device_eval_batch_size, len(unfinished.answers)
        starts = range(done, len(items), size)
        options = {"initial": -(-done // size), "total": -(-done // size) + len(starts)}
        progress = tqdm(starts, desc=f"Writing {name} answers", disable=self.args.disable_tqdm, **options)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng():
                for start in progress:
                    torch.manual_seed((self.args.seed + 1) * 1_000_003 + start)
                    unfinished.add(self._batch(rows, items[start : start + size], copies))
        finally:
            self.model.train(was_training)
        answers: Answers = [[[] for _ in range(copies)] for _ in range(len(rows))]
        for (row, copy), answer in zip(items, unfinished.answers, strict=True):
            answers[row][copy] = answer
        return answers

    def _batch(self, rows: Dataset, items: list[tuple[int, int]], copies: int) -> list[list[int]]:
        """Return an answer for each (row, copy); several teachers, and prompts of one, take turns."""
        collator = DataCollatorForPromptTuning(self.encoder.tokenizer)
        batch = collator([rows[row] for row, _ in items])
        _, taught = split_teachers(batch)
        counts = [max(len(voice.names), 1) for voice in self.voices]
        calls = [(voice, call) for voice, count in enumerate(counts) for call in range(count)]
        turns = [(row * copies + copy) % len(calls) for row, copy in items]
        found: list[list[int]] = [[] for _ in items]
        for turn, (voice, call) in enumerate(calls):
            chosen = [i for i, each in enumerate(turns) if each == turn]
            if not chosen:
                continue
            part = {name: taught[voice][name][chosen].to(self.model.device) for name in TEXTS}
            part["adapter_names"] = self.voices[voice].names_of_rows(part)[call]
            for i, answer in zip(chosen, self._generated(part), strict=True):
                found[i] = answer
        return found

    def _generated(self, batch: dict[str, Any]) -> list[list[int]]:
        temperature, options = self.args.teacher_temperature, {"do_sample": False}
        if temperature:
            # transformers samples from the 50 most likely tokens by default; 0 is all of them.
            options = {"do_sample": True, "temperature": temperature, "top_p": self.args.teacher_top_p, "top_k": 0}
        encoder = self.encoder
        ids = generate_within(self.model, batch, encoder.tokenizer, self.length, encoder.end_ids, options)
        return [[token for token in row if token != IGNORED] for row in ids.tolist()]

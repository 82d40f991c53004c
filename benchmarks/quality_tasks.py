"""The tasks of quality.py: read their descriptions, and draw the rows to learn from, to choose by and to report.

A description is a mapping in a YAML or JSON file; quality_tasks.yaml says what it holds.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from sklearn.model_selection import StratifiedKFold

from hf_prompt_tuning import PromptTemplate, PromptTuningError
from hf_prompt_tuning.cli.arguments import read_config
from hf_prompt_tuning.data.files import read_file

MOST_APART = 200
"""The largest number of rows by which a learning rate is chosen."""
FEWEST_APART = 60
"""With fewer rows left to choose by, a third of the training rows is held back from the runs that choose."""


@dataclass(frozen=True)
class Task:
    """A classification task as its description says. Fields are those of quality_tasks.yaml.

    Raises:
        PromptTuningError: a size is not a number of rows or "all", or there are both or none of test file and folds.
    """

    name: str
    folder: Path
    data: Path | None
    train_file: str
    template: str
    label_column: str
    sizes: Mapping[Any, int]
    test_file: str | None = None
    folds: int | None = None
    label_words: Mapping[Any, str] | None = None
    column_names: Sequence[str] | None = None
    max_source_length: int = 128
    text: str | None = None
    choose_on: str | None = None
    _files: dict[str, Dataset] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if (self.test_file is None) == (self.folds is None):
            raise PromptTuningError(f"the task {self.name!r} has both or none of test_file and folds; give one.")
        for size, epochs in self.sizes.items():
            if (size != "all" and (type(size) is not int or size < 2)) or not epochs > 0:
                raise PromptTuningError(
                    f"the task {self.name!r} has the size {size!r} with {epochs!r} epochs; give a number of rows or "
                    "'all', and how often they are learned from."
                )

    def rows(self, file: str) -> Dataset:
        """Return a file's rows. Raise PromptTuningError if it is neither in the data folder nor beside the task."""
        if file not in self._files:
            places = [folder / file for folder in (self.data, self.folder) if folder is not None]
            found = next((place for place in places if place.is_file()), None)
            if found is None:
                raise PromptTuningError(
                    f"the task {self.name!r} has no file {' or '.join(map(str, places))}; give its folder with --data "
                    "(benchmarks/README.md names the files), or leave the task out of --tasks."
                )
            self._files[file] = read_file(found, None if self.column_names is None else list(self.column_names))
        return self._files[file]

    def labels(self, rows: Dataset) -> list[str]:
        """Return each row's label as a text."""
        return [str(label) for label in rows[self.label_column]]

    def sample(self, rows: Dataset, count: int, draw: random.Random) -> tuple[Dataset, Dataset]:
        """Return a stratified sample of rows in drawn order, all if there are no more than `count`; and the others."""
        chosen = stratified(self.labels(rows), min(count, len(rows)), draw)
        return rows.select(chosen), rows.select(sorted(set(range(len(rows))) - set(chosen)))

    def prompt_template(self) -> PromptTemplate:
        """Return the template, with label words from the data if the task names none."""
        template = PromptTemplate(
            self.template,
            label_column=self.label_column,
            label_words=self.label_words,
            max_source_length=self.max_source_length,
        )
        return template.with_label_words(self.rows(self.train_file))


@dataclass(frozen=True)
class Split:
    """Rows of a task: `train` to learn from, and `held_out` to report or to choose by. `seed` and `fold` name it."""

    task: Task
    train: Dataset
    held_out: Dataset
    seed: int
    fold: int | None = None


def read_tasks(file: Path, data: Path | None) -> dict[str, Task]:
    """Return the tasks that a YAML or JSON file describes, by name. Files of rows are looked for in `data`, too.

    Raise PromptTuningError if the file or a description in it is not as quality_tasks.yaml says.
    """
    known = {f.name: f for f in dataclasses.fields(Task) if f.name not in ("name", "folder", "data", "_files")}
    tasks = {}
    for name, values in read_config(file).items():
        if not isinstance(values, Mapping):
            raise PromptTuningError(f"{file} has {values!r:.80} for {name!r}; give the task's name, and a mapping.")
        if unknown := [key for key in values if key not in known]:
            raise PromptTuningError(
                f"the task {name!r} of {file} has {unknown[0]!r}; a task has {', '.join(known)} (quality_tasks.yaml)."
            )
        needed = [key for key, f in known.items() if f.default is dataclasses.MISSING]
        if missing := [key for key in needed if key not in values]:
            raise PromptTuningError(f"the task {name!r} of {file} has no {missing[0]!r}; give it.")
        tasks[name] = Task(name, file.parent, data, **values)
    return tasks


def stratified(labels: Sequence[str], count: int, draw: random.Random) -> list[int]:
    """Return `count` indices in drawn order, each label's share as near to that of `labels` as whole rows allow.

    Every label is there at least once. Raise PromptTuningError if there are more labels than rows, or too few rows.
    """
    groups: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for i, label in enumerate(labels):
        groups[label].append(i)
    if not len(groups) <= count <= len(labels):
        raise PromptTuningError(
            f"{count} rows are asked for, of {len(labels)} rows with {len(groups)} labels; give another size."
        )
    shares = {label: count * len(group) / len(labels) for label, group in groups.items()}
    counts = {label: max(1, int(share)) for label, share in shares.items()}
    while sum(counts.values()) != count:
        step = 1 if sum(counts.values()) < count else -1
        free = [label for label in groups if 0 < counts[label] + step <= len(groups[label])]
        counts[max(free, key=lambda label: step * (shares[label] - counts[label]))] += step
    indices = [i for label, group in groups.items() for i in draw.sample(group, counts[label])]
    draw.shuffle(indices)
    return indices


def reported_splits(task: Task, size: int | str, seed: int, reported: int) -> Iterator[Split]:
    """Yield the splits whose held-out rows are reported: one, or one for each fold.

    Of a test file, the same `reported` rows are held out for all seeds; the seed draws the training rows. Of folds,
    the seed draws the folds. Raise PromptTuningError if there are too few rows for the size.
    """
    rows = task.rows(task.train_file)
    if task.folds is None:
        held_out, _ = task.sample(task.rows(task.test_file), reported, random.Random(0))
        yield Split(task, _training_rows(task, rows, size, random.Random(seed)), held_out, seed)
        return
    labels = task.labels(rows)
    folds = StratifiedKFold(task.folds, shuffle=True, random_state=seed)
    for fold, (train, held_out) in enumerate(folds.split(labels, labels)):
        draw = random.Random(f"{seed} {fold}")
        train_rows = _training_rows(task, rows.select(train), size, draw)
        yield Split(task, train_rows, rows.select(held_out), seed, fold)


def _training_rows(task: Task, rows: Dataset, size: int | str, draw: random.Random) -> Dataset:
    count = len(rows) if size == "all" else size
    if count > len(rows):
        raise PromptTuningError(f"the task {task.name!r} has {len(rows)} rows to learn from, and the size is {size}.")
    return task.sample(rows, count, draw)[0]


def choosing_split(split: Split, tasks: Mapping[str, Task]) -> Split:
    """Return the split by which the learning rates for a reported split are chosen. None of its rows are reported.

    - A test file: so many training rows, and up to 200 others, the same for all seeds. If fewer than 60 are left, a
      third of the training rows is held out. The same goes for a task that is chosen on another one's rows.
    - Folds: the fold's training rows, of which a third is held out.

    Raise PromptTuningError if a task is to be chosen on a task that is not there, or has folds.
    """
    task, other = split.task, split.task.choose_on
    if other is not None:
        if other not in tasks or tasks[other].folds is not None:
            raise PromptTuningError(
                f"the task {task.name!r} has choose_on: {other!r}; give another task, one with a test file."
            )
        task = tasks[other]
    if task.folds is not None:
        return _third_held_out(task, split.train, random.Random(f"{split.seed} {split.fold}"), split.seed, split.fold)
    draw = random.Random("choice")
    train, others = task.sample(task.rows(task.train_file), len(split.train), draw)
    if len(others) < FEWEST_APART:
        return _third_held_out(task, train, draw)
    return Split(task, train, task.sample(others, MOST_APART, draw)[0], seed=0)


def _third_held_out(task: Task, rows: Dataset, draw: random.Random, seed: int = 0, fold: int | None = None) -> Split:
    held_out, train = task.sample(rows, min(MOST_APART, len(rows) // 3), draw)
    return Split(task, train, held_out, seed, fold)

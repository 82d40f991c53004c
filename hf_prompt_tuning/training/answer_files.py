"""Keep the answers that a teacher writes, in `output_dir`.

    teacher_answers.jsonl               for each data set a line with what its answers depend on, and one for each row
    teacher_answers.unfinished.jsonl    the data set that is being written: the same first line, and one for each batch

The first is written completely or not at all. The second grows by a line a batch, so that a run that dies loses one
batch at most.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..models.scoring import decode

logger = logging.getLogger(__name__)

ANSWERS_FILE = "teacher_answers.jsonl"
UNFINISHED_FILE = "teacher_answers.unfinished.jsonl"

Answers = list[list[list[int]]]
"""The token ids of each answer of each row."""
Settings = dict[str, Any]
"""What the answers of a data set depend on."""


def digest(values: Any) -> str:
    """Return a fingerprint of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_same(kept: Settings, settings: Settings, name: str, file: Path) -> None:
    """Raise PromptTuningError if answers in a file depend on something else than those of this run."""
    different = [key for key in settings if kept.get(key) != settings[key]]
    if not different:
        return
    key = different[0]
    what = {"rows": "other rows", "teacher": "another teacher", "backbone": "another backbone"}.get(
        key, f"{key}={kept.get(key)}, and this run has {settings[key]}"
    )
    raise PromptTuningError(
        f"{file} has the {name} answers of {what}; give another output_dir, or delete the file to have new ones "
        "written."
    )


def check_count(answers: Answers, count: int, name: str, file: Path) -> None:
    """Raise PromptTuningError if a file has answers to fewer or more rows than there are."""
    if len(answers) != count:
        raise PromptTuningError(
            f"{file} has {name} answers to {len(answers)} rows of {count}, so it is not whole. Delete it to have new "
            "ones written."
        )


def read_answers(file: Path) -> dict[str, tuple[Settings, Answers]]:
    """Return for each data set the settings and the answers of a file; nothing if there is no file."""
    found: dict[str, tuple[Settings, Answers]] = {}
    if not file.is_file():
        return found
    with _readable(file):
        for line in _lines(file.read_text(encoding="utf-8")):
            values = json.loads(line)
            if "settings" in values:
                found[values["data"]] = (values["settings"], [])
            else:
                found[values["data"]][1].append([_ids(ids) for ids in values["token_ids"]])
    return found


def save_answers(file: Path, kept: dict[str, tuple[Settings, Answers]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a file of answers: completely, or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("w", encoding="utf-8") as out:
        for name, (settings, answers) in kept.items():
            print(json.dumps({"data": name, "settings": settings}), file=out)
            for row in answers:
                values = {"data": name, "texts": decode(row, tokenizer), "token_ids": row}
                print(json.dumps(values, ensure_ascii=False), file=out)
        _flush(out)
    partial.replace(file)


class Unfinished:
    """The answers to a data set, in the order in which they are written, kept batch by batch.

    A last line that is not complete was being written when the run died: it is dropped, and a warning says so.

    Args:
        file: the file, which goes on if it is there.
        name: the data set.
        settings: what its answers depend on.
        count: how many answers there are to be.
        finished: the data sets whose answers are complete. What the file has of one of them counts no more.

    Raises:
        PromptTuningError: the file has answers of another data set, or of other settings, or is damaged.
    """

    def __init__(self, file: Path, name: str, settings: Settings, count: int, finished: Collection[str] = ()):
        self.file, self.answers = file, list[list[int]]()
        text = file.read_bytes() if file.is_file() else b""
        complete = text[: text.rfind(b"\n") + 1]
        if len(complete) < len(text):
            logger.warning(
                "%s ends within a line, where the run that wrote it died; this line is dropped, and its answers are "
                "written again.",
                file,
            )
        with _readable(file):
            lines = [json.loads(line) for line in _lines(complete.decode("utf-8"))]
            if lines and lines[0]["data"] in finished:
                lines = []
            if lines:
                self._check(lines[0]["data"], lines[0]["settings"], name, settings)
            self.answers = [_ids(ids) for batch in lines[1:] for ids in batch["token_ids"]]
            if len(self.answers) > count:
                raise ValueError(f"it has {len(self.answers)} answers of {count}")
        if self.answers:
            logger.warning("%d %s answers were written before, and are kept in %s.", len(self.answers), name, file)
        if lines:
            os.truncate(file, len(complete))
        else:
            file.write_text(json.dumps({"data": name, "settings": settings}) + "\n", encoding="utf-8")

    def _check(self, data: str, kept: Settings, name: str, settings: Settings) -> None:
        if data != name:
            raise PromptTuningError(
                f"{self.file} has unfinished {data} answers, and this run has none to the {name} data, which come "
                "first; give another output_dir, or delete the file."
            )
        check_same(kept, settings, name, self.file)

    def add(self, answers: list[list[int]]) -> None:
        """Keep the answers of a batch."""
        with self.file.open("a", encoding="utf-8") as out:
            print(json.dumps({"token_ids": answers}), file=out)
            _flush(out)
        self.answers += answers


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Raise PromptTuningError if what is read within is no file of answers."""
    try:
        yield
    except PromptTuningError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise PromptTuningError(
            f"{file} is not a file of a teacher's answers: {error}. Delete it to have new ones written."
        ) from error


def _lines(text: str) -> list[str]:
    """Return the lines of a text. (Not by `splitlines`: an answer may hold characters that end a line for it.)"""
    return text.removesuffix("\n").split("\n") if text else []


def _ids(values: Any) -> list[int]:
    return [int(i) for i in values]


def _flush(out: TextIO) -> None:
    out.flush()
    os.fsync(out.fileno())

"""Define the command-line arguments of what teaches a prompt."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.hf_argparser import HfArg

from ..data.chat_template import ChatTemplate
from ..data.chat_tokenization import RowTemplate
from ..errors import PromptTuningError
from ..training.arguments import PromptTuningArguments
from ..training.teacher import Teacher

logger = logging.getLogger(__name__)


@dataclass
class TeacherArguments:
    """Arguments of what teaches the prompt."""

    teacher_text: str | None = HfArg(
        default=None, help="Text that teaches the prompt, in front of each row; in chats, the system message."
    )
    teacher_file: str | None = HfArg(
        default=None, help="File of that text. Of a chat's turns, a .json file: a list of messages."
    )
    teacher: str | None = HfArg(
        default=None, help="Prompt that teaches the prompt: its folder or Hub id, or those of an ensemble."
    )
    teacher_column: str | None = HfArg(default=None, help="Column of a text for each row, which teaches the prompt.")
    teacher_separator: str | None = HfArg(
        default=None, help="What stands between the text and a row, unless rows are chats. Default: an empty line."
    )

    def given(self, token: str | None = None) -> Teacher | None:
        """Return the teacher that is given, with the Hub's token for its prompt; None for a run without one.

        Raise PromptTuningError if several are given, or the file cannot be read, is empty or holds no messages.
        """
        if not (names := [name for name in OF_TEACHER if getattr(self, name) is not None]):
            if self.teacher_separator is not None:
                raise PromptTuningError(
                    f"teacher_separator is {self.teacher_separator!r:.80}, and no text teaches; give teacher_text, or "
                    "leave it out."
                )
            return None
        if len(names) > 1:
            raise PromptTuningError(f"{' and '.join(names)} are given, and one of them teaches; give one.")
        values = {"text": self.teacher_text, "prompt": self.teacher, "column": self.teacher_column}
        if self.teacher_file is not None:
            values = _read(Path(self.teacher_file))
        separator = {} if self.teacher_separator is None else {"separator": self.teacher_separator}
        return Teacher(**values, token=token, **separator)

    def complete(self, training: PromptTuningArguments, template: RowTemplate, rows: Dataset | None) -> None:
        """Have the teacher write one answer to each row, if the rows have none and `teacher_writes` is not given."""
        if self.given() is None or training.teacher_writes is not None or not rows or _has_target(template, rows[0]):
            return
        logger.warning("The training rows have no answers, so the teacher writes one to each (teacher_writes=1).")
        training.teacher_writes = 1


OF_TEACHER = ("teacher_text", "teacher_file", "teacher", "teacher_column")
"""The arguments that name a teacher."""

OF_CONTEXT = ("teacher_text", "teacher_file")
"""Those of a text that is the same for all rows, whose first tokens a prompt can start from."""


def _has_target(template: RowTemplate, row: dict[str, Any]) -> bool:
    """Tell whether a row has an answer. Labels are not written, and an invalid row is for the trainer to refuse."""
    if template.is_classification:
        return True
    try:
        if isinstance(template, ChatTemplate):
            return bool(template.conversation(row).targets())
        return template.target_text(row) is not None
    except (KeyError, PromptTuningError):
        return True


def _read(file: Path) -> dict[str, str | Sequence[Any]]:
    """Return what a file holds, as an argument of `Teacher`: a text without the white space around it, or messages."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptTuningError(
            f"teacher_file {str(file)!r} cannot be read: {getattr(error, 'strerror', None) or error}. Give the file "
            "of a text, or the .json file of a list of messages."
        ) from error
    if not text:
        raise PromptTuningError(f"teacher_file {str(file)!r} is empty; write the text that teaches in it.")
    if file.suffix != ".json":
        return {"text": text}
    try:
        return {"messages": json.loads(text)}
    except ValueError as error:
        raise PromptTuningError(
            f'teacher_file {str(file)!r} is not JSON ({error}); write a list of messages, [{{"role": "system", '
            '"content": "…"}], or give a text in a .txt file.'
        ) from error

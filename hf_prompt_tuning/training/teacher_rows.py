"""Write each row as its teacher reads it: the same text and the same targets, behind the teacher's context."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.chat_rendering import ChatRenderer, common_prefix
from ..data.chat_targets import labelled_tokens
from ..data.chat_tokenization import ChatTokenizer, RowTemplate
from ..data.conversation import Conversation
from ..data.encoded_rows import FEATURES, columns_of
from ..data.encoding import check_ids
from ..data.heads import leading_ids
from ..data.messages import SYSTEM, Message
from ..data.origins import naming
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from .answer_files import digest
from .teacher import Teacher, checked_teachers

logger = logging.getLogger(__name__)

Ids = list[int]


class TeacherRows:
    """Write rows of raw columns, or of token ids, as a teacher reads them.

    Args:
        teacher: the teacher.
        student: turns the student's rows into token ids; None if they are token ids.
        own: turns rows into token ids as a teacher that is a prompt reads them; None if it reads them as the student.
        tokenizer: the backbone's, for the texts of a teacher.
        is_encoder_decoder: whether the backbone is an encoder-decoder model.

    Raises:
        PromptTuningError: the teacher needs a tokenizer, or chats, and there are none; or the student's template
            reads the teacher's column.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: PromptTokenizer | None,
        own: PromptTokenizer | None,
        tokenizer: PreTrainedTokenizerBase | None,
        is_encoder_decoder: bool,
    ):
        self.teacher, self.student, self.own = teacher, student, own
        self.tokenizer, self.is_encoder_decoder = tokenizer, is_encoder_decoder
        self.chats = None if student is None else student.chats
        if teacher.is_context and tokenizer is None:
            raise PromptTuningError("a Teacher of text is given without processing_class; give the tokenizer.")
        if teacher.messages is not None and self.chats is None:
            raise PromptTuningError(
                "the Teacher's messages are given, and the rows are no chats; give it a text, or the template "
                "chat=ChatFormat()."
            )
        if student is not None and teacher.column in student.template.source_columns:
            raise PromptTuningError(
                f"the Teacher's column {teacher.column!r} is in the template's source {student.template.source!r}, so "
                "the student would read it, too; leave it out of the template."
            )
        if teacher.is_context and self.chats is None:
            self._leading: Ids = leading_ids(tokenizer)

    def first_ids(self) -> Ids:
        """Return the tokens of the text itself, of messages those of their contents; none of other teachers."""
        text = self.teacher.shared_text
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def __call__(self, row: Mapping[str, Any], encoded: Mapping[str, Any]) -> tuple[Ids, Ids]:
        """Return the ids and labels of a row as the teacher reads it, of the row and of what the student reads.

        Raises:
            PromptTuningError: the row has no text for the teacher, or cannot be put behind it.
        """
        if not self.teacher.is_context:
            ids, labels = self._behind_a_prompt(row, encoded)
        elif self.chats is None:
            ids, labels = self._behind_a_text(self.teacher.context_of(row), encoded)
        else:
            ids, labels = self._in_a_chat(self.teacher.context_of(row), row, encoded)
        if _targets(labels) != _targets(encoded["labels"]):
            raise PromptTuningError(
                "the chat template writes other target tokens behind the teacher's context than without it; give a "
                "chat_template that renders each turn in one way."
            )
        return ids, labels

    def _behind_a_prompt(self, row: Mapping[str, Any], encoded: Mapping[str, Any]) -> tuple[Ids, Ids]:
        if self.own is None or not self._has_columns(row):
            return list(encoded["input_ids"]), list(encoded["labels"])
        ids = self.own.source_ids(row)[0] if not _targets(encoded["labels"]) else None
        if ids is not None:
            return ids, [IGNORED] * len(ids)
        written = self.own.encode(row)
        return written["input_ids"], written["labels"]

    def _behind_a_text(self, text: str, encoded: Mapping[str, Any]) -> tuple[Ids, Ids]:
        """Put a text in front of a row of plain text, behind BOS if the row begins with it."""
        ids, labels = list(encoded["input_ids"]), list(encoded["labels"])
        lead = self._leading if ids[: len(self._leading)] == self._leading else []
        context = self.tokenizer(self.teacher.separated(text), add_special_tokens=False)["input_ids"]
        if not context:
            raise PromptTuningError(f"the teacher's text {text[:60]!r} tokenizes to nothing; give another.")
        behind = [*lead, *context, *ids[len(lead) :]]
        if self.is_encoder_decoder:
            return behind, labels
        if _targets(labels[: len(lead)]):
            raise PromptTuningError(
                "the first token of the row, which the tokenizer writes in front of every text, has a label, and "
                "nothing stands in front of it to predict it; give it the label -100."
            )
        return behind, [*[IGNORED] * (len(lead) + len(context)), *labels[len(lead) :]]

    def _in_a_chat(
        self, context: str | Sequence[Message], row: Mapping[str, Any], encoded: Mapping[str, Any]
    ) -> tuple[Ids, Ids]:
        """Put a system message, or turns, in front of a conversation."""
        if not self._has_columns(row):
            raise PromptTuningError(
                "the row is token ids, and the teacher's context stands in front of a conversation; give the rows "
                f"with the column {self.student.template.source_columns[0]!r}."
            )
        messages = [{"role": "system", "content": context}] if isinstance(context, str) else list(context)
        if not isinstance(self.student, ChatTokenizer):
            turn = self.chats.user_turn(self.student.source_text(row))
            ids = self.chats.source_ids(behind(messages, False, turn))
            targets = _targets(encoded["labels"])
            return ids + targets, [IGNORED] * len(ids) + targets
        has_target = bool(_targets(encoded["labels"]))
        chat = behind(messages, self._own_system(row), self.student.conversation(row, has_target))
        if not has_target:
            ids = self.chats.source_ids(chat)
            return ids, [IGNORED] * len(ids)
        ids, mask = labelled_tokens(self.chats, chat, self.student.template.chat.assistant_loss)
        return ids, [i if labelled else IGNORED for i, labelled in zip(ids, mask, strict=True)]

    def _least_target(self) -> int:
        """Return for how many tokens a row's source must leave room: any label's, or the first of an answer."""
        if self.student is None or self.is_encoder_decoder:
            return 0
        return max(map(len, self.student.label_token_ids), default=1)

    def _has_columns(self, row: Mapping[str, Any]) -> bool:
        return self.student is not None and all(name in row for name in self.student.template.source_columns)

    def _own_system(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row has a system turn of its own, which the template or the prompt's place did not add."""
        template = self.student.template
        return bool(replace(template, chat=replace(template.chat, system_message=None)).conversation(row).head)

    def added_to(self, encoded: Dataset, raw: Any, name: str, number: int, limit: int | None, vocabulary: int | None):
        """Return encoded rows with the columns of this teacher, which is the one of this `number`.

        `raw` are the same rows before they were encoded, in Python's types. `name` is theirs in messages. `limit` is
        the largest number of tokens in a row of the backbone, and `vocabulary` the number of its tokens; None for no
        limit.

        Raises:
            PromptTuningError: the data is a stream; a row cannot be put behind the teacher, or is too long behind it.
        """
        ids_column, labels_column = f"teacher_{number}_input_ids", f"teacher_{number}_labels"
        if not isinstance(encoded, Dataset) or not isinstance(raw, Dataset):
            raise PromptTuningError(
                f"the {name} data is a {type(encoded).__name__}, and a teacher reads rows that have a length; give a "
                "Dataset of the datasets library (Dataset.from_list(list(stream)) of a stream)."
            )
        if ids_column in encoded.column_names:
            self._check_mark(encoded, name, number)
            return encoded
        if self.teacher.column is not None and self.teacher.column not in columns_of(raw):
            raise PromptTuningError(
                f"the Teacher's column {self.teacher.column!r} is no column of the {name} data, which has "
                f"{', '.join(map(repr, columns_of(raw)))}. Correct its name."
            )

        def written(row: Mapping[str, Any], index: int) -> dict[str, Ids]:
            own = raw[index]
            with naming(own, index, name):
                ids, labels = self(own, row)
                check_room(max(len(ids), len(ids) - len(_targets(labels)) + self._least_target()), limit)
                check_ids(ids, vocabulary if vocabulary is not None else max(ids) + 1, "the teacher's context has")
            return {ids_column: ids, labels_column: labels}

        kinds = dict(encoded.features) | {ids_column: FEATURES["input_ids"], labels_column: FEATURES["labels"]}
        options = {"load_from_cache_file": False, "desc": f"Putting {name} rows behind the teacher"}
        features = type(encoded.features)(kinds)
        added = encoded.with_format(None).map(written, with_indices=True, features=features, **options)
        # What select, shuffle and map keep.
        added.info.description = f"{added.info.description or ''}{self._mark(number)}"
        return added

    def _mark(self, number: int) -> str:
        """Return what a data set with the columns of this teacher is marked by: no words of it."""
        told = {key: str(value) for key, value in vars(self.teacher).items() if key != "token"}
        return f"[teacher_{number} {digest(told)}]"

    def _check_mark(self, encoded: Dataset, name: str, number: int) -> None:
        """Raise PromptTuningError if rows that have a teacher's columns have those of another one."""
        if self._mark(number) not in (encoded.info.description or ""):
            raise PromptTuningError(
                f"the {name} data has the column 'teacher_{number}_input_ids', of another teacher than this run's; "
                "give the rows as they were before they were encoded."
            )


def template_of_student(
    teacher: Teacher | Sequence[Teacher] | None,
    template: RowTemplate | None,
    position: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> RowTemplate | None:
    """Return the template of a run's rows: with an empty system turn if the prompt stands in place of its text.

    Some chat templates write a system text of their own in chats without a system turn. The teacher's message takes
    its place. Behind the prompt, it would contradict what the prompt learns.
    """
    chat = None if template is None else template.chat
    if teacher is None or chat is None or chat.system_message is not None or position != "system" or tokenizer is None:
        return template
    writes_turn = any(
        each.is_context and (each.messages is None or each.messages[0]["role"] in SYSTEM)
        for each in checked_teachers(teacher)
    )
    if not writes_turn or not ChatRenderer(tokenizer, chat).writes_own_system():
        return template
    logger.info("The prompt stands in place of the system message, so chats without one get an empty system turn.")
    return replace(template, chat=replace(chat, system_message=""))


def check_room(count: int, limit: int | None) -> None:
    """Raise PromptTuningError if a row behind its teacher has more tokens than the backbone has positions."""
    if limit is not None and count > limit:
        raise PromptTuningError(
            f"it has {count} tokens with the teacher's context and its target, and the backbone has {limit} "
            "positions for them; shorten the context, or lower max_source_length."
        )


def behind(messages: list[Message], has_own_system: bool, chat: Conversation) -> Conversation:
    """Return a conversation with messages in front of it.

    A system message among them stands in place of the template's own. Raise PromptTuningError if the row has one, too.
    """
    has_system = messages[0]["role"] in SYSTEM
    if has_system and has_own_system:
        raise PromptTuningError(
            "the row has a system turn of its own, and the teacher's context is the system message; leave one of them "
            "out, or give the teacher messages without a system turn."
        )
    first = chat.messages[: chat.head] if not has_system and chat.messages[0].get("content") else []
    kept = [*first, *messages, *chat.messages[chat.head :]]
    first_target = max(chat.first_target, chat.head) + len(kept) - len(chat.messages)
    return replace(chat, messages=kept, first_target=first_target)


def _targets(labels: Sequence[int]) -> Ids:
    return [label for label in labels if label != IGNORED]


def shared_start(data: Dataset, number: int) -> Ids:
    """Return the ids with which all rows of a teacher begin; of each row, at least one id and all targets are left."""
    rows = data.with_format(None)
    start: Ids | None = None
    for ids, labels in zip(*(rows[f"teacher_{number}_{name}"] for name in ("input_ids", "labels")), strict=True):
        most = next((i for i, label in enumerate(labels) if label != IGNORED), len(ids) - 1)
        start = list(ids[:most]) if start is None else start[: min(common_prefix(start, ids), most)]
    return start or []

"""Define what teaches a prompt: a text, turns of a conversation, a text of each row, or other prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..data.message_content import joined
from ..data.messages import Message, read_messages
from ..errors import PromptTuningError
from ..models.fixed_prompts import FixedPrompt
from ..models.places import check_head
from ..models.prompt import check_match
from ..models.soft_prompts import SoftPrompts
from ..prompts.config import PromptTuningConfig, PromptTuningInit
from ..prompts.ensemble_info import ENSEMBLE_FILE, EnsembleInfo
from ..prompts.files import SavedPrompt, open_place, read_json, read_prompt

KINDS = ("text", "messages", "prompt", "column")


@dataclass(frozen=True)
class Teacher:
    """What the frozen backbone stands behind as a teacher. Give one of the first four.

    A prompt that is taught learns to answer as the same backbone does behind the teacher (context distillation, Askell
    et al. 2021; gist tokens, Mu et al. 2023).

    Args:
        text: a text in front of each row; in chats, the system message.
        messages: in chats, turns in front of each row's own: a system message, examples, or both.
        prompt: another prompt, of any length and place, or an ensemble, whose mean distribution is taught. It is a
            folder, a Hub id, or the name of a prompt of the model.
        column: the column of the data that holds each row's text.
        separator: what stands between the text and the row, unless the text ends with white space. In chats there is
            none.
        token: a Hub token for the prompt, if it is private.

    Raises:
        PromptTuningError: none or several are given, or a value has another type.
    """

    text: str | None = None
    messages: Sequence[Message] | None = None
    prompt: str | Path | None = None
    column: str | None = None
    separator: str = "\n\n"
    token: str | bool | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise PromptTuningError(
                f"a Teacher is given {' and '.join(given) or 'nothing'}; give one of {', '.join(KINDS)}."
            )
        for name in ("text", "column"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise PromptTuningError(f"the Teacher's {name} is {value!r:.80}; give a text that is not empty.")
        if not isinstance(self.separator, str):
            raise PromptTuningError(f"the Teacher's separator is {self.separator!r:.80}; give a text, '' for none.")
        if self.messages is not None:
            object.__setattr__(self, "messages", tuple(read_messages(self.messages, "messages")))
        if self.prompt is not None and not isinstance(self.prompt, str | Path):
            raise PromptTuningError(
                f"the Teacher's prompt is a {type(self.prompt).__name__}; give a folder, a Hub id, or the name of a "
                "prompt of the model."
            )

    @property
    def is_context(self) -> bool:
        """Whether the teacher is text, in front of the backbone's own tokens, and not a prompt."""
        return self.prompt is None

    @property
    def shared_text(self) -> str | None:
        """The text that is the same in front of all rows, of messages what they say; None for other teachers."""
        if self.messages is not None:
            return "\n".join(joined(message.get("content", "")) for message in self.messages)
        return self.text

    def context_of(self, row: Mapping[str, Any]) -> str | Sequence[Message]:
        """Return what stands in front of a row: a text, or messages.

        Raises:
            PromptTuningError: the row has no text in the column.
        """
        if self.column is None:
            return self.text if self.text is not None else self.messages
        text = row.get(self.column)
        if not isinstance(text, str) or not text.strip():
            raise PromptTuningError(
                f"the row has no text for the teacher (column {self.column!r} holds {text!r:.80}); give it one, or "
                "remove the row."
            )
        return text

    def separated(self, text: str) -> str:
        """Return a text with what stands between it and the row."""
        return text if text[-1:].isspace() else text + self.separator


def started_by(teacher: Any, config: PromptTuningConfig | None) -> PromptTuningConfig | None:
    """Return the config of a prompt that starts from the text that teaches it (`TEACHER`), with that text.

    Any other config, and one that has its text, is returned as it is.
    """
    is_ours = isinstance(config, PromptTuningConfig)  # another config is refused where the prompt is made
    if not is_ours or config.prompt_tuning_init != PromptTuningInit.TEACHER or config.prompt_tuning_init_text:
        return config
    texts = [each.shared_text for each in checked_teachers(teacher) if each.shared_text] if teacher else []
    return replace(config, prompt_tuning_init_text=texts[0]) if texts else config


def checked_teachers(teacher: Any) -> list[Teacher]:
    """Return one teacher or several as a list. Raise PromptTuningError for anything else."""
    teachers = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    for each in teachers:
        if not isinstance(each, Teacher):
            raise PromptTuningError(
                f"teacher is {each!r:.80}; give Teacher(text=…), or with messages, prompt or column; or a list."
            )
    if not teachers:
        raise PromptTuningError("teacher is an empty list; give a Teacher, or leave it out.")
    return teachers


@dataclass(frozen=True)
class TaughtPrompt:
    """A prompt that teaches: its vectors, its place, and the template that it was trained with, if it is known."""

    fixed: FixedPrompt
    position: str
    template: Any


def prompts_of(teacher: Teacher, model: SoftPrompts) -> list[TaughtPrompt]:
    """Return the prompts of a teacher, several of an ensemble.

    Raises:
        PromptTuningError: the prompt is the one that trains, could not be loaded, or is one of another backbone.
    """
    name = teacher.prompt
    if name in model.peft_config:
        if name == model.active_adapter:
            raise PromptTuningError(
                f"the Teacher's prompt is {name!r}, the one that is taught; name another prompt, or a folder."
            )
        own, config = model.prompt_encoder[name], model.peft_config[name]
        vectors = own.embedding.weight.detach().clone()
        return [TaughtPrompt(FixedPrompt(own.head_ids.clone(), vectors), config.prompt_position, own.info.template)]
    file = open_place(name, token=teacher.token).find(ENSEMBLE_FILE)
    if file is None:
        return [_taught(read_prompt(name, token=teacher.token), model)]
    members = read_json(file, EnsembleInfo.from_json).members
    return [_taught(read_prompt(name, subfolder=member, token=teacher.token), model) for member in members]


def _taught(saved: SavedPrompt, model: SoftPrompts) -> TaughtPrompt:
    check_match(saved, model.word_embeddings.embedding_dim, model.fingerprint, ignore_mismatch=False)
    if saved.config.task_type not in (None, model.task_type):
        raise PromptTuningError(
            f"{saved.source} is a prompt of task type {saved.config.task_type}, and the model's is {model.task_type}; "
            "give a prompt of this backbone."
        )
    if saved.config.head:
        check_head(saved, model.get_base_model(), ignore_mismatch=False)
    fixed = FixedPrompt(torch.tensor(saved.config.head, dtype=torch.long), saved.vectors)
    template = None if saved.info is None else saved.info.template
    return TaughtPrompt(fixed, saved.config.prompt_position or "start", template)

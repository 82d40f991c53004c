"""Tell which prompts have words in them that may be private: rows, or the text of a teacher.

Vectors that started from words, or learned from a text, are near them. So neither the words nor what tells them (the
words that are nearest to the vectors) stand in another file, in a card or in a tracker.
"""

from collections.abc import Mapping
from typing import Any

from .config import PRIVATE_STARTS, PromptTuningInit
from .info import PromptInfo

OF_TEXTS = ("text", "messages", "column", "several")
"""The kinds of teachers (`PromptInfo.teacher`) that are texts, or may be."""


def private_start(initialization: Mapping[str, Any]) -> PromptTuningInit | None:
    """Return the private start that a recorded initialisation names, of the prompt or of one that it goes on from.

    Neither the words of such a start nor its vectors are saved.
    """
    names = (initialization.get("prompt_tuning_init"), initialization.get("private_start"))
    return next((init for init in PRIVATE_STARTS if init in names), None)


def tells_private_words(info: PromptInfo) -> bool:
    """Tell whether a prompt started from private words, or learned from a text that is not published."""
    is_unpublished = info.teacher.get("kind") in OF_TEXTS and "text" not in info.teacher
    return is_unpublished or private_start(info.initialization) is not None

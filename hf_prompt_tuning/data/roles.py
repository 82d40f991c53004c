"""Refuse messages of roles that no one writes or reads: neither transformers nor the chat template."""

import re

from ..errors import PromptTuningError
from .conversation import Conversation
from .messages import SHAREGPT_ROLES

ROLES = ("system", "developer", "user", "assistant", "tool")

MEANT = SHAREGPT_ROLES | {"bot": "assistant", "model": "assistant", "ai": "assistant", "function": "tool"}
"""What data sets mean by other names."""


def check_roles(chat: Conversation, template: str) -> None:
    """Raise PromptTuningError if a message has a role that is none of `ROLES`, and the chat template does not name it.

    A template that compares roles with a name takes it. Others may write any name, of which no model has learned.
    """
    for index, message in enumerate(chat.messages):
        role = message["role"]
        if role not in ROLES and not _takes(template, role):
            meant = role.lower() if role.lower() in ROLES else MEANT.get(role.lower())
            advice = f" ({meant!r}, if that is meant)" if meant else ""
            raise PromptTuningError(
                f"{chat.name_of(index)} has the role {role!r:.80}, which the chat template does not name; give one of "
                f"{', '.join(ROLES)}{advice}, or a chat_template that has this role."
            )


def _takes(template: str, role: str) -> bool:
    name = f"['\"]{re.escape(role)}['\"]"
    return re.search(rf"==\s*{name}|{name}\s*==|\bin\s*[\[(][^\])]*{name}", template) is not None

"""A few conversations, and a model of the tests' size behind a prompt for them."""

from hf_prompt_tuning import ChatFormat, ChatTemplate
from tests.shared.chat_templates import FAMILIES, chat_tokenizer
from tests.shared.reference import tiny_prompt_model

SYSTEM = {"role": "system", "content": "Be kind."}
TURNS = [
    {"role": "user", "content": "never came"},
    {"role": "assistant", "content": "thank you"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "quick help"},
]
CHATS = [
    TURNS,
    TURNS[:2],
    [{"role": "user", "content": "why is my line down again"}, {"role": "assistant", "content": "a small dog"}],
    [*TURNS, {"role": "user", "content": "day and night"}, {"role": "assistant", "content": "great"}],
]
ROWS = [{"messages": chat} for chat in CHATS]
FORMATS = {name: ChatFormat(assistant_loss="last" if name == "qwen3" else "all") for name in FAMILIES}
"""Qwen 3's template writes earlier turns otherwise than the last one."""


def chat_setting(name: str, backbone: str = "llama", **template):
    """A tokenizer of a family, its template for conversations, and a tiny model behind a prompt."""
    model = tiny_prompt_model(backbone, num_virtual_tokens=4)
    return chat_tokenizer(name), ChatTemplate(chat=FORMATS[name], **template), model

"""Write a prompt's tokens into texts, so that a server's tokenizer gives the ids that the prompt was trained with.

    start          <|name_0|>…<|name_9|>Message : {message} Label :
    after_bos                 <|name_0|>…<|name_9|>Message : …         the server writes BOS in front
    start, BOS     <|name_0|>…<|name_9|><s>Message : …                 the server may write none (add_special_tokens)
    system         {"role": "system", "content": "<|name_0|>…<|name_9|>Be kind."}

Tokenizers treat the start of a text differently: some put a space in front of it, and none behind an added token. So
each form is tried on many texts, and the first one that gives the same ids for all of them is taken.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase

from ..data.conversation import Conversation
from ..data.heads import without_head
from ..data.messages import SYSTEM
from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from .exported_prompts import ExportedPrompt
from .sample_texts import SAMPLE_TEXTS

BEGINNINGS = (
    "x",
    "Ü",
    "1",
    "é",
    "…",
    "_",
    "{",
    "<",
    "'s",
    "-",
    "ing",
    "🙂",
    "中",
    "The\n",
    "\n\nThe",
    " The",
    "  1",
    "\tx",
)
"""Texts that begin in ways in which tokenizers differ; the last ones begin with white space."""
MARK = "hfprompttuning"
MAX_TOKENS = 64


@dataclass(frozen=True)
class PromptText:
    """How a prompt's tokens are written into a text.

    Attributes:
        prefix: stands in front of a row's text; in a chat, in front of the system text.
        suffix: stands behind it: tokens that the tokenizer would write, where it may not.
        add_special_tokens: whether the tokenizer may write BOS and its like.
        cut: how many characters of a chat stand in `prefix` already.
        is_system: the prefix goes into the first message of a chat.
        any_beginning: whether texts that begin with white space get the ids of training, too.
        as_ids: whether a server writes other tokens around any text, so that it must be sent ids.
    """

    prefix: str
    suffix: str = ""
    add_special_tokens: bool = True
    cut: int = 0
    is_system: bool = False
    any_beginning: bool = True
    as_ids: bool = False

    def text(self, row_text: str) -> str:
        """Return what a server is sent for a row's text, as `RowTexts.text` gives it."""
        return self.prefix + row_text[self.cut :] + self.suffix


class RowTexts:
    """The texts of a prompt's rows, and their token ids in training.

    Args:
        prompt: the prompt.
    """

    def __init__(self, prompt: ExportedPrompt):
        self.prompt, self.coder = prompt, prompt.encoder()

    @property
    def is_chat(self) -> bool:
        """Whether rows are told as chats."""
        return self.coder.chats is not None

    @property
    def has_system_turn(self) -> bool:
        """Whether chats begin with a system turn. A chat template may know none."""
        return self.chat("x").messages[0]["role"] in SYSTEM

    @cached_property
    def source(self) -> str:
        """The template of a row's source; of conversations, of the user's turn."""
        template = self.coder.template
        if not isinstance(template, PromptTemplate):
            return "{text}"
        return template.source if self.is_chat or self.coder.is_encoder_decoder else template.source.rstrip()

    def chat(self, text: str) -> Conversation:
        """Return the chat of a row whose fields are `text`."""
        return self.coder.chats.user_turn(self._source_text(text))

    def text(self, text: str) -> str:
        """Return the text of a row whose fields are `text`; a chat as its template renders it."""
        if self.is_chat:
            return self.coder.chats.text(self.chat(text), generation_prompt=True)
        source = self._source_text(text)
        return source if self.coder.is_encoder_decoder else source.rstrip()

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a row whose fields are `text`, with the head that they may begin with."""
        template = self.coder.template
        if not isinstance(template, PromptTemplate):
            return self.coder.content_ids(text)
        return self.coder.content_ids(dict.fromkeys(template.source_columns, text))

    def template(self, form: PromptText) -> str:
        """Return the template of what stands behind a prefix, in which `{name}` is a column.

        For a chat API it is that of the user's turn, with the prefix if no system turn has it; else a chat is told as
        text.
        """
        if form.is_system and not self.has_system_turn:
            return form.prefix.replace("{", "{{").replace("}", "}}") + self.source
        if form.is_system or not self.is_chat:
            return self.source
        chat = self.coder.chats.user_turn(MARK)
        text = self.coder.chats.text(chat, generation_prompt=True)[form.cut :]
        return text.replace("{", "{{").replace("}", "}}").replace(MARK, self.source)

    def _source_text(self, text: str) -> str:
        template = self.coder.template
        if not isinstance(template, PromptTemplate):
            return text
        return template.source_text(dict.fromkeys(template.source_columns, text))


def with_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[ExportedPrompt]) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer with the prompts' tokens, which are special, not normalised, and strip nothing.

    Raise PromptTuningError if it has a token of that name already.
    """
    tokens, known = [token for prompt in prompts for token in prompt.tokens], tokenizer.get_vocab()
    if taken := [token for token in tokens if token in known]:
        raise PromptTuningError(
            f"the tokenizer has the token {taken[0]!r} already; give the prompt another name, or export to the "
            "backbone without prompts."
        )
    extended = copy.deepcopy(tokenizer)
    added = [AddedToken(token, special=True, normalized=False, lstrip=False, rstrip=False) for token in tokens]
    extended.add_tokens(added, special_tokens=True)
    if (chat_template := chat_template_of(prompts)) is not None:
        extended.chat_template = chat_template
    return extended


def chat_template_of(prompts: Sequence[ExportedPrompt]) -> str | None:
    """Return the chat template that the prompts were trained with, None without one.

    Raise PromptTuningError if they have several.
    """
    templates: dict[str, str] = {}
    for prompt in prompts:
        chat = getattr(prompt.encoder().template, "chat", None)
        if chat is not None and isinstance(chat.chat_template, str):
            templates[prompt.name] = chat.chat_template
    first = next(iter(templates), None)
    if other := next((name for name, text in templates.items() if text != templates[first]), None):
        raise PromptTuningError(
            f"the prompts {first!r} and {other!r} were trained with different chat templates, and a server has one; "
            "export them apart."
        )
    return templates.get(first)


def prompt_text(prompt: ExportedPrompt, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> PromptText:
    """Find how a prompt's tokens are written into texts.

    Args:
        prompt: the prompt.
        tokenizer: the tokenizer with its tokens.
        token_ids: their P ids.

    Raises:
        PromptTuningError: in no form the tokenizer gives the ids of training.
    """
    rows = RowTexts(prompt)
    forms = list(_system_forms(prompt) if prompt.position == "system" and rows.is_chat else _forms(rows, prompt))
    every = (*SAMPLE_TEXTS, *BEGINNINGS)
    usual = tuple(text for text in every if not text[0].isspace())
    for texts in (every, usual):
        for form in forms:
            if all(ids_of(form, rows, text, tokenizer) == wanted_ids(rows, text, token_ids) for text in texts):
                return replace(form, any_beginning=texts is every)
    text = next(t for t in usual if ids_of(forms[0], rows, t, tokenizer) != wanted_ids(rows, t, token_ids))
    raise PromptTuningError(
        f"the tokenizer {type(tokenizer).__name__} gives {text[:30]!r} other tokens behind those of the prompt "
        f"{prompt.name!r} ({ids_of(forms[0], rows, text, tokenizer)[-8:]}) than in training "
        f"({wanted_ids(rows, text, token_ids)[-8:]}); serve it by embeddings (export_vllm), or with transformers."
    )


def wanted_ids(rows: RowTexts, text: str, token_ids: Sequence[int]) -> list[int]:
    """Return the ids of a row as the backbone reads it: the head, the prompt's, and the rest."""
    head = rows.prompt.head
    return [*head, *token_ids, *without_head(rows.ids(text), head)]


def ids_of(form: PromptText, rows: RowTexts, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that a server's tokenizer gives for a row whose fields are `text`."""
    if form.is_system:
        chat = with_prefix(rows.chat(text), form.prefix)
        return tokenizer(rows.coder.chats.text(chat, generation_prompt=True), add_special_tokens=False)["input_ids"]
    return tokenizer(form.text(rows.text(text)), add_special_tokens=form.add_special_tokens)["input_ids"]


def with_prefix(chat: Conversation, prefix: str) -> Conversation:
    """Return a chat whose first message begins with a prefix."""
    first, *rest = chat.messages
    return replace(chat, messages=[first | {"content": prefix + first["content"]}, *rest])


def _system_forms(prompt: ExportedPrompt) -> Iterator[PromptText]:
    for space in ("", " "):
        yield PromptText("".join(prompt.tokens) + space, is_system=True, add_special_tokens=False)


def _forms(rows: RowTexts, prompt: ExportedPrompt) -> Iterator[PromptText]:
    tokens, decoded = "".join(prompt.tokens), prompt.tokenizer.decode
    for space in ("", " ") if not rows.is_chat else ():
        yield PromptText(tokens + space)
    if rows.is_chat:
        head, before, suffix = _head_of(rows.text("x"), prompt), "", ""
        cut = len(head)
    else:
        leading, trailing = special_around(rows.ids("x"), prompt.tokenizer)
        rest = without_head(leading, prompt.head)
        head, before, suffix, cut = decoded(prompt.head), decoded(rest), decoded(trailing), 0
    # Where the tokenizer writes no special tokens anyway, a request need not forbid them: some servers refuse the key.
    for add_special_tokens in (True, False):
        for space in ("", " "):
            yield PromptText(head + tokens + before + space, suffix, add_special_tokens, cut)


def _head_of(text: str, prompt: ExportedPrompt) -> str:
    """Return the beginning of a chat's text that is the prompt's head."""
    for length in range(len(text) + 1):
        if prompt.tokenizer(text[:length], add_special_tokens=False)["input_ids"] == prompt.head:
            return text[:length]
    return ""


def special_around(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens in front of a row's own, and those behind."""
    special = set(tokenizer.all_special_ids)
    words = [i for i, token in enumerate(ids) if token not in special]
    return (ids[: words[0]], ids[words[-1] + 1 :]) if words else (ids, [])


def request(
    prompt: ExportedPrompt, form: PromptText, token_ids: Sequence[int], model: str
) -> tuple[str, dict[str, Any]]:
    """Return the path of a server's OpenAI API and a request for one row, with which answers are greedy."""
    rows = RowTexts(prompt)
    coder, text = rows.coder, SAMPLE_TEXTS[0]
    limit = max(map(len, coder.label_token_ids), default=coder.template.max_target_length or MAX_TOKENS)
    body: dict[str, Any] = {"model": model, "max_tokens": limit, "temperature": 0}
    # Servers stop by themselves at the end tokens of the checkpoint's generation config, and some refuse the key.
    known = prompt.model.get_base_model().generation_config.eos_token_id
    written = coder.end_ids or [prompt.tokenizer.eos_token_id]  # of plain text, what stands behind each target
    if ends := [i for i in written if i is not None and i not in (known if isinstance(known, list) else [known])]:
        body["stop_token_ids"] = ends
    if form.is_system:
        chat = with_prefix(rows.chat(text), form.prefix)
        body["messages"] = chat.messages
        return "/v1/chat/completions", body | ({"chat_template_kwargs": dict(chat.kwargs)} if chat.kwargs else {})
    body["prompt"] = wanted_ids(rows, text, token_ids) if form.as_ids else form.text(rows.text(text))
    return "/v1/completions", body | ({} if form.add_special_tokens or form.as_ids else {"add_special_tokens": False})

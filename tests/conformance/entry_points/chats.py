"""Conversations through a chat template: their tokens, and the predictions of what the assistant writes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from hf_prompt_tuning import ChatFormat, ChatTemplate, DataCollatorForPromptTuning

from .. import oracle
from ..families import CAUSAL
from ..prompts import names_of
from ..rows import IGNORED
from ..tokenizers import tokenizer_of
from ..world import Setting, World, require
from .base import EntryPoint

WORDS = ("never came", "thank you", "why", "line down again", "day")
ANSWER = {
    "plain": "{{ m.content + eos_token }}",
    "marked": "{% generation %}{{ m.content + eos_token }}{% endgeneration %}",
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role + '\n' }}"
    "{% if m.role == 'assistant' %}ANSWER{% else %}{{ m.content }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Told:
    """Conversations, as they are drawn.

    Attributes:
        words: of each conversation, the numbers of its turns' words, a user's and an assistant's in turn.
        names: the prompt of each.
        style: of the template, one of `ANSWER`.
        loss: on all turns of the assistant, or the last.
        side: the side of the pads.
        grad: whether gradients are asked for.
    """

    words: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    style: str
    loss: str
    side: str
    grad: bool

    def again(self, turn: int) -> "Told":
        words = tuple(tuple((word + turn) % len(WORDS) for word in row) for row in self.words)
        return dataclasses.replace(self, words=words, names=self.names[turn % len(self.names) :] + self.names)

    def messages(self, row: int) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": WORDS[word]} for i, word in enumerate(self.words[row])]


class Chats(EntryPoint):
    """The labelled tokens' predictions."""

    name, cases = "conversations", 400
    families = list(CAUSAL)  # noqa: RUF012
    dtypes = ("float32",)

    def arguments(self, draw: Any, setting: Setting) -> Told:
        lengths = draw(st.lists(st.sampled_from([2, 2, 4]), min_size=1, max_size=4))
        words = st.integers(0, len(WORDS) - 1)
        return Told(
            words=tuple(tuple(draw(words) for _ in range(length)) for length in lengths),
            names=tuple(draw(st.sampled_from(names_of(len(setting.prompts)))) for _ in lengths),
            style=draw(st.sampled_from(list(ANSWER))),
            loss=draw(st.sampled_from(["all", "last"])),
            side=draw(st.sampled_from(["right", "left"])),
            grad=draw(st.booleans()),
        )

    def call(self, world: World, call: Told) -> Any:
        tokenizer = tokenizer_of(world.setting.family)
        tokenizer.padding_side = call.side
        chat = ChatFormat(chat_template=TEMPLATE.replace("ANSWER", ANSWER[call.style]), assistant_loss=call.loss)
        encoder = world.model.row_encoder(tokenizer, ChatTemplate(chat=chat))
        rows = [encoder.encode({"messages": call.messages(row)}) for row in range(len(call.words))]
        batch = DataCollatorForPromptTuning(tokenizer)(
            [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
        )
        with torch.set_grad_enabled(call.grad):
            found = world.model(**batch, adapter_names=list(call.names[: len(rows)]), only_labelled=True)
        return rows, found

    @torch.no_grad()
    def check(self, world: World, call: Told, got: Any) -> None:
        rows, found = got
        for row, encoded in enumerate(rows):
            ids, labels = by_hand(world, call, row)
            require(encoded["input_ids"] == ids.tolist(), f"tokens of row {row}")
            require(encoded["labels"] == labels.tolist(), f"labels of row {row}")
            prompt = world.prompt(call.names[row])
            expected, targets = oracle.predictions(world.bare, prompt, ids, labels)
            require(torch.equal(found.targets[found.rows == row], targets), f"targets of row {row}")
            world.require_close(f"logits of row {row}", found.logits[found.rows == row], expected)


def by_hand(world: World, call: Told, row: int) -> tuple[Tensor, Tensor]:
    """The tokens of a conversation, and its labels, from the places of the answers in the text."""
    tokenizer = tokenizer_of(world.setting.family)
    text, spans = "", []
    for message in call.messages(row):
        text += message["role"] + "\n"
        if message["role"] == "assistant":
            answer = message["content"] + tokenizer.eos_token
            spans.append((len(text), len(text + answer)))
            text += answer + "\n"
        else:
            text += message["content"] + "\n"
    spans = spans[-1:] if call.loss == "last" else spans
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    kept = [any(a < to and b > at for at, to in spans) for a, b in encoded["offset_mapping"]]
    ids = torch.tensor(encoded["input_ids"])
    return ids, torch.where(torch.tensor(kept), ids, IGNORED)

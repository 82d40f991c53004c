"""Calls that cannot be right: each is refused by name, before anything has changed."""

import re
from typing import Any

import torch
from hypothesis import strategies as st

from ..families import VOCAB
from ..prompts import asked
from ..refusals import BROKEN
from ..rows import rows
from ..world import Setting, Unequal, World
from .base import Call, EntryPoint, batch

CALLS = ("forward", "labelled", "only_labelled", "candidates", "generate")


class Broken(EntryPoint):
    """One argument is broken."""

    name, cases = "broken arguments", 300
    befores = ["nothing", "the same call", "another thread"]  # noqa: RUF012

    def arguments(self, draw: Any, setting: Setting) -> tuple[str, str, Call]:
        drawn = draw(rows(mask=True))
        how = draw(st.sampled_from(list(BROKEN)))
        kind = draw(st.sampled_from(CALLS))
        kind = {"short labels": "labelled", "a label beyond the vocabulary": "labelled"}.get(how, kind)
        kind = "candidates" if how == "an empty candidate" else kind
        if how == "an unknown argument" and kind in ("forward", "labelled"):
            kind = "generate"  # some backbones' `forward` takes anything
        return how, kind, Call(drawn, draw(asked(len(setting.prompts), len(drawn.lengths))), False, "ids")

    def call(self, world: World, call: tuple[str, str, Call]) -> None:
        how, kind, whole = call
        given = batch(world, whole)
        arguments: dict[str, Any] = given.inputs | whole.asked.arguments
        if kind in ("labelled", "only_labelled") or (kind == "forward" and world.family.is_encoder_decoder):
            arguments["labels"] = given.labels.clone()
        if kind == "only_labelled":
            arguments["only_labelled"] = True
        if kind == "candidates":
            arguments["candidates"] = [[20], [21, 22]]
        _break(how, arguments, world)
        with torch.no_grad():
            world.model.generate(**arguments, max_new_tokens=2) if kind == "generate" else world.model(**arguments)

    def reason(self, call: tuple[str, str, Call], message: str) -> str | None:
        return f"broken: {call[0]}" if re.search(BROKEN[call[0]], message) else None

    def check(self, world: World, call: Any, got: None) -> None:
        raise Unequal(f"{call[0]} is accepted by {call[1]}")


def _break(how: str, arguments: dict[str, Any], world: World) -> None:
    """Breaks one of the arguments."""
    ids, mask = arguments["input_ids"], arguments["attention_mask"]
    if how == "a short mask":
        arguments["attention_mask"] = mask[:, 1:]
    elif how == "a mask of three dimensions":
        arguments["attention_mask"] = mask[None].expand(2, -1, -1)
    elif how == "a mask of fewer rows":
        arguments["attention_mask"] = torch.cat([mask, mask])
    elif how == "short labels":
        labels = arguments["labels"]
        arguments["labels"] = labels[:-1] if world.family.is_encoder_decoder else labels[:, 1:]
    elif how in ("an id beyond the vocabulary", "an id below 0"):
        arguments["input_ids"] = ids.clone()
        arguments["input_ids"][-1, int(mask[-1].nonzero()[0])] = VOCAB if "beyond" in how else -1
    elif how == "an unknown name":
        arguments["adapter_names"] = ["nobody"] * len(ids)
    elif how == "more names":
        arguments["adapter_names"] = ["default"] * (len(ids) + 1)
    elif how == "one name":
        arguments["adapter_names"] = "nobody"
    elif how == "ids and embeddings":
        arguments["inputs_embeds"] = world.backbone.get_input_embeddings()(ids)
    elif how == "neither":
        del arguments["input_ids"]
    elif how == "an unknown argument":
        arguments["no_such_argument"] = 1
    elif how == "a label beyond the vocabulary":
        arguments["labels"] = torch.full_like(arguments["labels"], VOCAB)
    elif how == "an empty candidate":
        arguments["candidates"] = [[20], []]

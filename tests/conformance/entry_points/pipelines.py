"""`pipeline("prompt-classification")` and `pipeline("prompt-generation")`: rows of columns in, labels or texts out."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import pipeline

from .. import oracle
from ..families import FAMILIES
from ..prompts import names_of
from ..rows import ends
from ..tables import SOURCES, TEXTS, Table, source_ids, tables, target_ids
from ..tokenizers import tokenizer_of
from ..world import Setting, World, require
from .base import EntryPoint
from .generate import SOON, tied

SHAPES = ("dicts", "texts", "single", "generator", "dataset")


@dataclass(frozen=True)
class Piped:
    """A call of a pipeline, as it is drawn.

    Attributes:
        table: the rows.
        shape: of the input, one of `SHAPES`.
        names: the prompt of each row; None for the active one, a text for all of them.
        batch_size: of the pipeline.
        options: further arguments.
        ends_soon: whether the backbone's own config says that a third of all tokens end a text.
    """

    table: Table
    shape: str
    names: tuple[str, ...] | str | None
    batch_size: int
    options: tuple[tuple[str, Any], ...] = ()
    ends_soon: bool = False

    def again(self, turn: int) -> "Piped":
        texts = tuple((text + turn) % len(TEXTS) for text in self.table.texts)
        return dataclasses.replace(self, table=dataclasses.replace(self.table, texts=texts))

    def name(self, row: int, active: str) -> str:
        if self.names is None:
            return active
        return self.names if isinstance(self.names, str) else self.names[row]

    def rows(self) -> int:
        return 1 if self.shape == "single" else len(self.table.texts)


class Pipeline(EntryPoint):
    """What both pipelines share."""

    task: str
    dtypes = ("float32",)
    options: tuple[tuple[tuple[str, Any], ...], ...] = ((),)

    def arguments(self, draw: Any, setting: Setting) -> Piped:
        table = draw(tables(given=True))
        shape, known = draw(st.sampled_from(SHAPES)), names_of(len(setting.prompts))
        names: Any = draw(st.sampled_from([None, *known]))
        if shape in ("dicts", "texts") and draw(st.booleans()):
            names = tuple(draw(st.sampled_from(known)) for _ in table.texts)
        options = draw(st.sampled_from(self.options))
        if "max_length" in dict(options) and not FAMILIES[setting.family].is_encoder_decoder:
            options = ()  # it counts a batch's columns, which differ from the row's alone
        return Piped(table, shape, names, draw(st.integers(1, 4)), options, draw(st.booleans()))

    def template(self, table: Table, prompt: int) -> Any:
        """Of the prompt of that number."""
        raise NotImplementedError

    def prepare(self, world: World, call: Piped) -> None:
        for number, name in enumerate(names_of(len(world.setting.prompts))):
            world.model.prompt_info[name].template = self.template(call.table, number)
        if call.ends_soon:
            world.backbone.generation_config.eos_token_id = list(SOON)

    def call(self, world: World, call: Piped) -> Any:
        made = pipeline(self.task, model=world.model, tokenizer=tokenizer_of(world.setting.family))
        rows: Any = call.table.rows()
        options = dict(call.options) | {"batch_size": call.batch_size}
        if call.names is not None:
            options["adapter_names"] = call.names if isinstance(call.names, str) else list(call.names)
        if call.shape == "single":
            return [made(rows[0], **options)]
        inputs = {
            "dicts": rows,
            "texts": [row[call.table.text_column] for row in rows],
            "generator": (row for row in rows),
            "dataset": call.table.dataset(),
        }
        return list(made(inputs[call.shape], **options))

    @torch.no_grad()
    def check(self, world: World, call: Piped, got: Any) -> None:
        tokenizer, known = tokenizer_of(world.setting.family), names_of(len(world.setting.prompts))
        require(len(got) == call.rows(), f"{len(got)} results for {call.rows()} rows")
        for row, found in enumerate(got):
            name = call.name(row, world.active)
            ids = source_ids(world.setting.family, tokenizer, call.table.source_text(row))
            self.check_row(world, call, (name, known.index(name)), ids, found)

    def check_row(self, world: World, call: Piped, prompt: tuple[str, int], ids: Tensor, found: Any) -> None:
        """Raises Unequal where a row's result is not the oracle's; `prompt` is its name and number."""
        raise NotImplementedError


class Classification(Pipeline):
    """Labels with scores that sum to 1."""

    name, cases, task = "classification pipeline", 450, "prompt-classification"
    options = ((), (("top_k", 1),), (("top_k", 2),), (("top_k", 9),))

    def template(self, table: Table, prompt: int) -> Any:
        return table.template(prompt)

    def check_row(self, world: World, call: Piped, prompt: tuple[str, int], ids: Tensor, found: Any) -> None:
        tokenizer, family = tokenizer_of(world.setting.family), world.setting.family
        words = call.table.words_of(prompt[1])
        source = SOURCES[call.table.source]
        targets = [target_ids(family, tokenizer, source, text) for text in words]
        vectors = world.prompt(prompt[0])
        shares = torch.stack([oracle.score(world.bare, vectors, ids, target) for target in targets]).softmax(0)
        top = dict(call.options).get("top_k")
        found = [found] if top is None else found
        require(len(found) == min(top or 1, len(words)), f"{len(found)} labels")
        order = shares.argsort(descending=True).tolist()
        for place, one in enumerate(found):
            require(one["label"] in words, f"the label {one['label']!r} is none of {words}")
            which = words.index(one["label"])
            world.require_close(f"score of {one['label']!r}", one["score"], shares[which])
            tie = abs(shares[which] - shares[order[place]]) < 1e-4
            require(which == order[place] or tie, f"label {place} is {one['label']!r}, not {words[order[place]]!r}")


class Generation(Pipeline):
    """Texts."""

    name, cases, task = "generation pipeline", 350, "prompt-generation"
    options = (
        (("max_new_tokens", 3),),
        (("max_new_tokens", 4), ("num_beams", 1)),
        (("max_length", 5),),
        (),
    )
    limits = (3, 5)
    """`max_target_length` of the prompts in turn."""

    def template(self, table: Table, prompt: int) -> Any:
        template = table.template(prompt)
        limit = self.limits[prompt % 2]
        return dataclasses.replace(
            template, label_column=None, label_words=None, target="{answer}", max_target_length=limit
        )

    def check_row(self, world: World, call: Piped, prompt: tuple[str, int], ids: Tensor, found: Any) -> None:
        options = dict(call.options)
        new = options.get("max_new_tokens", self.limits[prompt[1] % 2])
        if "max_length" in options:  # counts the decoder's start
            new = options["max_length"] - 1
        own = SOON if call.ends_soon else ends(world.setting.family)
        expected = written(world, prompt[0], ids, new, own)
        require(expected in (found["generated_text"], None), f"{found['generated_text']!r}, not {expected!r}")


def written(world: World, name: str, ids: Tensor, new: int, own_ends: list[int]) -> str | None:
    """What is greedily written behind a row, up to one of the backbone's own ends or the tokenizer's; None: a tie."""
    tokenizer = tokenizer_of(world.setting.family)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    said = {"max_new_tokens": new, "do_sample": False, "num_beams": 1, "pad_token_id": pad}
    said["eos_token_id"] = list(dict.fromkeys([*own_ends, tokenizer.eos_token_id]))
    right = oracle.generated(world.bare, world.prompt(name), ids, **said)
    best = [step[0].topk(2).indices.tolist() for step in right.scores]
    if any(tied(world, step[0], two[1], two[0]) for step, two in zip(right.scores, best, strict=True)):
        return None
    return tokenizer.decode(right.sequences[0, -len(right.scores) :], skip_special_tokens=True).strip()

"""`model(…)` with a head for classes, tags or answers, or without a head: what it reads of each row alone, by hand."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.shared.classifiers import TOKEN_TYPES, hidden_by_hand, logits_by_hand

from ..families import FAMILIES, HEADED
from ..prompts import DISABLED, NO_PROMPT, Asked, names_of
from ..rows import IGNORED, Batch, rows
from ..world import Setting, World, require
from .base import Call, EntryPoint, batch, prompts_of

CLASSES = 3
BEFORE = ["nothing", "the same call", "a reloaded prompt", "an edited weight", "another thread", "threads at once"]
"""The others call the model as a language model's is called."""
ANSWERS = "start_positions", "end_positions"


@dataclass(frozen=True)
class Reading(Call):
    """A call, as it is drawn: whether token types are given, and labels."""

    types: bool = False
    labelled: bool = True


class Heads(EntryPoint):
    """Logits or hidden states of the text's tokens, the loss, and the gradients of the prompt and its head."""

    name, cases = "heads", 700
    befores = BEFORE
    dtypes = ("float32",)
    families = list(HEADED)  # noqa: RUF012

    def arguments(self, draw: Any, setting: Setting) -> Reading:
        drawn, family = draw(rows()), FAMILIES[setting.family]
        name = draw(st.sampled_from([None, *names_of(len(setting.prompts)), NO_PROMPT]))
        names = None if name is None else (name,) * len(drawn.lengths)
        return Reading(
            rows=drawn,
            asked=Asked(names, "no" if names else draw(st.sampled_from(["no", "no", *DISABLED]))),
            grad=draw(st.booleans()),
            style=draw(st.sampled_from(["ids", "tuple"] if family.reads_decoder else ["ids", "tuple", "embeddings"])),
            types=family.model_type in TOKEN_TYPES and draw(st.booleans()),
            labelled=family.task_type != "FEATURE_EXTRACTION" and draw(st.booleans()),
        )

    def call(self, world: World, call: Reading) -> Any:
        given, labels, types = _drawn(world, call)
        inputs = given.inputs | labels | call.asked.arguments | ({"token_type_ids": types} if call.types else {})
        if call.style == "embeddings":
            inputs["inputs_embeds"] = world.bare.get_input_embeddings()(inputs.pop("input_ids"))
        with torch.set_grad_enabled(call.grad), call.asked.within(world.model):
            found = world.model(**inputs, return_dict=call.style != "tuple")
            found = list(found if call.style == "tuple" else found.values())
            loss = found.pop(0) if call.labelled else None
            answers = world.family.task_type == "QUESTION_ANS"
            outputs = torch.stack(found[:2], dim=-1) if answers else found[0]
            return outputs.detach(), loss, gradients_of(world, call, loss)

    def check(self, world: World, call: Reading, got: Any) -> None:
        outputs, loss, gradients = got
        given, labels, types = _drawn(world, call)
        expected = _right(world, call, given, types)
        if world.family.task_type == "SEQ_CLS":
            world.require_close("logits", outputs, torch.stack(expected))
        else:
            require(outputs.shape[:2] == given.input_ids.shape, "shape of the outputs")
            for row, (columns, right) in enumerate(zip(given.columns, expected, strict=True)):
                world.require_close(f"outputs of row {row}", outputs[row, columns], right)
        if loss is not None:
            right = _right_loss(world, given, labels, expected)
            world.require_close("loss", loss, right)
            require_gradients(world, gradients, gradients_of(world, call, right))


def _drawn(world: World, call: Reading) -> tuple[Batch, dict[str, Tensor], Tensor]:
    """The batch, its labels by the names that `forward` has for them, and token types [B, T]."""
    given, task = batch(world, call), world.family.task_type
    generator = torch.Generator().manual_seed(call.rows.seed + 5)
    if world.family.reads_decoder and task == "SEQ_CLS":
        for row, columns in enumerate(given.columns):
            given.input_ids[row, columns[-1]] = world.family.token("eos")
            given.texts[row][-1] = world.family.token("eos")
    types = torch.randint(2, given.input_ids.shape, generator=generator)
    if not call.labelled:
        return given, {}, types
    if task == "SEQ_CLS":
        return given, {"labels": torch.randint(CLASSES, (len(given.texts),), generator=generator)}, types
    if task == "TOKEN_CLS":
        return given, {"labels": torch.where(given.labels == IGNORED, IGNORED, given.labels % CLASSES)}, types
    width = given.input_ids.shape[1]
    positions = [[int(columns[0]), int(columns[-1]), width, width + 3] for columns in given.columns]
    chosen = torch.randint(4, (2, len(positions)), generator=generator)
    return given, dict(zip(ANSWERS, torch.tensor(positions).gather(1, chosen.T).T, strict=True)), types


def _head(world: World, name: str) -> Any:
    return dict(world.bare.named_children()) if name == NO_PROMPT else world.model.prompt_encoder[name].classifier


def _right(world: World, call: Reading, given: Batch, types: Tensor) -> list[Tensor]:
    """Of each row the logits, or the hidden states [n, H]. Prompts and heads are the model's own, for gradients."""
    found, read = [], logits_by_hand(world.family.task_type)
    with torch.set_grad_enabled(call.grad):
        for row, name in enumerate(prompts_of(world, call)):
            inputs = {"token_type_ids": types[row, given.columns[row]]} if call.types else {}
            vectors = torch.zeros(0, world.bare.get_input_embeddings().embedding_dim)
            if name != NO_PROMPT:
                vectors = world.model.prompt_encoder[name].embedding.weight
            hidden = hidden_by_hand(world.bare, vectors, given.texts[row], 0, **inputs)
            features = world.family.task_type == "FEATURE_EXTRACTION"
            found.append(hidden if features else read(world.bare, _head(world, name), hidden))
    return found


def _right_loss(world: World, given: Batch, labels: dict[str, Tensor], expected: list[Tensor]) -> Tensor:
    task = world.family.task_type
    if task == "SEQ_CLS":
        return cross_entropy(torch.stack(expected), labels["labels"])
    if task == "TOKEN_CLS":
        targets = [row[columns] for row, columns in zip(labels["labels"], given.columns, strict=True)]
        total = cross_entropy(torch.cat(expected), torch.cat(targets), reduction="sum", ignore_index=IGNORED)
        return total / max(int((torch.cat(targets) != IGNORED).sum()), 1)
    sides = []
    for side, name in enumerate(ANSWERS):
        losses = [
            cross_entropy(row[None, :, side], (columns == at).nonzero()[0])
            for row, columns, at in zip(expected, given.columns, labels[name], strict=True)
            if at < given.input_ids.shape[1]
        ]
        sides.append(sum(losses) / len(losses) if losses else torch.zeros(()))
    return sum(sides) / 2


def gradients_of(world: World, call: Call, loss: Tensor | None) -> list[Tensor]:
    """Those of all prompts and heads."""
    weights = list(world.model.prompt_encoder.parameters())
    if loss is None or not call.grad or not loss.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [
        torch.zeros_like(weight) if gradient is None else gradient
        for weight, gradient in zip(weights, found, strict=True)
    ]


def require_gradients(world: World, got: list[Tensor], expected: list[Tensor]) -> None:
    """Raises Unequal where a gradient is off by a part of the largest of all."""
    largest = max((float(gradient.abs().max()) for gradient in expected), default=0.0)
    for gradient, right in zip(got, expected, strict=True):
        world.require_close("gradient", gradient / max(largest, 1e-3), right / max(largest, 1e-3))

"""`model(…)`: logits with and without labels, labelled tokens alone, candidates."""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from hf_prompt_tuning import LabelSearch
from hf_prompt_tuning.layouts import label_search

from .. import oracle
from ..families import VOCAB
from ..prompts import asked
from ..rows import IGNORED, Batch, rows
from ..world import Setting, Unequal, World, require
from .base import Call, EntryPoint, batch, prompts_of

STYLES = ("ids", "embeddings", "positions", "tuple", "smoothed", "counted")


def _draw(draw: Any, setting: Setting, styles: tuple[str, ...], kind: type[Call] = Call, **more: Any) -> Any:
    drawn = draw(rows())
    return kind(
        rows=drawn,
        asked=draw(asked(len(setting.prompts), len(drawn.lengths))),
        grad=draw(st.booleans()),
        style=draw(st.sampled_from(styles)),
        **more,
    )


def _inputs(world: World, call: Call, given: Batch) -> dict[str, Any]:
    inputs = given.inputs | call.asked.arguments
    if call.style == "embeddings":
        ids = inputs.pop("input_ids")
        inputs["inputs_embeds"] = torch.stack([oracle.embedded(world.bare, row) for row in ids]).detach()
    if call.style == "positions" and not world.family.is_encoder_decoder:
        mask = torch.ones_like(given.input_ids) if given.mask is None else given.mask
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if call.style == "smoothed":
        inputs["label_smoothing"] = 0.1
    if call.style == "counted":
        inputs["num_items_in_batch"] = 7
    if call.style == "tuple":
        inputs["return_dict"] = False
    return inputs


def _trained(world: World, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of each prompt."""
    names = list(world.model.prompt_encoder)
    weights = [world.model.prompt_encoder[name].embedding.weight for name in names]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else [None] * len(names)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for name, weight, gradient in zip(names, weights, gradients, strict=True)
    }


def _right_loss(world: World, call: Call, given: Batch, bare: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over all labelled tokens and its gradient at each prompt, row by row by hand."""
    leaves = {name: world.prompt(name).requires_grad_() for name in world.model.prompt_encoder}
    found = [
        oracle.predictions(bare, leaves.get(name), ids, labels)
        for name, ids, labels in zip(prompts_of(world, call), given.texts, given.targets, strict=True)
    ]
    predicted, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    smoothing = 0.1 if call.style == "smoothed" else 0.0
    total = torch.nn.functional.cross_entropy(predicted.float(), targets, reduction="sum", label_smoothing=smoothing)
    loss = total / (7 if call.style == "counted" else max(len(targets), 1))
    vectors = list(leaves.values())
    gradients = torch.autograd.grad(loss, vectors, allow_unused=True) if loss.requires_grad else [None] * len(vectors)
    return loss, {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _check_loss(world: World, call: Call, given: Batch, loss: Tensor, gradients: dict[str, Tensor]) -> None:
    expected, right = _right_loss(world, call, given, world.bare)
    world.require_close("loss", loss, expected)
    try:
        _check_gradients(world, gradients, right)
    except Unequal:
        # Half precision may round the oracle's further from the truth than the package's.
        if world.backbone.dtype == torch.float32:
            raise
        _check_gradients(world, gradients, _right_loss(world, call, given, world.precise)[1])


def _check_gradients(world: World, gradients: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    largest = max((float(gradient.abs().max()) for gradient in right.values()), default=0.0)
    for name, gradient in gradients.items():
        # Against the largest of all: a prompt that hardly matters has a gradient of rounding errors.
        scale = max(largest, 1e-3)
        world.require_close(f"gradient of {name}", gradient / scale, right[name] / scale)


class Forward(EntryPoint):
    """Logits [B, P+T, V] (of an encoder-decoder [B, T', V]), without labels."""

    name, cases, labelled = "forward", 1500, False

    def arguments(self, draw: Any, setting: Setting) -> Call:
        return _draw(draw, setting, STYLES if self.labelled else ("ids", "embeddings", "positions", "tuple"))

    def call(self, world: World, call: Call) -> Any:
        given = batch(world, call)
        # With a cache the state of an RWKV in eval mode is changed in place, also without a prompt.
        inputs = _inputs(world, call, given) | ({"use_cache": False} if call.grad else {})
        if self.labelled or world.family.is_encoder_decoder:
            inputs["labels"] = given.labels.clone()
        with torch.set_grad_enabled(call.grad), call.asked.within(world.model):
            found = world.model(**inputs)
            if call.style == "tuple":
                loss, logits = found[:2] if "labels" in inputs else (None, found[0])
            else:
                loss, logits = found.loss, found.logits
            return loss, logits, _trained(world, loss) if call.grad and loss is not None else {}

    def check(self, world: World, call: Call, got: Any) -> None:
        loss, logits, gradients = got
        given, names = batch(world, call), prompts_of(world, call)
        if loss is not None:
            _check_loss(world, call, given, loss, gradients)
        with torch.no_grad():
            if world.family.is_encoder_decoder:
                _check_decoder(world, names, given, logits)
            else:
                _check_columns(world, names, given, logits)


def _check_columns(world: World, names: list[str], given: Batch, logits: Tensor) -> None:
    """Column P+t of the logits is the caller's column t, and the prompts end at column P-1."""
    lengths = [0 if name == "__base__" else len(world.prompt(name)) for name in names]
    most = max(lengths)
    require(
        logits.shape == (*given.input_ids.shape[:1], most + given.input_ids.shape[1], VOCAB), "shape of the logits"
    )
    for row, (name, length) in enumerate(zip(names, lengths, strict=True)):
        expected = oracle.logits(world.bare, world.prompt(name), given.texts[row])
        columns = torch.cat([torch.arange(most - length, most), most + given.columns[row]])
        world.require_close(f"logits of row {row}", logits[row, columns], expected)


def _check_decoder(world: World, names: list[str], given: Batch, logits: Tensor) -> None:
    for row, name in enumerate(names):
        expected, targets = oracle.predictions(world.bare, world.prompt(name), given.texts[row], given.targets[row])
        columns = (given.labels[row] != IGNORED).nonzero()[:, 0]
        require(len(columns) == len(targets), "number of targets")
        world.require_close(f"logits of row {row}", logits[row, columns], expected)


class ForwardWithLabels(Forward):
    """The same with labels: the loss, and the gradients at the prompts."""

    name, cases, labelled = "forward with labels", 1500, True


class OnlyLabelled(EntryPoint):
    """The labelled tokens' predictions alone."""

    name, cases = "only_labelled", 1800

    def arguments(self, draw: Any, setting: Setting) -> Call:
        return _draw(draw, setting, ("ids", "embeddings", "smoothed", "counted"))

    def call(self, world: World, call: Call) -> Any:
        given = batch(world, call)
        with torch.set_grad_enabled(call.grad), call.asked.within(world.model):
            found = world.model(**_inputs(world, call, given), labels=given.labels.clone(), only_labelled=True)
            return found, _trained(world, found.loss) if call.grad else {}

    def check(self, world: World, call: Call, got: Any) -> None:
        found, gradients = got
        given = batch(world, call)
        _check_loss(world, call, given, found.loss, gradients)
        with torch.no_grad():
            for row, name in enumerate(prompts_of(world, call)):
                expected, targets = oracle.predictions(
                    world.bare, world.prompt(name), given.texts[row], given.targets[row]
                )
                require(torch.equal(found.targets[found.rows == row], targets), f"targets of row {row}")
                world.require_close(f"logits of row {row}", found.logits[found.rows == row], expected)


@dataclass(frozen=True)
class Ranking(Call):
    """A call with candidates, as it is drawn: their lengths, whether they begin alike, and how many are searched."""

    words: tuple[int, ...] = (1,)
    prefixes: bool = False
    top_k: int | None = None

    def candidates(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.rows.seed + 77)
        longest = torch.randint(12, VOCAB - 12, (8,), generator=generator)
        if self.prefixes:  # one is the beginning of another
            return [longest[: i + 1] for i in range(len(self.words))]
        return [torch.randint(12, VOCAB - 12, (length,), generator=generator) for length in self.words]


class Candidates(EntryPoint):
    """The scores of candidates behind each row."""

    name, cases = "candidates", 1500

    def arguments(self, draw: Any, setting: Setting) -> Ranking:
        words = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
        options = {"prefixes": draw(st.booleans()), "top_k": draw(st.none() | st.integers(1, 3))}
        return _draw(draw, setting, ("ids", "embeddings"), Ranking, words=words, **options)

    def call(self, world: World, call: Ranking) -> Tensor:
        given = batch(world, call)
        candidates = [words.tolist() for words in call.candidates()]
        search = None if call.top_k is None else LabelSearch(call.top_k)
        few = patch.object(label_search, "MIN_NODES", 0)  # so few labels would all be computed
        with torch.set_grad_enabled(call.grad), call.asked.within(world.model), few:
            return world.model(**_inputs(world, call, given), candidates=candidates, search=search).scores

    @torch.no_grad()
    def check(self, world: World, call: Ranking, got: Tensor) -> None:
        given = batch(world, call)
        expected = [
            torch.stack([oracle.score(world.bare, world.prompt(name), ids, words) for words in call.candidates()])
            for name, ids in zip(prompts_of(world, call), given.texts, strict=True)
        ]
        scores = torch.stack(expected)
        if call.top_k is not None and scores.isfinite().all():
            best = min(call.top_k, scores.shape[1])
            world.require_close("best scores", got.topk(best).values, scores.topk(best).values)
        known = got > -torch.inf if call.top_k is not None else torch.ones_like(got, dtype=torch.bool)
        world.require_close("scores", got[known], scores[known])

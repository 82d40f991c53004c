"""Calls with pictures among the texts: logits, labelled tokens, candidates and greedy tokens of each row, by hand."""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_prompt_tuning import LabelSearch
from hf_prompt_tuning.layouts import label_search
from tests.shared.tiny_models import VOCAB
from tests.shared.tiny_pictures import IMAGE, OF_ROWS, batch_of, by_hand, followed_by, picture_rows

from ..families import SEEING
from ..prompts import NO_PROMPT, asked
from ..rows import IGNORED, labels_of, rows
from ..world import Setting, World, require
from .base import BEFORE, EntryPoint, prompts_of
from .forward import Ranking
from .heads import gradients_of, require_gradients

STYLES = ("only_labelled", "labels", "logits", "candidates", "generate")
NEW = 3
GREEDY = dict(
    max_new_tokens=NEW,
    do_sample=False,
    num_beams=1,
    eos_token_id=None,
    pad_token_id=0,
    suppress_tokens=list(range(IMAGE, VOCAB)),
)


@dataclass(frozen=True)
class Looking(Ranking):
    """A call, as it is drawn. A row's length is that of its text, without its pictures.

    Attributes:
        pictures: of each row, how many.
        before: how many tokens stand in front of a row's first picture, and of the picture's start.
        side: which side is padded.
        hidden: whether the mask leaves out each row's first picture.
    """

    pictures: tuple[int, ...] = (1,)
    before: int = 2
    side: str = "right"
    hidden: bool = False


@dataclass(frozen=True)
class Seen:
    """The same as tensors.

    Attributes:
        inputs: the arguments of the model.
        labels: [B, T].
        columns: of each row, those of its real tokens.
        alone: each row as the backbone takes it alone: without pads and without what is masked.
        targets: of each row, the labels of its real tokens.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    columns: list[Tensor]
    alone: list[dict[str, Tensor]]
    targets: list[Tensor]


class Pictures(EntryPoint):
    """Logits, loss and gradients; scores; greedy tokens."""

    name, cases = "pictures", 500
    befores = [name for name in BEFORE if name != "half"]  # noqa: RUF012
    dtypes = ("float32",)
    families = list(SEEING)  # noqa: RUF012

    def arguments(self, draw: Any, setting: Setting) -> Looking:
        drawn = draw(rows(most=4, longest=5))
        return Looking(
            rows=drawn,
            asked=draw(asked(len(setting.prompts), len(drawn.lengths))),
            grad=draw(st.booleans()),
            style=draw(st.sampled_from(STYLES)),
            words=tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))),
            prefixes=draw(st.booleans()),
            top_k=draw(st.none() | st.integers(1, 3)),
            pictures=tuple(draw(st.integers(0, 2)) for _ in drawn.lengths),
            before=draw(st.integers(0, 2)),
            side=draw(st.sampled_from(["right", "left"])),
            hidden=draw(st.sampled_from([False, False, False, True])),
        )

    def prepare(self, world: World, call: Looking) -> None:
        # transformers hooks layers of a vision tower in its first pass, with a prompt or without, and lets them stay.
        with torch.no_grad():
            row = picture_rows(world.family.model_type, [(7, 1)])[0]
            by_hand(world.backbone, _vectors(world, NO_PROMPT), row)

    def call(self, world: World, call: Looking) -> Any:
        given, model = _given(world, call), world.model
        inputs = given.inputs | call.asked.arguments
        with torch.set_grad_enabled(call.grad), call.asked.within(model):
            if call.style == "generate":
                return model.generate(**inputs, **GREEDY)
            if call.style == "candidates":
                candidates = [words.tolist() for words in call.candidates()]
                search = None if call.top_k is None else LabelSearch(call.top_k)
                with patch.object(label_search, "MIN_NODES", 0):  # so few labels would all be computed
                    return model(**inputs, candidates=candidates, search=search).scores
            if call.style == "logits":
                return model(**inputs), []
            found = model(**inputs, labels=given.labels.clone(), only_labelled=call.style == "only_labelled")
            return found, gradients_of(world, call, found.loss)

    def reason(self, call: Looking, message: str) -> str | None:
        hides = "attention_mask is 0 on tokens" in message
        return None if hides and not call.hidden else super().reason(call, message)

    def check(self, world: World, call: Looking, got: Any) -> None:
        given, names = _given(world, call), prompts_of(world, call)
        if call.style == "generate":
            _check_tokens(world, names, given, got)
        elif call.style == "candidates":
            _check_scores(world, names, given, call, got)
        else:
            _check_logits(world, names, given, call, *got)


def _given(world: World, call: Looking) -> Seen:
    kind, generator = world.family.model_type, torch.Generator().manual_seed(call.rows.seed)
    sizes = [
        (2 + length + max(5 * count - 1, 0), count)
        for length, count in zip(call.rows.lengths, call.pictures, strict=True)
    ]
    whole = [
        {name: value[:, 2 - call.before :] if _is_of_tokens(name) else value for name, value in row.items()}
        for row in picture_rows(kind, sizes, call.rows.seed)
    ]
    inputs = batch_of(kind, whole, call.side)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if call.hidden:
        for row in range(len(whole)):
            mask[row, (ids[row] == IMAGE).nonzero()[:4, 0]] = 0
    columns = [row.nonzero()[:, 0] for row in mask]
    alone = [
        {name: value[row : row + 1, columns[row]] for name, value in inputs.items() if _is_of_tokens(name)}
        | _pictures(kind, whole[row], call.pictures[row], call.hidden)
        for row in range(len(whole))
    ]
    if bool(mask.all()) and not call.rows.mask:
        del inputs["attention_mask"]
    labels, targets = labels_of(call.rows, False, ids, columns, generator)
    return Seen(inputs, labels, columns, alone, targets)


def _is_of_tokens(name: str) -> bool:
    return name in ("input_ids", "attention_mask") or name.endswith("token_type_ids")


def _pictures(kind: str, row: dict[str, Tensor], count: int, hidden: bool) -> dict[str, Tensor]:
    """What a row's pictures are made of, without the first one if it is hidden (Qwen's models refuse to hide one)."""
    found = {name: value for name, value in row.items() if not _is_of_tokens(name)}
    if not hidden:
        return found
    if count < 2:
        return {}
    return {name: value[:, 1:] if kind in OF_ROWS else value[1:] for name, value in found.items()}


def _vectors(world: World, name: str) -> Tensor:
    """A prompt's own, for gradients: [P, H]; [0, H] for none."""
    if name == NO_PROMPT:
        return torch.zeros(0, world.backbone.get_input_embeddings().embedding_dim)
    return world.model.prompt_encoder[name].embedding.weight


@torch.no_grad()
def _behind(world: World, name: str, row: dict[str, Tensor], words: Tensor) -> Tensor:
    """[W, V]: what the backbone predicts each of the `words` [W] behind a row from."""
    return by_hand(world.bare, _vectors(world, name), followed_by(row, words.tolist()))[0, -len(words) - 1 : -1]


def _check_tokens(world: World, names: list[str], given: Seen, got: Tensor) -> None:
    ids = given.inputs["input_ids"]
    require(torch.equal(got[:, : ids.shape[1]], ids), "the written rows begin otherwise")
    require(got.shape[1] == ids.shape[1] + NEW, f"{got.shape[1] - ids.shape[1]} new tokens")
    for row, name in enumerate(names):
        said = got[row, ids.shape[1] :]
        logits = _behind(world, name, given.alone[row], said)[:, :IMAGE]
        require(bool((said < IMAGE).all()), f"row {row} says {said.tolist()}")
        world.require_close(f"the best logits of row {row}", logits.gather(1, said[:, None])[:, 0], logits.amax(1))


def _check_scores(world: World, names: list[str], given: Seen, call: Looking, got: Tensor) -> None:
    rows_alone = list(zip(names, given.alone, strict=True))
    expected = torch.tensor(
        [
            [-float(cross_entropy(_behind(world, *row, words), words, reduction="sum")) for words in call.candidates()]
            for row in rows_alone
        ]
    )
    if call.top_k is not None:
        best = min(call.top_k, expected.shape[1])
        world.require_close("best scores", got.topk(best).values, expected.topk(best).values)
    known = got > -torch.inf if call.top_k is not None else torch.ones_like(got, dtype=torch.bool)
    world.require_close("scores", got[known], expected[known])


def _check_logits(
    world: World, names: list[str], given: Seen, call: Looking, got: Any, gradients: list[Tensor]
) -> None:
    vectors = [_vectors(world, name) for name in names]
    with torch.set_grad_enabled(call.grad):
        whole = [by_hand(world.bare, *one)[0] for one in zip(vectors, given.alone, strict=True)]
    most, width = max(map(len, vectors)), given.labels.shape[1]
    predicted, targets = [], []
    if call.style != "only_labelled":
        require(got.logits.shape == (len(names), most + width, VOCAB), "shape of the logits")
    for row, (logits, labels) in enumerate(zip(whole, given.targets, strict=True)):
        length = len(vectors[row])
        places = (labels != IGNORED).nonzero()[:, 0] + length - 1
        places = places[places >= 0]  # without a prompt nothing predicts the first token
        predicted.append(logits[places])
        targets.append(labels[places - length + 1])
        if call.style == "only_labelled":
            require(torch.equal(got.targets[got.rows == row], targets[row]), f"targets of row {row}")
            world.require_close(f"logits of row {row}", got.logits[got.rows == row], predicted[row])
        else:
            columns = torch.cat([torch.arange(most - length, most), most + given.columns[row]])
            world.require_close(f"logits of row {row}", got.logits[row, columns], logits)
    if call.style != "logits":
        count = max(sum(map(len, targets)), 1)
        loss = cross_entropy(torch.cat(predicted), torch.cat(targets), reduction="sum") / count
        world.require_close("loss", got.loss, loss)
        require_gradients(world, gradients, gradients_of(world, call, loss))

"""Batches of token ids: ragged rows, pads at any side, masks given or not, labels anywhere or nowhere."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .families import FAMILIES, VOCAB

IGNORED = -100
LABELS = ("later half", "all", "last", "holes", "none")


@dataclass(frozen=True)
class Rows:
    """A batch, as it is drawn.

    Attributes:
        lengths: of the texts, in tokens.
        pads: the side of the pads: right, left, both or none (all rows are of the first one's length).
        extra: columns of pads more than the longest row needs.
        mask: whether `attention_mask` is given; None where it is not.
        specials: whether rows begin as the real tokenizer's, and hold an end of text.
        labels: of each row, one of `LABELS`.
        shifted: whether the labels are other tokens than those that stand there.
        seed: of the token ids.
    """

    lengths: tuple[int, ...]
    pads: str
    extra: int
    mask: bool
    specials: bool
    labels: tuple[str, ...]
    shifted: bool
    seed: int


@st.composite
def rows(draw: Any, most: int = 6, longest: int = 9, mask: bool | None = None) -> Rows:
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=most))
    return Rows(
        lengths=tuple(lengths),
        pads=draw(st.sampled_from(["right", "left", "both", "none"])),
        extra=draw(st.sampled_from([0, 0, 1, 2])),
        mask=draw(st.sampled_from([True, True, False])) if mask is None else mask,
        specials=draw(st.booleans()),
        labels=tuple(draw(st.sampled_from(LABELS)) for _ in lengths),
        shifted=draw(st.booleans()),
        seed=draw(st.integers(0, 5)),
    )


@dataclass(frozen=True)
class Batch:
    """The same as tensors, and what a reader of single rows needs.

    Attributes:
        input_ids: [B, T].
        mask: [B, T], or None where none is given.
        labels: [B, T] (of an encoder-decoder [B, T'], at the right or left of their columns).
        columns: of each row, those of its real tokens.
        texts: of each row, the real tokens' ids.
        targets: of each row, the labels of its real tokens (of an encoder-decoder, its target).
    """

    input_ids: Tensor
    mask: Tensor | None
    labels: Tensor
    columns: list[Tensor]
    texts: list[Tensor]
    targets: list[Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        given = {"input_ids": self.input_ids}
        return given if self.mask is None else given | {"attention_mask": self.mask}


def batch_of(drawn: Rows, family_name: str, told: tuple[int, list[int]] | None = None) -> Batch:
    """The tensors of a batch.

    Args:
        drawn: the batch.
        family_name: whose special tokens.
        told: the pad token and the ends of text by which `generate` tells pads where no mask is given, as transformers
            does for causal models; None where nothing tells them.
    """
    family, generator = FAMILIES[family_name], torch.Generator().manual_seed(drawn.seed)
    pad, eos = family.token("pad"), family.token("eos")
    lengths = [drawn.lengths[0]] * len(drawn.lengths) if drawn.pads == "none" else drawn.lengths
    width = max(lengths) + (0 if drawn.pads == "none" else drawn.extra)
    ids = torch.full((len(lengths), width), pad if pad is not None else eos)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        text = torch.randint(12, VOCAB - 12, (length,), generator=generator)
        if drawn.specials:
            text[: len(family.start)] = torch.tensor(family.start, dtype=torch.long)[:length] % VOCAB
            text[length // 2] = eos if length > 2 else text[length // 2]
        free = width - length
        left = {"left": free, "both": (free + row % 2) // 2}.get(drawn.pads, 0)
        ids[row, left : left + length], mask[row, left : left + length] = text, 1
    if not drawn.mask:
        known = told is not None and not family.is_encoder_decoder and told[0] not in told[1]
        mask = (ids != told[0]).long() if known else torch.ones_like(ids)
    columns = [row.nonzero()[:, 0] for row in mask]
    texts = [row[kept] for row, kept in zip(ids, columns, strict=True)]
    labels, targets = labels_of(drawn, family.is_encoder_decoder, ids, columns, generator)
    return Batch(ids, mask if drawn.mask else None, labels, columns, texts, targets)


def ends(family_name: str) -> list[int]:
    """The ids that end a text when this family generates."""
    family = FAMILIES[family_name]
    value = family.generation.get("eos_token_id", family.special["eos_token_id"])
    return [one % VOCAB for one in (value if isinstance(value, list) else [value])]


def labels_of(
    drawn: Rows, apart: bool, ids: Tensor, columns: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Labels of a batch and of its rows; for an encoder-decoder texts of their own (`apart`)."""
    if apart:
        texts = [torch.randint(12, VOCAB - 12, (len(kept) % 4 + 1,), generator=generator) for kept in columns]
        columns = [torch.arange(len(text)) for text in texts]
        others = torch.full((len(texts), max(map(len, texts)) + drawn.extra), IGNORED)
        for row, text in enumerate(texts):
            if drawn.pads == "left":
                columns[row] = columns[row] + others.shape[1] - len(text)
            others[row, columns[row]] = text
        ids = others
    elif drawn.shifted:
        ids = torch.randint(12, VOCAB - 12, ids.shape, generator=generator)
    labels = torch.full_like(ids, IGNORED)
    for row, (kind, kept) in enumerate(zip(drawn.labels, columns, strict=True)):
        # A decoder's target is whole or not there; the text's own tokens may be labelled in any places.
        chosen = kept[: len(kept) * (kind != "none")] if apart else kept[_which(kind, len(kept))]
        labels[row, chosen] = ids[row, chosen]
    return labels, [row[kept] for row, kept in zip(labels, columns, strict=True)]


def _which(kind: str, length: int) -> Tensor:
    places = torch.arange(length)
    return {
        "later half": places >= length // 2,
        "all": places >= 0,
        "last": places == length - 1,
        "holes": places % 2 == 0,
        "none": places < 0,
    }[kind]

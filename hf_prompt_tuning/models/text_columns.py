"""Find a text's tokens in rows with a prompt: what a classification head reads are their columns alone.

For h = 1, P = 2 and a text of [CLS], two tokens and a pad at the left:

    the caller's row     ·  c  a0 a1
    the backbone's row   c  p0 p1 a0 a1        `[head | prompt | text | pads]`
    columns              –  0  3  4
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layouts import Prompts
from .heads import RowHeads


@dataclass(frozen=True)
class TextColumns:
    """The columns of the texts' tokens in padded rows.

    Attributes:
        columns: [B, T] long, for each of the caller's tokens; any column for a pad.
        mask: [B, T] bool, True on real tokens, in the caller's columns.
    """

    columns: Tensor
    mask: Tensor

    @classmethod
    def of(cls, prompts: Prompts, mask: Tensor, heads: RowHeads | None) -> "TextColumns":
        """Return the columns of texts with a mask [B, T] behind prompts of one length, in rows without pads in front.

        `heads` are the tokens with which rows begin, in front of the prompt.
        """
        taken = torch.zeros_like(mask) if heads is None else heads.taken
        behind = prompts.lengths()[:, None] + (mask & ~taken).long().cumsum(1) - 1
        return cls(torch.where(taken, taken.long().cumsum(1) - 1, behind).clamp(min=0), mask)

    def at_the_left(self) -> "TextColumns":
        """Return the columns with each row's real tokens first: column 0 is a text's first token."""
        order = torch.argsort(~self.mask, dim=1, stable=True)
        return TextColumns(self.columns.gather(1, order), self.mask.gather(1, order))

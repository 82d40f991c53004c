"""What a layout gets and gives. Letters: B rows, T input length, P virtual tokens, H width, V vocabulary, K labels."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

IGNORED = -100
"""The label of a position that is not predicted, as everywhere in PyTorch and transformers."""


@dataclass(frozen=True)
class Examples:
    """A batch of embedded examples whose real tokens stand at the left: `[text | pads]`.

    A causal model's result cannot depend on what follows, so pads at the right are exact for every architecture,
    whether it counts positions, looks back through a window or carries a state. `align` brings any batch here.

    Attributes:
        embeds: [B, T, H], the embedded tokens.
        mask: [B, T] bool, True on real tokens.
        labels: [B, T] long with `IGNORED` where nothing is predicted, or None.
        order: [B, T] long; column t of row b was column `order[b, t]` of the batch as it came. None: nothing moved.
    """

    embeds: Tensor
    mask: Tensor
    labels: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def align(cls, embeds: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> "Examples":
        """Moves each row's real tokens to the left, in their order, wherever the pads were.

        Args:
            embeds: [B, T, H].
            mask: [B, T], non-zero on real tokens; None where all are real.
            labels: [B, T] long or None. A label on a pad is not predicted.
        """
        if mask is None:
            return cls(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device), labels)
        mask = mask.bool()
        if labels is not None:
            labels = labels.masked_fill(~mask, IGNORED)
        if bool((mask[:, 1:] <= mask[:, :-1]).all()):
            return cls(embeds, mask, labels)
        order = torch.argsort(~mask, dim=1, stable=True)
        return cls(
            take_columns(embeds, order),
            mask.gather(1, order),
            None if labels is None else labels.gather(1, order),
            order,
        )


@dataclass(frozen=True)
class LabelledLogits:
    """The predictions of the labelled tokens alone, whatever rows they were computed in.

    Attributes:
        logits: [K, V], the prediction of each labelled token.
        targets: [K] long, the token that stands there.
        rows: [K] long, the example (0 … B-1) that it belongs to.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor


class Layout(Protocol):
    """Lays out one prompt and a batch of examples, runs the backbone, and picks the predictions of the labels.

    Layouts differ in cost, never in result: loss and prompt gradient agree to rounding. All of them count the same
    labels, the one on an example's first token (which the prompt's last vector predicts) included.
    """

    name: str

    def labelled_logits(self, backbone: nn.Module, prompt: Tensor, examples: Examples) -> LabelledLogits:
        """Predictions of `examples.labels` by a causal `backbone` behind `prompt` ([P, H], any float dtype)."""
        ...


def take_columns(x: Tensor, order: Tensor) -> Tensor:
    """Reorders dimension 1 of `x` ([B, T, ...]) row by row; `order` is [B, T] long."""
    index = order.reshape(order.shape + (1,) * (x.dim() - 2)).expand(*order.shape, *x.shape[2:])
    return x.gather(1, index)

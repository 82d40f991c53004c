"""Find output rows for added tokens, so that these tokens are never written.

A token that has an input embedding needs a row in the output matrix, too, and its logit is that row's product with the
last hidden state. A zero row is not enough: the logits of GPT-2 are all far below zero, so a logit of zero would win.
Where the output has a bias, a bias far below zero settles it. Elsewhere the row is fitted: hidden states of language
models have directions in common, and the row points away from those. It minimises the token's probability over the
positions of many texts, in a ball whose radius is a few times the length of the other rows, so that it stays harmless
on a text that is like none of them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..layouts.sharing import calling, with_part

FAR = -1e4
"""The bias of an added token; fp16 holds it."""
RADII = (4.0, 16.0, 64.0)
"""How long a row may be, in mean lengths of the others, from the one that is tried first."""


@contextmanager
def recorded_states(backbone: PreTrainedModel, head: nn.Module) -> Iterator[tuple[PreTrainedModel, list[Tensor]]]:
    """Yield a stand-in for the backbone, and a list of what its output layer is called with, [B, T, H]."""
    states: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        states.append(hidden)
        return head(hidden)

    yield with_part(backbone, head, calling(head, forward)), states


def bias_of(backbone: PreTrainedModel) -> Tensor | None:
    """Return what is added to the logits, [V] or [1, V]; None if there is no bias."""
    own = getattr(backbone.get_output_embeddings(), "bias", None)
    return own if own is not None else getattr(backbone, "final_logits_bias", None)


def fitted_row(states: Iterable[Tensor], weight: Tensor, radius: float) -> Tensor:
    """Return a row whose product with hidden states is far below the others'.

    Args:
        states: hidden states [T, H] of some texts, any number of them.
        weight: the output matrix, [V, H].
        radius: how long the row may be, in mean lengths of the rows of `weight`.

    Returns:
        [H] fp32 on the CPU, at most `radius` mean lengths long.
    """
    rows = weight.detach().float().cpu()
    hidden = torch.cat([state.float().cpu() for state in states])
    highest = torch.cat([(piece @ rows.T).logsumexp(-1) for piece in hidden.split(64)])
    length = radius * rows.norm(dim=1).mean()
    with torch.enable_grad():
        direction = (rows.mean(0) / length).requires_grad_()

        def row() -> Tensor:
            return length * direction / direction.norm().clamp(min=1.0)

        optimizer = torch.optim.LBFGS([direction], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            total = torch.logsumexp(hidden @ row() - highest, 0)  # of the logarithms of its probabilities
            total.backward()
            return total

        optimizer.step(loss)
        return row().detach()

"""The reference layout: a copy of the prompt in front of every example, pads at the end.

For P = 2 and two examples, of four and of two tokens (columns are positions, `·` is a pad):

    row 0   p0 p1 a0 a1 a2 a3
    row 1   p0 p1 b0 b1 ·  ·

It computes B·(P+T) tokens and needs nothing of the model but `inputs_embeds`.
"""

import torch
from torch import Tensor, nn

from .base import IGNORED, Examples, LabelledLogits, take_columns


def padded_rows(prompt: Tensor, examples: Examples, pads: str = "right") -> tuple[Tensor, Tensor]:
    """Rows `[prompt | text | pads]`, or `[pads | prompt | text]` where `pads` is "left" (as generation needs).

    Args:
        prompt: [P, H]; cast to the embeddings' dtype here, where it joins them.
        examples: a batch of [B, T, H].

    Returns:
        inputs_embeds [B, P+T, H] and attention_mask [B, P+T] long.
    """
    batch = examples.embeds.shape[0]
    prompts = prompt.to(examples.embeds.dtype).expand(batch, -1, -1)
    embeds = torch.cat([prompts, examples.embeds], dim=1)
    mask = torch.cat([examples.mask.new_ones(prompts.shape[:2]), examples.mask], dim=1)
    if pads == "left" and not bool(mask.all()):
        order = torch.argsort(mask, dim=1, stable=True)
        embeds, mask = take_columns(embeds, order), mask.gather(1, order)
    return embeds, mask.long()


def as_it_came(x: Tensor, num_virtual_tokens: int, order: Tensor | None) -> Tensor:
    """Undoes `Examples.align` on what the backbone computed: [B, P+T, ...] whose column P+t is input column t."""
    if order is None:
        return x
    text = take_columns(x[:, num_virtual_tokens:], torch.argsort(order, dim=1))
    return torch.cat([x[:, :num_virtual_tokens], text], dim=1)


class PaddedLayout:
    """See the module's text. The other layouts are tested against this one."""

    name = "padded"

    def labelled_logits(self, backbone: nn.Module, prompt: Tensor, examples: Examples) -> LabelledLogits:
        """The labelled tokens' predictions, [K, V] of the [B, P+T, V] that the backbone computes."""
        embeds, mask = padded_rows(prompt, examples)
        logits = backbone(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        rows, columns = (examples.labels != IGNORED).nonzero(as_tuple=True)
        # The token at column t of an example stands at column P+t of its row; the column before it predicts it.
        return LabelledLogits(logits[rows, len(prompt) + columns - 1], examples.labels[rows, columns], rows)

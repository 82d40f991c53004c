"""A prompt computed once: the keys and values that each layer keeps of it, and what its last vector predicts.

A causal model's prompt sees nothing of what follows it, so one pass over it alone serves every text behind it. Nothing
here is ever changed in place: caches are made of views, and a model that appends to one makes a tensor of its own.
No gradient reaches the prompt through it; it is for evaluation and generation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from .base import predictions_at, token_inputs
from .traits import text_positions

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [rows, heads, columns, d] each."""


@dataclass(frozen=True)
class ComputedPrompt:
    """A prompt's part of every row that it stands in.

    Attributes:
        layers: keys and values of each layer, [1, heads, P, d] each, of all P vectors, whatever windows there are.
        logits: [1, V], the last vector's prediction.
    """

    layers: Layers
    logits: Tensor

    def __len__(self) -> int:
        return self.layers[0][0].shape[2]


@torch.no_grad()
def compute(backbone: PreTrainedModel, vectors: Tensor) -> ComputedPrompt:
    """One pass over a prompt alone.

    Args:
        backbone: a causal model with a key-value cache and no recurrence.
        vectors: [P, H] (or wider, see `token_inputs`) with P of 1 or more, in the dtype of embedded text.
    """
    cache, row = DynamicCache(), torch.zeros(1, dtype=torch.long, device=vectors.device)
    inputs = token_inputs(backbone, vectors[None]) | text_positions(backbone, row.new_ones(1, len(vectors)))
    last = row + len(vectors) - 1
    outputs = predictions_at(backbone, row, last, **inputs, past_key_values=cache, use_cache=True)
    return ComputedPrompt(layers_of(cache), outputs.logits[0])


def layers_of(cache: DynamicCache) -> Layers:
    """What a cache holds."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def cache_of(layers: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache that holds keys and values without a copy of them."""
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def side_by_side(computed: Sequence[ComputedPrompt]) -> Layers:
    """Several prompts in one row, [1, heads, P_1 + P_2 + …, d]; nothing of none."""
    if len(computed) == 1:
        return computed[0].layers
    return [
        (torch.cat([keys for keys, _ in parts], dim=2), torch.cat([values for _, values in parts], dim=2))
        for parts in zip(*(prompt.layers for prompt in computed), strict=True)
    ]


def in_rows(computed: Sequence[ComputedPrompt | None], of: Tensor) -> tuple[Layers, Tensor]:
    """A prompt in each of B rows, the shorter ones behind masked columns: `[masked | prompt]`.

    Args:
        computed: G prompts, None for no prompt; not None all of them.
        of: [B] long, the prompt of each row.

    Returns:
        [B, heads, P, d] for each layer, P the longest's length, and the mask, [B, P] bool.
    """
    found = [prompt for prompt in computed if prompt is not None]
    lengths = torch.tensor([0 if prompt is None else len(prompt) for prompt in computed], device=of.device)
    columns = torch.arange(int(lengths.max()), device=of.device) - (lengths.max() - lengths)[:, None]
    mask = (columns >= 0)[of]
    layers = side_by_side(found)
    if len(computed) == 1:
        return [(k.expand(len(of), -1, -1, -1), v.expand(len(of), -1, -1, -1)) for k, v in layers], mask
    # A masked column gets what stands in the first; nobody sees it.
    starts = lengths.cumsum(0) - lengths
    index = (starts[:, None] + columns).masked_fill(columns < 0, 0)[of]
    return dealt_out(layers, index), mask


def dealt_out(layers: Layers, columns: Tensor) -> Layers:
    """Some columns of one row as the rows of a batch.

    Args:
        layers: [1, heads, N, d] each.
        columns: [B, W] long.

    Returns:
        [B, heads, W, d] each.
    """

    def rows(x: Tensor) -> Tensor:
        return x[0].index_select(1, columns.flatten()).unflatten(1, columns.shape).transpose(0, 1)

    return [(rows(keys), rows(values)) for keys, values in layers]

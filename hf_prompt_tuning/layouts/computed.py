"""Compute a prompt once: each layer's keys and values, and the prediction of the prompt's last vector.

In a causal model a prompt does not see the text after it, so one pass over the prompt serves every text. Nothing here
is changed in place: caches are made of views, and a model that appends to a cache makes new tensors. No gradient
reaches the prompt through it; it is for evaluation and generation.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..compat.transformers import as_cache
from .base import ComputedPrompt, Layers, predictions_at, token_inputs
from .traits import text_positions


@torch.no_grad()
def compute(backbone: PreTrainedModel, vectors: Tensor) -> ComputedPrompt:
    """Run one pass over a prompt alone.

    Args:
        backbone: a causal model with a key-value cache and no recurrence.
        vectors: [P, H] (or wider, see `token_inputs`) with P of 1 or more, in the dtype of embedded text.
    """
    cache, row = DynamicCache(), torch.zeros(1, dtype=torch.long, device=vectors.device)
    inputs = token_inputs(backbone, vectors[None]) | text_positions(backbone, row.new_ones(1, len(vectors)))
    last = row + len(vectors) - 1
    outputs = predictions_at(backbone, row, last, **inputs, **as_cache(backbone, cache), use_cache=True)
    return ComputedPrompt(layers_of(cache), outputs.logits[0])


def layers_of(cache: DynamicCache) -> Layers:
    """Return the layers of a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def cache_of(layers: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """Make a cache from keys and values without copying them."""
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def side_by_side(computed: Sequence[ComputedPrompt]) -> Layers:
    """Put several prompts into one row, [1, heads, P_1 + P_2 + …, d]. Return an empty list if there are no prompts."""
    if len(computed) == 1:
        return computed[0].layers
    return [
        (torch.cat([keys for keys, _ in parts], dim=2), torch.cat([values for _, values in parts], dim=2))
        for parts in zip(*(prompt.layers for prompt in computed), strict=True)
    ]


def in_rows(computed: Sequence[ComputedPrompt | None], of_row: Tensor) -> tuple[Layers, Tensor]:
    """Put each row's prompt into a batch of B rows. Shorter prompts follow masked columns: `[masked | prompt]`.

    Args:
        computed: G prompts, None for no prompt. At least one is not None.
        of_row: [B] long, the prompt of each row.

    Returns:
        Each layer's keys and values, [B, heads, P, d], and the mask, [B, P] bool. P is the longest prompt's length.
    """
    lengths = torch.tensor([0 if prompt is None else len(prompt) for prompt in computed], device=of_row.device)
    columns = torch.arange(int(lengths.max()), device=of_row.device) - (lengths.max() - lengths)[:, None]
    mask = (columns >= 0)[of_row]
    layers = side_by_side([prompt for prompt in computed if prompt is not None])
    if len(computed) == 1:
        return [(k.expand(len(of_row), -1, -1, -1), v.expand(len(of_row), -1, -1, -1)) for k, v in layers], mask
    # A masked column gets a copy of the first column; no token sees it.
    starts = lengths.cumsum(0) - lengths
    index = (starts[:, None] + columns).masked_fill(columns < 0, 0)[of_row]
    return spread_over_rows(layers, index), mask


def spread_over_rows(layers: Layers, columns: Tensor) -> Layers:
    """Spread some columns of one row over the rows of a batch.

    Args:
        layers: [1, heads, N, d] each.
        columns: [B, W] long.

    Returns:
        [B, heads, W, d] each.
    """

    def rows(x: Tensor) -> Tensor:
        return x[0].index_select(1, columns.flatten()).unflatten(1, columns.shape).transpose(0, 1)

    return [(rows(keys), rows(values)) for keys, values in layers]

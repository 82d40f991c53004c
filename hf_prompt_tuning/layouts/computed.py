"""Compute a prompt's part of every pass once, and keep it until anything that it depends on changes.

In a causal model a prompt does not see the text after it, so one pass over the prompt gives its keys and values for
every text, and the prediction of its last vector. Nothing here is changed in place: caches are made of views, and a
model that appends to a cache makes new tensors. No gradient reaches the prompt through it; it is for evaluation and
generation.

A change in the backbone is detected in a millisecond or two. Reading all numbers of a large model would cost more than
the prompt's pass. So we compare each weight's address, its count of in-place changes, and a sample of its numbers. The
sample is needed because an edit through `.data` changes neither address nor count (PEFT merges a LoRA this way). The
sample contains a small model, and the small weights of a large model, as a whole. Of large weights it contains short
runs from all over the weight.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..compat.transformers import CHECKPOINTS_ACTIVATIONS, as_cache, cache_name
from .base import ComputedPrompt, Layers, Prompts, predictions_at, token_inputs
from .sharing import embedding_device, is_sharded
from .traits import is_recurrent, text_positions

NUMBERS = 2**17
"""How many numbers are sampled from all weights together; more only for models with very many weights."""
SMALL = 4096
"""A weight with at most this many numbers (a norm's, a bias) is sampled as a whole."""
RUN = 16
"""The length of a run of neighbouring numbers in a sample: one CPU cache line in fp32."""
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


@dataclass(frozen=True, eq=False)
class BackboneState:
    """A snapshot of a backbone.

    Attributes:
        traces: the attention implementation, hooks, other kinds of adapters, and the address of each weight.
        numbers: some or all of the weights' numbers.
    """

    traces: tuple
    numbers: tuple[Tensor, ...]

    def is_same(self, other: "BackboneState") -> bool:
        """Tell whether both snapshots are equal."""
        if self.traces != other.traces or len(self.numbers) != len(other.numbers):
            return False
        return all(map(torch.equal, self.numbers, other.numbers))


@dataclass(frozen=True)
class _Kept:
    vectors: Tensor
    backbone: BackboneState
    computed: ComputedPrompt


class ComputedPrompts:
    """Keep the latest computed prompt of each name for a model. Threads may share it.

    Nothing in it is changed in place. Each thread uses what it computed itself, or an entry that is complete.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._state: BackboneState | None = None

    def added_to(self, prompts: Prompts, dtype: torch.dtype, backbone: PreTrainedModel) -> Prompts:
        """Add to each prompt, by its name, what was computed of it before, or compute it now.

        `dtype` is that of embedded text. The backbone must pass `can_be_continued`.
        """
        # Read before anything is computed, so that the next call detects what another thread changes meanwhile.
        state, latest = state_of(backbone), self._state
        if latest is not None and latest.is_same(state):
            state = latest
        self._state = state
        computed = [
            self._get(name, vectors.detach().to(dtype), state, backbone) if len(vectors) else None
            for name, vectors in zip(prompts.names, prompts.vectors, strict=True)
        ]
        return replace(prompts, computed=tuple(computed))

    def _get(self, name: str, vectors: Tensor, state: BackboneState, backbone: PreTrainedModel) -> ComputedPrompt:
        # The vectors are compared by value, because an edit through `.data` leaves no other trace. Comparing P * H
        # numbers costs less than a layer.
        kept = self._kept.get(name)
        if kept is None or kept.backbone is not state or not _same(kept.vectors, vectors):
            kept = self._kept[name] = _Kept(vectors.clone(), state, compute(backbone, vectors))
        return kept.computed

    def forget(self, name: str | None = None) -> None:
        """Free what is kept of one prompt, or of all."""
        if name is None:
            self._kept, self._state = {}, None
        else:
            self._kept.pop(name, None)


def _same(kept: Tensor, vectors: Tensor) -> bool:
    return (kept.dtype, kept.device) == (vectors.dtype, vectors.device) and torch.equal(kept, vectors)


def can_be_continued(backbone: PreTrainedModel) -> bool:
    """Tell whether a computed prompt serves this backbone, in its current state, for every text after it."""
    if cache_name(backbone) is None or is_recurrent(backbone):
        return False
    if is_sharded(backbone):
        return False  # all its processes must make the same passes, whatever each has computed before
    if backbone.config._attn_implementation == "flex_attention":
        return False  # compiling masks for each shape costs more than a short pass
    return not (backbone.training and getattr(backbone, CHECKPOINTS_ACTIVATIONS))


@torch.no_grad()
def state_of(backbone: PreTrainedModel) -> BackboneState:
    """Return a snapshot of what a computed prompt depends on besides the prompt itself."""
    kind = embedding_device(backbone.get_input_embeddings()).type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    traces: list[Any] = [backbone.config._attn_implementation, backbone.training, autocast]
    weights: list[Tensor] = []
    for module in _modules(backbone):
        own = vars(module)
        weights += [
            weight for part in ("_parameters", "_buffers") for weight in own[part].values() if weight is not None
        ]
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
            traces.append((*own["_forward_pre_hooks"], "and", *own["_forward_hooks"], id(own.get("forward"))))
        if isinstance(module, BaseTunerLayer):
            names = ("active_adapters", "merged_adapters", "disable_adapters", "scaling")
            traces.append(tuple(str(getattr(module, name, None)) for name in names))
    return BackboneState((*traces, *map(_trace, weights)), _sample(weights))


def _modules(backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield the same modules as `modules()`, in half the time."""
    seen, waiting = set(), [backbone]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            waiting += [child for child in module._modules.values() if child is not None]


def _trace(weight: Tensor) -> tuple[Any, ...]:
    # A tensor made in inference mode does not count changes, and a sharded tensor has no address of its own.
    version = 0 if weight.is_inference() else weight._version
    return id(weight), weight.data_ptr() if _is_plain(weight) else 0, version, weight.dtype


def _is_plain(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter)


def _sample(weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Return numbers of the weights, joined by shape and dtype, and viewed as integers so that NaN equals itself."""
    parts: dict[tuple, list[Tensor]] = {}
    counts = [weight.numel() for weight in weights]
    each = _share(counts)
    for weight, count in zip(weights, counts, strict=True):
        if not _is_plain(weight):
            with torch._C.DisableTorchFunctionSubclass():
                weight = weight.detach()
        if count and _is_plain(weight) and not weight.is_meta:
            runs = _runs(weight, count, each)
            parts.setdefault((runs.shape, runs.dtype, runs.device), []).append(runs)
    return tuple(torch.cat(runs).view(BITS[runs[0].element_size()]) for runs in parts.values())


def _share(counts: list[int]) -> int:
    """Return how many numbers are sampled from each weight that has more than `SMALL`."""
    if sum(counts) <= NUMBERS:
        return NUMBERS
    large = [count for count in counts if count > SMALL]
    return max((NUMBERS - sum(counts) + sum(large)) // max(len(large), 1), RUN)


def _runs(weight: Tensor, length: int, limit: int) -> Tensor:
    """Return runs of a weight in memory order, [runs, RUN], or the whole weight, [1, n]."""
    if not weight.is_contiguous():  # expanded or transposed: use the extent in memory
        length = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    if length <= max(limit, SMALL):
        return torch.as_strided(weight, (1, length), (length, 1))
    runs = max(limit // RUN, 1)
    # An odd distance, so that runs do not all come from the same columns of a matrix.
    return torch.as_strided(weight, (runs, RUN), ((length // runs - 1) | 1, 1))


@torch.no_grad()
def compute(backbone: PreTrainedModel, vectors: Tensor) -> ComputedPrompt:
    """Run one pass over a prompt alone, [P, H] (or wider, see `token_inputs`), in the dtype of embedded text."""
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

    `computed` are G prompts, of which at least one is not None (no prompt); `of_row` [B] long is the prompt of each
    row. Return each layer's keys and values, [B, heads, P, d], and the mask, [B, P] bool. P is the longest prompt's
    length.
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
    """Spread columns ([B, W] long) of one row's layers, [1, heads, N, d], over a batch, [B, heads, W, d]."""

    def rows(x: Tensor) -> Tensor:
        return x[0].index_select(1, columns.flatten()).unflatten(1, columns.shape).transpose(0, 1)

    return [(rows(keys), rows(values)) for keys, values in layers]

"""Run the prompt once through the model's KV cache, which keeps its gradient, then run the examples after the cache.

For P = 2 and two examples, of four and of two tokens:

    first pass    p0 p1
    second pass   (p0 p1) a0 a1 a2 a3
                  (p0 p1) b0 b1 ·  ·       in brackets: keys and values from the cache, the same for every row

It computes G·P + B·T tokens and needs a causal model with a cache. The model itself handles ALiBi, windows and learned
positions, because each row is an ordinary continuation.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ..compat.transformers import as_cache, cache_in
from .base import (
    IGNORED,
    Candidates,
    Examples,
    LabelledLogits,
    Layers,
    Prompts,
    predicted_at_once,
    predictions_at,
    token_inputs,
)
from .branches import BranchRun, score_all
from .computed import cache_of, layers_of
from .sharing import is_sharded
from .traits import is_recurrent, text_positions

MAX_CACHED = 2**13
"""How many columns of keys and values the rows of a pass over labels hold at most, all rows together."""


class CachedLayout:
    """Layout with the prompt in the KV cache. See the module's docstring."""

    name = "cached"

    def labelled_logits(self, backbone: nn.Module, prompts: Prompts, examples: Examples) -> LabelledLogits:
        """Return the labelled tokens' predictions, [K, V]. The prompt's pass predicts the first tokens."""
        needed, parts = examples.needed(), []
        for g, rows in prompts.groups():
            group = needed.select(rows)
            if is_sharded(backbone):
                # FSDP2 frees a layer's weights once its input has a gradient. Without a gradient, the text's pass
                # would keep the first layer's weights, and this process would gather less often than one that makes
                # another pass.
                group = replace(group, embeds=group.embeds + 0.0 * prompts.vectors[g].sum().to(group.embeds.dtype))
            labels = examples.labels[rows]
            first = (labels[:, :1] != IGNORED).any(1).nonzero()[:, 0]
            logits, cache = self._prompt_pass(backbone, prompts, g, examples.embeds.dtype, len(first))
            if len(first) or cache is not None:
                # Add these logits even if no first token is labelled, for two reasons. They connect a batch without
                # labels to the prompt (one of several processes may have such a batch). And FSDP2 gathers a layer's
                # weights again once its output gets a gradient, and the last layer's keys and values alone would not
                # give it one.
                parts.append(LabelledLogits(logits, labels[first, :1].flatten(), rows[first]))
            in_group, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            if len(in_group):
                if cache is not None:
                    # `batch_repeat_interleave` fails on the caches of linear attention.
                    cache.reorder_cache(torch.zeros(len(rows), dtype=torch.long, device=rows.device))
                logits, _ = _text_pass(backbone, len(prompts.vectors[g]), group, cache, in_group, columns)
                parts.append(LabelledLogits(logits, labels[in_group, columns + 1], rows[in_group]))
        if not parts:  # no prompt and no label
            parts.append(LabelledLogits(logits, labels[first, :1].flatten(), rows[first]))
        return LabelledLogits.concatenate(parts)

    def candidate_scores(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Tensor:
        """Return the scores, [B, L]. Each source is computed once, and each node of the labels' trie behind it.

        A pass holds `MAX_LOGITS` logits at most. For a recurrent backbone, every label has a row of its own.
        """
        scores = torch.empty(len(sources.mask), len(candidates.ids), device=sources.embeds.device)
        if not is_recurrent(backbone):
            for branches in self.branches(backbone, prompts, sources, candidates):
                scores[branches.members] = score_all(branches, candidates, predicted_at_once(backbone))
            return scores
        lengths = sources.mask.sum(1)
        for g, rows in prompts.groups():
            for length in lengths[rows].unique().tolist():
                # Pads must not come between a source and its words.
                same = rows[lengths[rows] == length]
                # The source makes the prompt longer; the candidates are the examples after it.
                logits, cache = self._source_pass(backbone, prompts, g, sources.select(same))
                before = len(prompts.vectors[g]) + length
                scores[same] = _behind(backbone, before, logits, cache, candidates)
        return scores

    def searches(self, backbone: nn.Module) -> bool:
        """Tell whether the backbone's cache can be taken apart."""
        return not is_recurrent(backbone)

    def branches(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Iterator["CachedBranches"]:
        """Compute the sources, prompt after prompt, and yield them with nothing behind them."""
        lengths = sources.mask.sum(1)
        for g, of_prompt in prompts.groups():
            for rows in of_prompt.split(predicted_at_once(backbone)):
                first, states = [], []
                order = rows[lengths[rows].argsort(stable=True)]
                for same in order.split(lengths[order].unique_consecutive(return_counts=True)[1].tolist()):
                    group = sources.select(same)
                    logits, cache = self._source_pass(backbone, prompts, g, group, DynamicCache())
                    layers, before = layers_of(cache), len(prompts.vectors[g]) + group.mask.shape[1]
                    first.append(logits)
                    states += [_State(layers, row, before) for row in range(len(same))]
                yield CachedBranches(backbone, candidates, order.tolist(), torch.cat(first), states)

    @staticmethod
    def _prompt_pass(
        backbone: nn.Module, prompts: Prompts, g: int, dtype: torch.dtype, copies: int, cache: object = None
    ) -> tuple[Tensor, object]:
        """Return the last position's prediction `copies` times, [copies, V], and the cache.

        The cache is one of the backbone's own kind, or the empty one that was given; without a prompt it stays as it
        is (None, or empty).
        """
        vectors = prompts.vectors[g].to(dtype)
        if not len(vectors):
            return vectors.new_empty(0, backbone.config.get_text_config().vocab_size), cache
        if prompts.computed:
            # Copied, because a caller may write into the predictions that it gets.
            return prompts.computed[g].logits.repeat(copies, 1), cache_of(prompts.computed[g].layers)
        zeros = torch.zeros(copies, dtype=torch.long, device=vectors.device)
        last, seen = zeros + len(vectors) - 1, zeros.new_ones(1, len(vectors))
        inputs = token_inputs(backbone, vectors[None]) | text_positions(backbone, seen)
        outputs = predictions_at(backbone, zeros, last, **inputs, **as_cache(backbone, cache), use_cache=True)
        return outputs.logits[0], cache_in(outputs)

    @staticmethod
    def _source_pass(
        backbone: nn.Module, prompts: Prompts, g: int, group: Examples, cache: object = None
    ) -> tuple[Tensor, object]:
        """Return the prediction of each row's last position, [B', V], and the cache of prompt and source."""
        batch, length = group.mask.shape
        logits, cache = CachedLayout._prompt_pass(backbone, prompts, g, group.embeds.dtype, 1, cache)
        if len(prompts.vectors[g]):
            cache.reorder_cache(torch.zeros(batch, dtype=torch.long, device=group.mask.device))
        if not length:
            return logits.expand(batch, -1), cache
        rows, before = torch.arange(batch, device=group.mask.device), len(prompts.vectors[g])
        return _text_pass(backbone, before, group, cache, rows, torch.full_like(rows, length - 1))


class _State(NamedTuple):
    """What a node's children continue from: one row, of so many columns, of a pass's keys and values."""

    layers: Layers
    row: int
    columns: int


class CachedBranches:
    """The sources of one prompt, with what was computed of the labels' trie behind each. See `Branches`."""

    def __init__(
        self, backbone: nn.Module, candidates: Candidates, members: list[int], first: Tensor, states: list[_State]
    ):
        self.members, self.first = members, first
        self._backbone, self._candidates = backbone, candidates
        self._at = [{0: state} for state in states]

    def extend(self, runs: Sequence[BranchRun]) -> Tensor:
        """Compute runs behind the sources. See `Branches`."""
        parents = self._candidates.trie.parents
        above = [self._at[run.source][parents[run.start]] for run in runs]
        logits: list[Tensor] = [self.first[:0]] * len(runs)
        # Rows of a pass continue from equally many columns, because pads must not come between a text and its words.
        by_columns: dict[int, list[int]] = {}
        for i in sorted(range(len(runs)), key=lambda i: id(above[i].layers)):
            by_columns.setdefault(above[i].columns, []).append(i)
        for columns, members in by_columns.items():
            most = max(MAX_CACHED // columns, 1)
            for start in range(0, len(members), most):
                part = members[start : start + most]
                predictions = self._pass([runs[i] for i in part], [above[i] for i in part])
                for i, own in zip(part, predictions, strict=True):
                    logits[i] = own
        return torch.cat(logits)

    def _pass(self, runs: list[BranchRun], above: list[_State]) -> tuple[Tensor, ...]:
        """Return the predictions at each run's nodes. All runs continue from equally many columns."""
        trie, columns = self._candidates.trie, above[0].columns
        sizes = [run.stop - run.start for run in runs]
        embeds = [self._candidates.node_embeds[run.start - 1 : run.stop - 1] for run in runs]
        padded = pad_sequence(embeds, batch_first=True)
        mask = torch.arange(padded.shape[1], device=padded.device) < torch.tensor(sizes, device=padded.device)[:, None]
        rows, places = mask.nonzero(as_tuple=True)
        cache = cache_of(_gathered(above))
        logits, cache = _text_pass(self._backbone, columns, Examples(padded, mask), cache, rows, places)
        layers = layers_of(cache)
        for row, run in enumerate(runs):
            if any(child <= trie.computed for child in trie.children[run.stop - 1]):
                self._at[run.source][run.stop - 1] = _State(layers, row, columns + sizes[row])
        return logits.split(sizes)


def _gathered(states: Sequence[_State]) -> Layers:
    """Return a cache with a row for each state, [rows, heads, columns, d]. All have equally many columns."""
    columns, parts = states[0].columns, []
    for _, group in itertools.groupby(states, key=lambda state: id(state.layers)):
        same = list(group)
        rows = torch.tensor([state.row for state in same], device=same[0].layers[0][0].device)
        parts.append([(k[rows, :, :columns], v[rows, :, :columns]) for k, v in same[0].layers])
    return [tuple(torch.cat(rows) for rows in zip(*layer, strict=True)) for layer in zip(*parts, strict=True)]


def _behind(backbone: nn.Module, before: int, logits: Tensor, cache: Any, candidates: Candidates) -> Tensor:
    """Return the candidates' scores after a cache of B' rows of `before` tokens, [B', L], each in a row of its own."""
    scores, limit = candidates.first_scores(logits), predicted_at_once(backbone)
    longer = [label for label, ids in enumerate(candidates.ids) if len(ids) > 1]
    if not longer:
        return scores
    pairs = torch.cartesian_prod(torch.arange(len(logits)), torch.tensor(longer))
    width = max(map(len, candidates.ids)) - 1
    parts = pairs.split(len(pairs) if torch.is_grad_enabled() else max(limit // width, 1))
    later = []
    for rows, labels in (part.T for part in parts):
        words = pad_sequence([candidates.embeds[label][:-1] for label in labels], batch_first=True)
        targets = pad_sequence(
            [candidates.ids[label][1:] for label in labels], batch_first=True, padding_value=IGNORED
        )
        own = cache if len(parts) == 1 else copy.deepcopy(cache)
        own.reorder_cache(rows.to(logits.device))
        at, columns = (targets != IGNORED).nonzero(as_tuple=True)
        predictions, _ = _text_pass(backbone, before, Examples(words, targets != IGNORED), own, at, columns)
        later.append(LabelledLogits(predictions, targets[at, columns], at).log_likelihood(len(rows)))
    rows, labels = pairs.T.to(scores.device)
    return scores.index_put((rows, labels), torch.cat(later), accumulate=True)


def _text_pass(
    backbone: nn.Module, before: int, group: Examples, cache: object, rows: Tensor, columns: Tensor
) -> tuple[Tensor, object]:
    """Return the predictions ([K, V]) at rows and columns of a group after `before` cached tokens, and the cache."""
    mask = torch.cat([group.mask.new_ones(len(group.mask), before), group.mask], dim=1).long()
    outputs = predictions_at(
        backbone,
        rows,
        columns,
        **token_inputs(backbone, group.embeds),
        **text_positions(backbone, mask, group.mask.shape[1]),
        attention_mask=mask,
        **as_cache(backbone, cache),
        use_cache=True,
    )
    return outputs.logits[0], cache_in(outputs)

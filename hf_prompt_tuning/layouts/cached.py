"""Run the prompt once through the model's KV cache, which keeps its gradient, then run the examples after the cache.

For P = 2 and two examples, of four and of two tokens:

    first pass    p0 p1
    second pass   (p0 p1) a0 a1 a2 a3
                  (p0 p1) b0 b1 ·  ·       in brackets: keys and values from the cache, the same for every row

It computes G·P + B·T tokens and needs a causal model with a cache. The model itself handles ALiBi, windows and learned
positions, because each row is an ordinary continuation.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..compat.transformers import as_cache, cache_in
from .base import IGNORED, Candidates, Examples, LabelledLogits, Prompts, predictions_at, token_inputs
from .computed import cache_of
from .sharing import is_sharded
from .traits import text_positions


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
            first = (labels[:, 0] != IGNORED).nonzero()[:, 0]
            logits, cache = self._prompt_pass(backbone, prompts, g, examples.embeds.dtype, len(first))
            if len(first) or cache is not None:
                # Add these logits even if no first token is labelled, for two reasons. They connect a batch without
                # labels to the prompt (one of several processes may have such a batch). And FSDP2 gathers a layer's
                # weights again once its output gets a gradient, and the last layer's keys and values alone would not
                # give it one.
                parts.append(LabelledLogits(logits, labels[first, 0], rows[first]))
            in_group, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            if len(in_group):
                if cache is not None:
                    # `batch_repeat_interleave` fails on the caches of linear attention.
                    cache.reorder_cache(torch.zeros(len(rows), dtype=torch.long, device=rows.device))
                logits, _ = _text_pass(backbone, len(prompts.vectors[g]), group, cache, in_group, columns)
                parts.append(LabelledLogits(logits, labels[in_group, columns + 1], rows[in_group]))
        if not parts:  # no prompt and no label
            parts.append(LabelledLogits(logits, labels[first, 0], rows[first]))
        return LabelledLogits.concatenate(parts)

    def candidate_scores(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Tensor:
        """Return the scores, [B, L]. Each source is computed once.

        Sources are grouped by length, because pads must not come between a source and its words.
        """
        scores = torch.empty(len(sources.mask), len(candidates.ids), device=sources.embeds.device)
        lengths = sources.mask.sum(1)
        for g, rows in prompts.groups():
            for length in lengths[rows].unique().tolist():
                same = rows[lengths[rows] == length]
                group = sources.select(same)
                # The source makes the prompt longer; the candidates are the examples after it.
                logits, cache = self._source_pass(backbone, prompts, g, group)
                before = len(prompts.vectors[g]) + length
                scores[same] = self._behind(backbone, before, logits, cache, candidates)
        return scores

    @staticmethod
    def _prompt_pass(
        backbone: nn.Module, prompts: Prompts, g: int, dtype: torch.dtype, copies: int
    ) -> tuple[Tensor, object]:
        """Return the last position's prediction `copies` times, [copies, V], and the cache (None without a prompt)."""
        vectors = prompts.vectors[g].to(dtype)
        if not len(vectors):
            return vectors.new_empty(0, backbone.config.get_text_config().vocab_size), None
        if prompts.computed:
            return prompts.computed[g].logits.expand(copies, -1), cache_of(prompts.computed[g].layers)
        zeros = torch.zeros(copies, dtype=torch.long, device=vectors.device)
        last, seen = zeros + len(vectors) - 1, zeros.new_ones(1, len(vectors))
        inputs = token_inputs(backbone, vectors[None]) | text_positions(backbone, seen)
        outputs = predictions_at(backbone, zeros, last, **inputs, use_cache=True)
        return outputs.logits[0], cache_in(outputs)

    @staticmethod
    def _source_pass(backbone: nn.Module, prompts: Prompts, g: int, group: Examples) -> tuple[Tensor, object]:
        """Return the prediction of each row's last position, [B', V], and the cache of prompt and source."""
        batch, length = group.mask.shape
        logits, cache = CachedLayout._prompt_pass(backbone, prompts, g, group.embeds.dtype, 1)
        if cache is not None:
            cache.reorder_cache(torch.zeros(batch, dtype=torch.long, device=group.mask.device))
        if not length:
            return logits.expand(batch, -1), cache
        rows, before = torch.arange(batch, device=group.mask.device), len(prompts.vectors[g])
        return _text_pass(backbone, before, group, cache, rows, torch.full_like(rows, length - 1))

    @staticmethod
    def _behind(backbone: nn.Module, before: int, logits: Tensor, cache: object, candidates: Candidates) -> Tensor:
        """Return each candidate's score after a cache of B' rows of `before` tokens, [B', L]."""
        batch, many = len(logits), len(candidates.ids)
        scores = candidates.first_scores(logits)
        width = max(len(ids) for ids in candidates.ids) - 1
        if not width:
            return scores
        words = torch.nn.utils.rnn.pad_sequence([e[:-1] for e in candidates.embeds], batch_first=True)
        targets = torch.nn.utils.rnn.pad_sequence(
            [ids[1:] for ids in candidates.ids], batch_first=True, padding_value=IGNORED
        )
        device = logits.device
        cache.reorder_cache(torch.arange(batch, device=device).repeat_interleave(many))
        group = Examples(
            words.to(logits.dtype).repeat(batch, 1, 1), (targets != IGNORED).repeat(batch, 1), targets.repeat(batch, 1)
        )
        rows, columns = (group.labels != IGNORED).nonzero(as_tuple=True)
        logits, _ = _text_pass(backbone, before, group, cache, rows, columns)
        later = LabelledLogits(logits, group.labels[rows, columns], rows).log_likelihood(batch * many)
        return scores + later.view(batch, many)


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

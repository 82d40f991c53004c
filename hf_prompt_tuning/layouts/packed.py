"""Pack prompts and examples into one row, so that nothing is computed twice and there are no pads.

For P = 2 and two examples, of four and of two tokens:

    token      p0 p1 a0 a1 a2 a3 b0 b1
    position   0  1  2  3  4  5  2  3        an example's positions follow its prompt's

    p0         x                             each line: what the token sees
    p1         x  x
    a0         x  x  x
    a1         x  x  x  x
    a2         x  x  x  x  x
    a3         x  x  x  x  x  x
    b0         x  x              x
    b1         x  x              x  x

It computes G·P + N tokens at most. Tokens that all examples start with (the template's first words) are laid out only
once, and tokens that predict nothing are left out. It needs a causal model that takes `position_ids` and a custom
mask. Rows have a token budget, because the mask is quadratic in a row's length. A full row is followed by another
row, which repeats the prompts it needs.

Numbers here count one of five things, and names and aliases say which. An `Example` is a row of the caller's batch. A
token is a column of that row. A `Segment` is a node of the tree. A `Column` is a place in the packed row. A `Query` is
a column that this pass computes, counted without the columns that are in the cache.
"""

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.utils import ModelOutput

from ..compat.transformers import as_cache, cache_in
from .alibi import counting_positions
from .base import IGNORED, Examples, LabelledLogits, Layers, Prompts, predictions_at, token_inputs
from .blocks import MIN_BLOCK, cut, in_blocks
from .computed import cache_of, layers_of, side_by_side, spread_over_rows
from .masks import Reach, Row, Segment, ancestors, sees, tree_mask

Example = Column = Query = int


class PackedRows:
    """Pack prompts and examples into rows, and run the backbone on them. See the module's docstring.

    `max_tokens` is a row's token budget, because the mask has this many rows and columns. A prompt that was computed
    before adds no rows to the mask. A longer example gets its own row. `reaches` has the reach of each kind of layer;
    `as_dict` tells whether the model takes a dict with a mask for each kind. A model that `has_alibi` takes no
    positions, but a bias of keys that counts them.
    """

    def __init__(
        self,
        max_tokens: int,
        reaches: dict[str, Reach] | None = None,
        as_dict: bool = False,
        has_alibi: bool = False,
    ):
        self.max_tokens, self.has_alibi = max_tokens, has_alibi
        self.reaches = reaches or {"full_attention": Reach()}
        self.as_dict = as_dict

    def labelled_logits(self, backbone: nn.Module, prompts: Prompts, examples: Examples) -> LabelledLogits:
        """Return the labelled tokens' predictions, [K, V]."""
        # Copy the labels to the CPU once: each index read from a device waits for it.
        tokens = [labels.nonzero()[:, 0].tolist() for labels in examples.labels.cpu() != IGNORED]
        # An example's last labelled token and all tokens after it predict no label.
        lengths = [labelled[-1] if labelled else 0 for labelled in tokens]
        parts = []
        for members in self.rows(prompts, lengths, [b for b in range(len(tokens)) if tokens[b]]) or [[]]:
            row, text_of = packed_row(prompts, examples, members, lengths)
            columns: list[Column] = []
            for b in members:
                path = text_of[b].path()
                before = len(path) - lengths[b] - 1
                columns += [path[before + token] for token in tokens[b]]
            index = [(b, token) for b in members for token in tokens[b]]
            rows, labelled = torch.tensor(index, dtype=torch.long, device=examples.labels.device).view(-1, 2).T
            logits, _ = self.predictions(backbone, row, columns)
            parts.append(LabelledLogits(logits, examples.labels[rows, labelled], rows))
        return LabelledLogits.concatenate(parts)

    def states(
        self, backbone: nn.Module, prompts: Prompts, examples: Examples, copies: int = 1
    ) -> tuple[Layers, Tensor, Tensor]:
        """Compute the cache of every example after its prompt, for a caller that continues from it.

        Each example has at least one token. Each row is repeated `copies` times; copies are neighbours. Return each
        layer's keys and values, [B * copies, heads, P+T, d]; the predictions of the examples' last tokens, [B *
        copies, V]; and the mask of the real columns, which are at the right, [B, P+T] bool.
        """
        lengths = examples.mask.sum(1).tolist()
        width = max(map(len, prompts.vectors)) + max(lengths)
        layers, logits, masks = [], [], []
        for members in self.rows(prompts, lengths, list(range(len(lengths)))):
            row, text_of = packed_row(prompts, examples, members, lengths)
            paths = [text_of[b].path() for b in members]
            outputs = self._pass(backbone, row, [path[-1] - row.past for path in paths], keep=True)
            columns = torch.tensor([[-1] * (width - len(path)) + path for path in paths], device=examples.mask.device)
            # A masked column gets a copy of the first column; no token sees it.
            index = columns.clamp(min=0).repeat_interleave(copies, dim=0)
            layers.append(spread_over_rows(layers_of(cache_in(outputs)), index))
            logits.append(outputs.logits[0].repeat_interleave(copies, dim=0))
            masks.append(columns >= 0)
        rows = [tuple(torch.cat(states) for states in zip(*layer, strict=True)) for layer in zip(*layers, strict=True)]
        return rows if len(layers) > 1 else layers[0], torch.cat(logits), torch.cat(masks)

    def rows(
        self, prompts: Prompts, lengths: list[int], order: list[Example], most: int | None = None
    ) -> list[list[Example]]:
        """Group the examples into rows under the budget, each row with its prompts. Keep the examples' order.

        `most` is the largest number of examples in a row.
        """
        rows: list[list[Example]] = []
        used: set[int] = set()
        queries = keys = 0
        for b in order:
            g = prompts.prompt_of[b]
            length, new = len(prompts.vectors[g]), g not in used
            # A computed prompt adds keys but no queries.
            computed_now = 0 if prompts.computed and prompts.computed[g] is not None else length
            size = (queries + lengths[b] + new * computed_now) * (keys + lengths[b] + new * length)
            if not rows or size > self.max_tokens**2 or len(rows[-1]) == most:
                rows.append([])
                used, queries, keys, new = set(), 0, 0, True
            rows[-1].append(b)
            used.add(g)
            queries += lengths[b] + new * computed_now
            keys += lengths[b] + new * length
        return rows

    def predictions(
        self, backbone: nn.Module, row: Row, columns: list[Column], keep: bool = False
    ) -> tuple[Tensor, Layers]:
        """Return the predictions at some columns of a row, [K, V], and with `keep` the cache of the row.

        Compute those that are not known from a prompt.
        """
        past, layers = row.past, []
        queries: list[Query] = [column - past for column in columns if column >= past]
        if queries or (not past and any(map(len, row.embeds))):
            outputs = self._pass(backbone, row, queries, keep)
            logits, layers = outputs.logits[0], layers_of(cache_in(outputs)) if keep else []
        elif past:
            logits, layers = row.computed[0].logits[:0], side_by_side(row.computed)
        else:
            # Rows of one token without a prompt: no token stands before a label to predict it.
            logits = row.embeds[0].new_zeros(0, backbone.config.get_text_config().vocab_size)
        if len(queries) == len(columns):
            return logits, layers
        computed = row.predictions()
        logits = torch.cat([*(computed[column] for column in columns if column < past), logits])
        # Those of computed prompts are first now. Put each into its column's place.
        order = sorted(range(len(columns)), key=lambda i: columns[i] >= past)
        return logits[torch.tensor(order, device=logits.device).argsort()], layers

    def _pass(self, backbone: nn.Module, row: Row, queries: list[Query], keep: bool = False) -> ModelOutput:
        """Run a row's embedded columns. Return predictions at some of them ([1, K, V]) and, with `keep`, the cache."""
        embeds, past = torch.cat(row.embeds), row.past
        at = torch.tensor(queries, dtype=torch.long, device=embeds.device)
        positions, segments = row.positions_and_segments(embeds.device)
        masks = self._masks(backbone, row, embeds, positions, segments)
        called, arguments = backbone, {"position_ids": positions[None, past:]}
        if self.has_alibi:
            called, arguments = counting_positions(backbone, positions), {}
        return predictions_at(
            called,
            torch.zeros_like(at),
            at,
            **token_inputs(backbone, embeds[None]),
            attention_mask=masks if self.as_dict else next(iter(masks.values())),
            **arguments,
            **(as_cache(backbone, _cache_before(row)) if past or keep else {}),
            use_cache=bool(past) or keep,
        )

    def _masks(
        self, backbone: nn.Module, row: Row, embeds: Tensor, positions: Tensor, segments: Tensor
    ) -> dict[str, object]:
        """Return the mask of each kind of layer, in the form that the attention implementation takes."""
        attention, past = backbone.config._attn_implementation, row.past
        above = ancestors(row.parents()).to(embeds.device)
        if attention == "flex_attention":
            return {kind: _block_mask(above, segments, positions, reach, past) for kind, reach in self.reaches.items()}
        masks: dict[str, object] = {}
        for kind, reach in self.reaches.items():
            visible = tree_mask(above, segments, positions, reach, past)
            mask = visible[None, None]
            if attention == "eager":
                # Eager attention would silently add a bool mask to the scores, as 0 and 1.
                zeros = torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device)
                mask = zeros.masked_fill(~mask, torch.finfo(embeds.dtype).min)
            elif attention == "sdpa" and embeds.device.type == "cpu" and len(embeds) > MIN_BLOCK:
                ends: list[Query] = [
                    s.columns.stop - past for s in row.segments if s.columns and s.columns.stop > past
                ]
                mask = in_blocks(mask, cut(visible, ends, embeds.dtype))
            masks[kind] = mask
        return masks


def _cache_before(row: Row) -> DynamicCache:
    """Return the cache of a row's first columns, those that are not embedded."""
    return cache_of(side_by_side(row.computed) if row.cached is None else row.cached)


def packed_row(
    prompts: Prompts, examples: Examples, members: list[Example], lengths: list[int]
) -> tuple[Row, dict[Example, Segment]]:
    """Build a row of the members' prompts and the members. Return it with the segment that ends each member.

    Tokens that all members of a prompt start with (the template's first words) are laid out only once.
    """
    row, text_of = Row(), {}
    used = list(dict.fromkeys([prompts.prompt_of[b] for b in members] or [0]))
    computed = {g: prompts.computed[g] for g in used if prompts.computed and prompts.computed[g] is not None}
    roots = {g: row.add_computed(prompt) for g, prompt in computed.items()}
    for g in used:
        head = roots[g] if g in roots else row.add(prompts.vectors[g].to(examples.embeds.dtype))
        group = [b for b in members if prompts.prompt_of[b] == g]
        shared = _shared_tokens(examples.embeds, group, lengths)
        if shared:
            head = row.add(examples.embeds[group[0], :shared], head)
        for b in group:
            text_of[b] = row.add(examples.embeds[b, shared : lengths[b]], head)
    return row, text_of


def _shared_tokens(embeds: Tensor, group: list[int], lengths: list[int]) -> int:
    """Return how many first tokens all examples of a group share; 0 for a single example.

    Embeddings are compared, which is exact and also works for a caller's own embeddings. Embeddings that need
    gradients are not shared, because each row needs its own gradient.
    """
    shortest = min((lengths[b] for b in group), default=0)
    if len(group) < 2 or not shortest or embeds.requires_grad:
        return 0
    heads = embeds[group, :shortest]
    same = (heads == heads[:1]).all(2).all(0)
    return int(same.long().cumprod(0).sum())


def _block_mask(above: Tensor, segments: Tensor, positions: Tensor, reach: Reach, past: int) -> object:
    """Return the mask for flex_attention, which skips the blocks that no token sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(above, segments, positions, reach, query + past, key)

    return create_block_mask(visible, None, None, len(segments) - past, len(segments), device=segments.device)

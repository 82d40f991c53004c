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
"""

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .base import IGNORED, Candidates, Examples, LabelledLogits, Prompts, predictions_at, token_inputs
from .blocks import MIN_BLOCK, cut, in_blocks
from .computed import Layers, cache_of, dealt_out, layers_of, side_by_side
from .masks import Reach, ancestors, sees, tree_mask
from .row import Row


class PackedLayout:
    """Layout with prompts and examples packed into rows. See the module's docstring.

    Args:
        max_tokens: a row's token budget, because the mask has this many rows and columns. A prompt that was computed
            before adds no rows to the mask. A longer example gets its own row.
        reaches: the reach of each kind of layer, by its name in the config's `layer_types`; usually there is one.
        as_dict: whether the model takes a dict with a mask for each kind of layer.
    """

    name = "packed"

    def __init__(self, max_tokens: int, reaches: dict[str, Reach] | None = None, as_dict: bool = False):
        self.max_tokens = max_tokens
        self.reaches = reaches or {"full_attention": Reach()}
        self.as_dict = as_dict

    def labelled_logits(self, backbone: nn.Module, prompts: Prompts, examples: Examples) -> LabelledLogits:
        """Return the labelled tokens' predictions, [K, V]."""
        needed, parts = examples.needed(), []
        lengths = needed.mask.sum(1).tolist()
        labelled = (examples.labels != IGNORED).any(1).nonzero()[:, 0].tolist()
        for members in self._rows(prompts, lengths, labelled) or [[]]:
            row, example_of = self._with_examples(prompts, needed, members, lengths)
            columns: list[int] = []
            owners: list[int] = []
            for b in members:
                path = row.path_columns(example_of[b])
                start = len(path) - lengths[b]
                for t in (examples.labels[b] != IGNORED).nonzero()[:, 0].tolist():
                    columns.append(path[start + t - 1])
                    owners.append(b)
            owned = torch.tensor(owners, dtype=torch.long, device=examples.mask.device)
            targets = examples.labels[members][examples.labels[members] != IGNORED]
            parts.append(LabelledLogits(self._run(backbone, row, columns), targets, owned))
        return LabelledLogits.concatenate(parts)

    def candidate_scores(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Tensor:
        """Return the scores, [B, L], from a tree: the prompt, each source once, every candidate's words after it."""
        scores = torch.empty(len(sources.mask), len(candidates.ids), device=sources.embeds.device)
        lengths = sources.mask.sum(1).tolist()
        extra = sum(len(ids) - 1 for ids in candidates.ids)
        targets = torch.cat(candidates.ids)
        label_of = torch.cat([torch.full_like(ids, i) for i, ids in enumerate(candidates.ids)])
        for members in self._rows(prompts, [length + extra for length in lengths], list(range(len(lengths)))):
            row, example_of = self._with_examples(prompts, sources, members, lengths)
            # The source's last token predicts every candidate's first word. It is projected once and used L times.
            ends: list[int] = []
            inner: list[int] = []
            for b in members:
                ends.append(row.path_columns(example_of[b])[-1])
                for words in candidates.embeds:
                    segment = row.add(words[:-1].to(sources.embeds.dtype), example_of[b])
                    inner.extend(range(row.columns[segment], row.columns[segment] + len(words) - 1))
            logp = self._run(backbone, row, ends + inner).float().log_softmax(-1)
            first = torch.cat([ids.new_tensor([1] + [0] * (len(ids) - 1)) for ids in candidates.ids]).bool()
            found = logp.new_empty(len(members), len(targets))
            found[:, first] = logp[: len(ends)][:, targets[first]]
            if inner:
                rest = logp[len(ends) :].view(len(members), extra, -1)
                found[:, ~first] = rest.gather(2, targets[~first].expand(len(members), -1)[..., None])[..., 0]
            scores[members] = torch.zeros(len(members), len(candidates.ids), device=found.device).index_add(
                1, label_of, found
            )
        return scores

    def states(
        self, backbone: nn.Module, prompts: Prompts, examples: Examples, copies: int = 1
    ) -> tuple[Layers, Tensor, Tensor]:
        """Compute the cache of every example after its prompt, for a caller that continues from it.

        Args:
            backbone: a causal model with a key-value cache.
            prompts: the prompts of the B examples.
            examples: each has at least one token.
            copies: how often each row is repeated; copies are neighbours.

        Returns:
            Each layer's keys and values, [B * copies, heads, P+T, d]; the predictions of the examples' last tokens,
            [B * copies, V]; and the mask of the real columns, which are at the right, [B, P+T] bool.
        """
        lengths = examples.mask.sum(1).tolist()
        width = max(map(len, prompts.vectors)) + max(lengths)
        layers, logits, parts = [], [], []
        for members in self._rows(prompts, lengths, list(range(len(lengths)))):
            row, example_of = self._with_examples(prompts, examples, members, lengths)
            paths = [row.path_columns(example_of[b]) for b in members]
            outputs = self._pass(backbone, row, [path[-1] - row.past for path in paths], keep=True)
            columns = torch.tensor([[-1] * (width - len(path)) + path for path in paths], device=examples.mask.device)
            # A masked column gets a copy of the first column; no token sees it.
            index = columns.clamp(min=0).repeat_interleave(copies, dim=0)
            layers.append(dealt_out(layers_of(outputs.past_key_values), index))
            logits.append(outputs.logits[0].repeat_interleave(copies, dim=0))
            parts.append(columns >= 0)
        rows = [tuple(torch.cat(states) for states in zip(*layer, strict=True)) for layer in zip(*layers, strict=True)]
        return rows if len(layers) > 1 else layers[0], torch.cat(logits), torch.cat(parts)

    def _rows(self, prompts: Prompts, lengths: list[int], order: list[int]) -> list[list[int]]:
        """Group the examples into rows under the budget, each row with its prompts. Keep the examples' order."""
        rows: list[list[int]] = []
        used: set[int] = set()
        queries = keys = 0
        for b, g in zip(order, prompts.of[order].tolist(), strict=True):
            length, new = len(prompts.vectors[g]), g not in used
            # A computed prompt adds keys but no queries.
            asked = 0 if prompts.computed and prompts.computed[g] is not None else length
            size = (queries + lengths[b] + new * asked) * (keys + lengths[b] + new * length)
            if not rows or size > self.max_tokens**2:
                rows.append([])
                used, queries, keys, new = set(), 0, 0, True
            rows[-1].append(b)
            used.add(g)
            queries += lengths[b] + new * asked
            keys += lengths[b] + new * length
        return rows

    @staticmethod
    def _with_examples(
        prompts: Prompts, examples: Examples, members: list[int], lengths: list[int]
    ) -> tuple[Row, dict[int, int]]:
        """Build a row of the members' prompts and the members. Return it with each member's last segment.

        Tokens that all members of a prompt start with (the template's first words) are laid out only once.
        """
        row, segments = Row(), {}
        prompt_of = prompts.of.tolist()
        used = list(dict.fromkeys([prompt_of[b] for b in members] or [0]))
        computed = {g: prompts.computed[g] for g in used if prompts.computed and prompts.computed[g] is not None}
        roots = {g: row.add_computed(prompt) for g, prompt in computed.items()}
        for g in used:
            head = roots[g] if g in roots else row.add(prompts.vectors[g].to(examples.embeds.dtype))
            group = [b for b in members if prompt_of[b] == g]
            shared = _shared_tokens(examples.embeds, group, lengths)
            if shared:
                head = row.add(examples.embeds[group[0], :shared], head)
            for b in group:
                segments[b] = row.add(examples.embeds[b, shared : lengths[b]], head)
        return row, segments

    def _run(self, backbone: nn.Module, row: Row, columns: list[int]) -> Tensor:
        """Return the predictions at some columns of a row, [K, V]."""
        past = row.past
        known = row.predictions()
        inside = [column - past for column in columns if column >= past]
        if not past and not sum(map(len, row.embeds)):
            # Rows of one token without a prompt: no token stands before a label to predict it.
            return row.embeds[0].new_zeros(0, backbone.config.get_text_config().vocab_size)
        if past and not inside:
            # All the predictions asked for were computed before.
            return torch.cat([row.computed[0].logits[:0], *(known[column] for column in columns)])
        predictions = self._pass(backbone, row, inside).logits[0]
        if len(inside) == len(columns):
            return predictions
        behind = torch.tensor(columns, device=predictions.device) >= past
        found = predictions.new_empty(len(columns), predictions.shape[1])
        found[behind] = predictions
        found[~behind] = torch.cat([known[column] for column in columns if column < past]).to(found.dtype)
        return found

    def _pass(self, backbone: nn.Module, row: Row, columns: list[int], keep: bool = False) -> ModelOutput:
        """Run a row's embedded columns. Return predictions at some of them ([1, K, V]) and, with `keep`, the cache."""
        embeds, past = torch.cat(row.embeds), row.past
        positions, segments = row.positions_and_segments(embeds.device)
        above = ancestors(row.parents).to(embeds.device)
        ends = [c + n - past for c, n in zip(row.columns, row.lengths, strict=True) if c + n > past]
        in_turn = self._goes_in_blocks(backbone, embeds)
        masks = {}
        for kind, reach in self.reaches.items():
            if backbone.config._attn_implementation == "flex_attention":
                masks[kind] = _block_mask(above, segments, positions, reach, past)
                continue
            visible = tree_mask(above, segments, positions, reach, past)
            masks[kind] = _as_attention_wants(visible[None, None], backbone, embeds.dtype)
            if in_turn:
                masks[kind] = in_blocks(masks[kind], cut(visible, ends, embeds.dtype))
        at = torch.tensor(columns, dtype=torch.long, device=embeds.device)
        return predictions_at(
            backbone,
            torch.zeros_like(at),
            at,
            **token_inputs(backbone, embeds[None]),
            attention_mask=masks if self.as_dict else next(iter(masks.values())),
            position_ids=positions[None, past:],
            past_key_values=cache_of(side_by_side(row.computed)) if past or keep else None,
            use_cache=bool(past) or keep,
        )

    @staticmethod
    def _goes_in_blocks(backbone: nn.Module, embeds: Tensor) -> bool:
        """Tell whether attention is computed in blocks: on a CPU, with sdpa."""
        return (
            embeds.device.type == "cpu" and len(embeds) > MIN_BLOCK and backbone.config._attn_implementation == "sdpa"
        )


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


def _as_attention_wants(mask: Tensor, backbone: nn.Module, dtype: torch.dtype) -> Tensor:
    """Convert a bool mask ([1, 1, N, N]) to the form that the attention implementation takes."""
    if backbone.config._attn_implementation != "eager":
        return mask
    # Eager attention would silently add a bool mask to the scores, as 0 and 1.
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _block_mask(above: Tensor, segments: Tensor, positions: Tensor, reach: Reach, past: int) -> object:
    """Return the mask for flex_attention, which skips the blocks that no token sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(above, segments, positions, reach, query + past, key)

    return create_block_mask(visible, None, None, len(segments) - past, len(segments), device=segments.device)

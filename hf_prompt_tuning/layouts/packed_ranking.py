"""Rank labels in packed rows: the prompt, each source once, and the labels' trie behind each source.

For P = 2, sources a of two tokens and b of one, and the labels `u v .`, `u w .` and `x .`:

    token      p0 p1 a0 a1 u v w x b0 u v w x
    position   0  1  2  3  4 5 5 4 2  3 4 4 3

The last token of each label is predicted and not laid out.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .base import Candidates, Examples, Prompts, predicted_at_once
from .branches import BranchRun
from .masks import Row, Segment
from .packed import Column, Example, PackedRows, packed_row


class PackedLayout(PackedRows):
    """Layout with prompts, examples and labels packed into rows. See also the docstring of `packed`."""

    name = "packed"

    def candidate_scores(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Tensor:
        """Return the scores, [B, L], from the trie behind each source.

        A pass holds `MAX_LOGITS` logits at most. Where the trie alone has more, it is computed in parts, but in one
        pass if gradients are needed, which keep all logits in any case.
        """
        scores = torch.empty(len(sources.mask), len(candidates.ids), device=sources.embeds.device)
        trie, limit = candidates.trie, predicted_at_once(backbone)
        if trie.computed >= limit and not torch.is_grad_enabled():
            for branches in self.branches(backbone, prompts, sources, candidates):
                scores[branches.members] = branches.scores(limit)
            return scores
        lengths = sources.mask.sum(1).tolist()
        longer, most = [length + trie.computed for length in lengths], max(limit // (trie.computed + 1), 1)
        nodes = range(1, trie.computed + 1)
        for members in self.rows(prompts, longer, list(range(len(lengths))), most):
            row, text_of = packed_row(prompts, sources, members, lengths)
            columns: list[Column] = []
            for b in members:
                columns += [text_of[b].path()[-1], *add_runs(row, {0: text_of[b]}, candidates, trie.runs)]
            logits, _ = self.predictions(backbone, row, columns)
            places, children, values = candidates.steps(logits, [0, *nodes] * len(members))
            steps = values.new_zeros(len(members), len(trie.parents))
            steps[places // (trie.computed + 1), children] = values
            scores[members] = candidates.scores(steps)
        return scores

    def searches(self, backbone: nn.Module) -> bool:
        """Tell whether small passes are cheap: flex_attention compiles masks for each shape."""
        return backbone.config._attn_implementation != "flex_attention"

    def branches(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Iterator["PackedBranches"]:
        """Compute the sources, row after row, and yield them with nothing behind them."""
        lengths = sources.mask.sum(1).tolist()
        for members in self.rows(prompts, lengths, list(range(len(lengths))), predicted_at_once(backbone)):
            row, text_of = packed_row(prompts, sources, members, lengths)
            texts = [text_of[b] for b in members]
            logits, layers = self.predictions(backbone, row, [text.path()[-1] for text in texts], keep=True)
            yield PackedBranches(self, backbone, candidates, members, logits, row.continued(layers), texts)


class PackedBranches:
    """The sources of a packed row, with what was computed of the labels' trie behind each. See `Branches`."""

    def __init__(
        self,
        layout: PackedRows,
        backbone: nn.Module,
        candidates: Candidates,
        members: list[Example],
        first: Tensor,
        row: Row,
        texts: Sequence[Segment],
    ):
        self.members, self.first = members, first
        self._layout, self._backbone, self._candidates = layout, backbone, candidates
        self._row = row
        self._at: list[dict[int, Segment]] = [{0: text} for text in texts]

    def extend(self, runs: Sequence[BranchRun]) -> Tensor:
        """Compute runs behind the sources. See `Branches`."""
        trie = self._candidates.trie
        # What nothing will be computed behind is left out of the cache. So it comes last.
        leads_on = [any(child <= trie.computed for child in trie.children[run.stop - 1]) for run in runs]
        order = sorted(range(len(runs)), key=lambda i: not leads_on[i])
        row, columns = self._row.continued(self._row.cached), [range(0)] * len(runs)
        kept = len(row.segments) + sum(leads_on)
        for i in order:
            run = runs[i]
            at = self._at[run.source]
            columns[i] = add_runs(row, at, self._candidates, [(run.start, run.stop)])
        logits, layers = self._layout.predictions(
            self._backbone, row, [column for run in columns for column in run], keep=True
        )
        self._row = row.continued(layers, kept)
        return logits

    def scores(self, most: int) -> Tensor:
        """Return all labels' scores, [B', L], computed part after part of the trie, in passes of `most` nodes."""
        trie = self._candidates.trie
        steps = self.first.new_zeros(len(self.members), len(trie.parents), dtype=torch.float32)
        parts = trie.parts(most)
        _, children, values = self._candidates.steps(self.first, [0] * len(self.members))
        steps[:, children[: len(trie.children[0])]] = values.view(len(self.members), -1)
        for source, at in enumerate(self._at):
            for runs, nodes in parts:
                row = self._row.continued(self._row.cached)
                columns = add_runs(row, {0: at[0]}, self._candidates, runs)
                logits, _ = self._layout.predictions(self._backbone, row, columns[-len(nodes) :])
                _, children, values = self._candidates.steps(logits, nodes)
                steps[source, children] = values
        return self._candidates.scores(steps)


def add_runs(
    row: Row, at: dict[int, Segment], candidates: Candidates, runs: Sequence[tuple[int, int]]
) -> list[Column]:
    """Append runs of the candidates' trie behind a source, parents first. Return the column of each of their nodes.

    `at` holds the segments that end at a node, at first only that of node 0, the source. Those of the runs are added.
    """
    columns: list[Column] = []
    for start, stop in runs:
        segment = row.add(candidates.node_embeds[start - 1 : stop - 1], at[candidates.trie.parents[start]])
        at[stop - 1] = segment
        columns += segment.columns
    return columns

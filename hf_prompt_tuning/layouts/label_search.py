"""Find the best labels without computing all of them: best-first search through the labels' trie.

Each token of a label has a log-likelihood of at most 0, so no label below a node has a higher score than the node. The
search always computes the open nodes with the highest scores, and stops when none of them reaches the score of the
best label that is complete. The result is exact: the labels that were left out cannot be among the best.

The nodes of several rows are computed in one pass, and a pass costs as much as some nodes. So a pass takes all nodes
that will probably be needed: those with a score above the guess at the best label's. The guess decides what is
computed early, not what the result is. Nodes are taken one by one, even where no branch is between them: after each
token the rest may be unneeded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Examples, Layout, Prompts, predicted_at_once
from .branches import Branches, BranchRun, in_passes
from .candidates import Candidates, Trie

MIN_PASS = 12
"""How many nodes a pass computes at least, if as many are open: a pass costs as much as 12 nodes, besides its own (37
and 3.2 ms, SmolLM2-135M, one thread of a CPU)."""
MIN_NODES = 96
"""Fewer nodes behind all rows of a batch are all computed: that is one pass, with the sources."""
COST_TO_COME = 0.2
"""The guess at a label's score: a token to come costs this share of what a token so far did. Its first
tokens decide most. A guess that is too high costs another pass, and one that is too low some nodes."""


@dataclass(frozen=True)
class LabelSearch:
    """Tell which labels' scores are needed. The scores of others may be left out.

    Attributes:
        top_k: how many of the best labels of each row are needed.
        required: [B] long, a label of each row that is needed in any case; -1 for none. None: no row has one.
        temperatures: [B] floats. The sum over all labels of exp(score / temperature) is needed, too, to within
            `tolerance` of it. None: it is not needed.
        tolerance: the share of that sum which labels without a score may have.
    """

    top_k: int = 1
    required: Tensor | None = None
    temperatures: Tensor | None = None
    tolerance: float = 1e-3


def searched_scores(
    layout: Layout,
    backbone: nn.Module,
    prompts: Prompts,
    sources: Examples,
    candidates: Candidates,
    search: LabelSearch,
) -> tuple[Tensor, Tensor]:
    """Return each label's score after each source, [B, L] fp32, -inf for a label that was left out.

    The layout must be one that `searches`. The second value is how many nodes were computed behind each source, [B]
    long.
    """
    batch, device = len(sources.mask), sources.embeds.device
    counts = torch.full((batch,), candidates.trie.computed, device=device)
    if batch * candidates.trie.computed < MIN_NODES:
        return layout.candidate_scores(backbone, prompts, sources, candidates), counts
    scores = torch.empty(batch, len(candidates.ids), device=device)
    for branches in layout.branches(backbone, prompts, sources, candidates):
        found, computed = best_first(branches, candidates, search, predicted_at_once(backbone))
        scores[branches.members], counts[branches.members] = found.to(device), computed.to(device)
    return scores, counts


def best_first(branches: Branches, candidates: Candidates, search: LabelSearch, most: int) -> tuple[Tensor, Tensor]:
    """Search behind each of B' sources, in passes of `most` nodes (or of one longer run).

    Return the labels' scores, [B', L] fp32, -inf for a label that was left out, and how many nodes were computed
    behind each source, [B'] long; both on the CPU.
    """
    frontier = _Frontier(branches, candidates, search)
    frontier.record([BranchRun(source, 0, 1) for source in range(len(branches.members))], branches.first)
    frontier.counts.zero_()
    while runs := frontier.best():
        for part in in_passes(runs, most):
            frontier.record(part, branches.extend(part))
    return frontier.label_scores(), frontier.counts


class _Frontier:
    """The scores that are known of the trie's n nodes behind B' sources, and the open nodes among 1 … M.

    A node is open if its own score is known and those of its children are not.
    """

    def __init__(self, branches: Branches, candidates: Candidates, search: LabelSearch):
        self.candidates, self.search = candidates, search
        trie, batch = candidates.trie, len(branches.members)
        self.scores = torch.full((batch, len(trie.parents)), -torch.inf)
        self.scores[:, 0] = 0.0
        self.computed = torch.zeros(batch, trie.computed + 1, dtype=torch.bool)
        self.counts = torch.zeros(batch, dtype=torch.long)
        self.passes = torch.zeros(batch, dtype=torch.long)
        self.ends = torch.tensor(trie.ends)
        self.longer = _guessed_factors(trie)
        self.stops = {node: stop for start, stop in trie.runs for node in range(start, stop)}
        members = torch.tensor(branches.members)
        self.on_path = torch.zeros_like(self.computed)
        if search.required is not None:
            for source, label in enumerate(search.required.cpu()[members].tolist()):
                path = trie.path(trie.ends[label])[:-1] if label >= 0 else []
                self.on_path[source, path] = True
        self.inverse_temperatures = None
        if search.temperatures is not None:
            self.inverse_temperatures = 1.0 / search.temperatures.cpu().float()[members]
            self.log_labels, self.are_apart = _labels_below(trie).log(), trie.are_apart

    def record(self, runs: list[BranchRun], logits: Tensor) -> None:
        """Record the predictions at the nodes of runs, [K, V]."""
        nodes = [(run.source, node, node - run.start) for run in runs for node in range(run.start, run.stop)]
        sources, numbers, depths = torch.tensor(nodes).T
        places, children, steps = self.candidates.steps(logits, numbers.tolist())
        steps = steps.cpu().clamp(max=0.0)
        self.computed[sources, numbers] = True
        self.counts += torch.bincount(sources, minlength=len(self.counts))
        for depth in range(int(depths.max()) + 1):
            at = depths[places] == depth
            rows, above = sources[places[at]], numbers[places[at]]
            self.scores[rows, children[at]] = self.scores[rows, above] + steps[at]

    def label_scores(self) -> Tensor:
        """Return the scores of the labels, [B', L]; -inf if not known."""
        return self.scores[:, self.ends]

    def best(self) -> list[BranchRun]:
        """Return the runs to compute next; an empty list when no label that was left out is needed."""
        labels = self.label_scores()
        top_k = min(self.search.top_k, labels.shape[1])
        kth = labels.topk(top_k).values[:, -1:]
        bounds = self.scores[:, : self.computed.shape[1]].masked_fill(self.computed, -torch.inf)
        is_open = bounds > -torch.inf
        needed = is_open & ((bounds >= kth) | self.on_path)
        # Each open node leads to a label or more. At least `kth`, because the known labels are among them.
        guess = torch.cat([labels, bounds * self.longer], dim=1).topk(top_k).values[:, -1:]
        taken = needed & ((bounds >= guess) | self.on_path)
        if self.inverse_temperatures is not None:
            needed |= is_open & self._weighty(bounds, labels)
            # With each label that becomes known, others weigh less. So twice as many are taken each time.
            has_labels = kth[:, 0] > -torch.inf
            ranks = bounds.masked_fill(~needed, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            taken |= needed & has_labels[:, None] & (ranks < 2 ** self.passes.clamp(max=20)[:, None])
            self.passes += has_labels & needed.any(1)
        taken |= _nearest(bounds - guess, needed & ~taken, MIN_PASS - int(taken.sum()))
        return [BranchRun(source, node, self._stop(source, node)) for source, node in taken.nonzero().tolist()]

    def _stop(self, source: int, node: int) -> int:
        """Return where a run from a node ends: behind the node, or behind those that follow on a required path."""
        stop = node + 1
        while stop < self.stops[node] and self.on_path[source, stop]:
            stop += 1
        return stop

    def _weighty(self, bounds: Tensor, labels: Tensor) -> Tensor:
        """Tell which open nodes must be computed for the sum over all labels, [B', M+1] bool: those of most weight."""
        inverse = self.inverse_temperatures[:, None]
        highest = torch.maximum(labels.amax(1, keepdim=True), bounds.amax(1, keepdim=True))
        known = ((labels - highest) * inverse).exp().sum(1, keepdim=True)
        # Labels that exclude each other have all together at most the likelihood of the node above. Raised to a power
        # p, that of n labels is at most n^(1 - p) times the node's for p < 1, and at most the node's for p > 1.
        power = (1 - inverse).clamp(min=0.0) if self.are_apart else torch.ones_like(inverse)
        weights = (power * self.log_labels + (bounds - highest) * inverse).exp()
        order = weights.argsort(dim=1)
        lighter = weights.gather(1, order).cumsum(1)
        is_light = lighter <= self.search.tolerance * (known + lighter)
        return ~torch.zeros_like(is_light).scatter(1, order, is_light)


def _nearest(gaps: Tensor, among: Tensor, count: int) -> Tensor:
    """Tell which `count` of the entries `among` (all: [B', M+1]) have the highest gaps, [B', M+1] bool."""
    count = min(max(count, 0), int(among.sum()))
    places = gaps.masked_fill(~among, -torch.inf).flatten().topk(count).indices
    return torch.zeros_like(among.flatten()).index_fill(0, places, True).view_as(among)


def _guessed_factors(trie: Trie) -> Tensor:
    """Return how many times as low as a node's score the guess at the best label's below it is, [M+1] fp32."""
    depths, to_come = [0] * len(trie.parents), [0] * len(trie.parents)
    for node, parent in enumerate(trie.parents[1:], start=1):
        depths[node] = depths[parent] + 1
    ends = set(trie.ends)
    for node in range(trie.computed, 0, -1):
        to_come[node] = 1 + min(0 if child in ends else to_come[child] for child in trie.children[node])
    factors = [1 + COST_TO_COME * rest / max(depth, 1) for rest, depth in zip(to_come, depths, strict=True)]
    return torch.tensor(factors[: trie.computed + 1])


def _labels_below(trie: Trie) -> Tensor:
    """Return how many labels begin with each of the nodes 0 … M, [M+1] fp32."""
    counts = torch.zeros(len(trie.parents))
    for end in trie.ends:
        counts[[0, *trie.path(end)]] += 1
    return counts[: trie.computed + 1]

"""Define what a layout opens for a search: sources, behind which parts of the labels' trie are computed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .candidates import Candidates


class BranchRun(NamedTuple):
    """Neighbouring nodes of the trie behind a source: from `start` to before `stop`, each the parent of the next.

    `source` counts the sources of the `Branches`.
    """

    source: int
    start: int
    stop: int


class Branches(Protocol):
    """B' computed sources, and what was computed of the labels' trie behind each.

    Attributes:
        members: the rows of the batch that the sources are, B' numbers.
        first: [B', V], the predictions at the sources' ends.
    """

    members: list[int]
    first: Tensor

    def extend(self, runs: Sequence[BranchRun]) -> Tensor:
        """Compute runs behind the sources, and return the predictions at all their nodes, [K, V], in their order.

        What is above the first node of a run must have been computed by an earlier call.
        """
        ...


def score_all(branches: Branches, candidates: Candidates, most: int) -> Tensor:
    """Return all labels' scores, [B', L], in passes of `most` nodes (or of one longer run), level after level."""
    trie, batch = candidates.trie, len(branches.members)
    steps = branches.first.new_zeros(batch, len(trie.parents), dtype=torch.float32)
    places, children, values = candidates.steps(branches.first, [0] * batch)
    steps[places, children] = values
    level_of, levels = {0: 0}, []
    for start, stop in trie.runs:
        level = level_of[stop - 1] = level_of[trie.parents[start]] + 1
        levels += [[]] if level > len(levels) else []
        levels[level - 1].append((start, stop))
    for level in levels:
        for part in in_passes([BranchRun(source, *run) for source in range(batch) for run in level], most):
            sources = torch.tensor([run.source for run in part for _ in range(run.start, run.stop)])
            nodes = [node for run in part for node in range(run.start, run.stop)]
            places, children, values = candidates.steps(branches.extend(part), nodes)
            steps[sources[places], children] = values
    return candidates.scores(steps)


def in_passes(runs: Sequence[BranchRun], most: int) -> Iterator[list[BranchRun]]:
    """Cut runs into parts of `most` nodes, or of one longer run."""
    part: list[BranchRun] = []
    size = 0
    for run in runs:
        if part and size + run.stop - run.start > most:
            yield part
            part, size = [], 0
        part.append(run)
        size += run.stop - run.start
    if part:
        yield part

"""Hold the words of candidate labels as a trie: labels that begin alike share their first tokens.

For the labels `a b .`, `a c .` and `d .` the trie has the nodes

    0 ─┬─ 1 a ─┬─ 2 b ─── 5 .
       │       └─ 3 c ─── 6 .
       └─ 4 d ─────────── 7 .

Node 0 is the source's last token. A node's score is the log-likelihood of the tokens on its path, and a label's score
is that of the node where it ends. The prediction at a node scores all its children. So only the nodes with children
are ever computed, here 1 to 4; they have the first numbers, each before its own children. Nodes without a branch
between them are a run, here each a run of its own.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 64
"""How many predictions are normalised at once: more would not stay in a CPU's cache."""


@dataclass(frozen=True)
class Trie:
    """The distinct beginnings of L labels.

    Attributes:
        parents: the node above each node; -1 for node 0.
        tokens: [n] long, each node's token id; 0 for node 0.
        places: where each node's token is in the labels, laid end to end; -1 for node 0.
        ends: the node at which each label ends, L numbers.
        runs: the first node of each run, and the node after its last.
        computed: M, the number of nodes that have children, without node 0. They are the nodes 1 … M.
    """

    parents: list[int]
    tokens: Tensor
    places: list[int]
    ends: list[int]
    runs: list[tuple[int, int]]
    computed: int

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]]) -> "Trie":
        """Build the trie of L labels, each of one token id or more."""
        children, places, ends = _grown(labels)
        inner, leaves, runs = _numbered(children)
        order = [0, *inner, *leaves]
        number = {node: i for i, node in enumerate(order)}
        parents, tokens = [-1] * len(order), torch.zeros(len(order), dtype=torch.long)
        for node, own in enumerate(children):
            for token, child in own.items():
                parents[number[child]] = number[node]
                tokens[number[child]] = token
        return cls(parents, tokens, [places[node] for node in order], [number[end] for end in ends], runs, len(inner))

    @cached_property
    def paths(self) -> Tensor:
        """The nodes on each label's path, [L, D] long; 0 where a path is shorter."""
        paths = [self.path(end) for end in self.ends]
        width = max(map(len, paths))
        return torch.tensor([path + [0] * (width - len(path)) for path in paths])

    @property
    def are_apart(self) -> bool:
        """Whether no label is the beginning of another, so that a text has one of them at most."""
        return len(set(self.ends)) == len(self.ends) and min(self.ends) > self.computed

    @cached_property
    def children(self) -> list[list[int]]:
        """The nodes right below each of the nodes 0 … M."""
        children: list[list[int]] = [[] for _ in range(self.computed + 1)]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return children

    def path(self, node: int) -> list[int]:
        """Return the nodes from below node 0 to a node."""
        path = []
        while node > 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def parts(self, most: int) -> list[tuple[list[tuple[int, int]], list[int]]]:
        """Cut the runs into parts of `most` nodes (or of one longer run), which can be computed one without the other.

        Return each part's runs, after the runs above them in other parts, and the part's own nodes.
        """
        own: list[list[tuple[int, int]]] = [[]]
        for run in self.runs:
            if own[-1] and run[1] - own[-1][0][0] > most:
                own.append([])
            own[-1].append(run)
        run_ending = {stop - 1: (start, stop) for start, stop in self.runs}
        parts = []
        for runs in own:
            above, node = [], self.parents[runs[0][0]] if runs else 0
            while node > 0:
                above.append(run_ending[node])
                node = self.parents[above[-1][0]]
            parts.append(([*above[::-1], *runs], [node for run in runs for node in range(*run)]))
        return parts


def _grown(labels: Sequence[Sequence[int]]) -> tuple[list[dict[int, int]], list[int], list[int]]:
    """Return each node's children by token, each node's place in the labels, and each label's last node."""
    children: list[dict[int, int]] = [{}]
    places, ends, place = [-1], [], 0
    for label in labels:
        node = 0
        for token in label:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
                places.append(place)
            node = children[node][token]
            place += 1
        ends.append(node)
    return children, places, ends


def _numbered(children: list[dict[int, int]]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Return the nodes with children, parents first and runs together; those without; and the runs' new numbers."""
    inner, leaves, runs = [], [], []
    waiting = list(reversed(children[0].values()))
    while waiting:
        node, start = waiting.pop(), len(inner)
        while children[node]:
            inner.append(node)
            if len(children[node]) > 1:
                waiting += reversed(children[node].values())
                break
            (node,) = children[node].values()
        else:
            leaves.append(node)
        if len(inner) > start:
            runs.append((start + 1, len(inner) + 1))
    return inner, leaves, runs


@dataclass(frozen=True)
class Candidates:
    """Hold the words of L labels, each with EOS at the end.

    Attributes:
        ids: L tensors of [W_l] long.
        embeds: L tensors of [W_l, H].
    """

    ids: tuple[Tensor, ...]
    embeds: tuple[Tensor, ...]

    @cached_property
    def trie(self) -> Trie:
        """The labels' trie, on the CPU."""
        # Copied from the device once: each number read from there waits for it.
        flat = iter(torch.cat(self.ids).tolist())
        return Trie.of([list(itertools.islice(flat, len(ids))) for ids in self.ids])

    @cached_property
    def node_embeds(self) -> Tensor:
        """The embeddings of the trie's nodes 1 … M, [M, H]."""
        places = torch.tensor(self.trie.places[1 : self.trie.computed + 1], dtype=torch.long)
        embeds = torch.cat(self.embeds)
        return embeds[places.to(embeds.device)]

    def first_scores(self, logits: Tensor) -> Tensor:
        """Return the log-likelihood of each label's first token at each of M positions, [M, L]; `logits` is [M, V]."""
        return logits.float().log_softmax(-1)[:, torch.stack([ids[0] for ids in self.ids])]

    def of_dtype(self, dtype: torch.dtype) -> "Candidates":
        """Return the same labels with embeddings of another dtype."""
        return replace(self, embeds=tuple(embeds.to(dtype) for embeds in self.embeds))

    def steps(self, logits: Tensor, nodes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-likelihood of each child of K nodes (0 … M), whose predictions are `logits`, [K, V].

        A node may occur several times, behind several sources. Return for E children, in the order of the nodes, the
        place of the node above, 0 … K-1, and the child's number, both [E] long on the CPU; and [E] fp32.
        """
        pairs = [(place, child) for place, node in enumerate(nodes) for child in self.trie.children[node]]
        places, children = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
        on, tokens = places.to(logits.device), self.trie.tokens[children].to(logits.device)
        return places, children, logits[on, tokens].float() - log_normalisers(logits)[on]

    def scores(self, steps: Tensor) -> Tensor:
        """Return each label's score after B' sources, [B', L], from the steps to the trie's n nodes, [B', n] fp32."""
        return steps[:, self.trie.paths.to(steps.device)].sum(-1)


def log_normalisers(logits: Tensor) -> Tensor:
    """Return the log of the summed exponentials of each row, [K] fp32, of logits [K, V]."""
    if not len(logits):
        return logits.new_zeros(0, dtype=torch.float32)
    return torch.cat([chunk.float().logsumexp(-1) for chunk in logits.split(CHUNK)])

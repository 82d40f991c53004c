"""What a search computes, and in which order; and what it refuses."""

import pytest
import torch

from hf_prompt_tuning import LabelSearch, PromptTuningError
from hf_prompt_tuning.layouts import label_search
from hf_prompt_tuning.layouts.branches import BranchRun, in_passes
from hf_prompt_tuning.layouts.candidates import Candidates
from hf_prompt_tuning.models.distillation import LabelDistillation
from tests.shared.reference import tiny_prompt_model

V = 30
LABELS = [[7, 8, 2], [7, 9, 2], [5, 6, 10, 2], [5, 11, 2], [3, 4, 2]]


class Table:
    """Branches whose predictions are given, [sources, nodes, V]; they note what was asked of them."""

    def __init__(self, logits):
        self.members, self.logits, self.first, self.asked = list(range(len(logits))), logits, logits[:, 0], []

    def extend(self, runs):
        self.asked.append(list(runs))
        return torch.cat([self.logits[run.source, run.start : run.stop] for run in runs])


def made(labels=LABELS) -> Candidates:
    return Candidates(tuple(map(torch.tensor, labels)), tuple(torch.zeros(len(label), 2) for label in labels))


def table(candidates, likelihoods) -> Table:
    """Predictions by which each token of the trie has the likelihood given for (source, node)."""
    trie = candidates.trie
    logits = torch.full((len(likelihoods), trie.computed + 1, V), -30.0)
    for source, of_node in enumerate(likelihoods):
        for node, likelihood in of_node.items():
            logits[source, trie.parents[node], trie.tokens[node]] = likelihood
        logits[source, :, 29] = (1 - logits[source].exp().sum(-1)).clamp(min=1e-9).log()
    return Table(logits)


def nodes_asked(branches: Table) -> list[list[tuple[int, int]]]:
    """The source and node of each run of one node that was asked for, pass after pass."""
    assert all(run.stop == run.start + 1 for runs in branches.asked for run in runs)
    return [[(run.source, run.start) for run in runs] for runs in branches.asked]


def logs(values):
    return {node: torch.tensor(float(value)).log() for node, value in values.items()}


def test_the_search_follows_the_best_branch_and_stops(monkeypatch):
    """Nodes 1 (7), 2 (7 8), 3 (7 9), 4 (5), 5-6 (5 6 10), 7 (5 11), 8-9 (3 4); 10 and on are the ends."""
    monkeypatch.setattr(label_search, "MIN_PASS", 1)
    candidates = made()
    assert candidates.trie.runs == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 7), (7, 8), (8, 10)]
    certain = {1: 0.6, 2: 0.5, 3: 0.4, 4: 0.2, 5: 0.9, 6: 0.9, 7: 0.1, 8: 0.1, 9: 0.9}
    ends = {10: 0.9, 11: 0.9, 12: 0.9, 13: 0.9, 14: 0.9}
    branches = table(candidates, [logs(certain | ends)])
    scores, counts = label_search.best_first(branches, candidates, LabelSearch(), 100)
    assert branches.asked == [[BranchRun(0, 1, 2)], [BranchRun(0, 2, 3)]]
    assert counts.tolist() == [2]
    # 0.6 * 0.5 * 0.9 = 0.27 beats the 0.24 of node 3 and the 0.2 of node 4.
    torch.testing.assert_close(scores.exp()[0], torch.tensor([0.27, 0, 0, 0, 0]), atol=1e-5, rtol=1e-5)


def test_rows_share_passes_and_each_takes_what_reaches_the_guess_at_its_best_label(monkeypatch):
    """A token to come is guessed to cost a fifth of what a token so far did."""
    monkeypatch.setattr(label_search, "MIN_PASS", 1)
    candidates = made()
    alike = {1: 0.4, 2: 0.5, 3: 0.5, 4: 0.3, 5: 0.5, 6: 0.9, 7: 0.5, 8: 0.3, 9: 0.9}
    low = {10: 0.1, 11: 0.1, 12: 0.9, 13: 0.1, 14: 0.1}
    sure = {1: 0.9, 2: 0.9, 10: 0.9}
    branches = table(candidates, [logs(alike | low), logs(sure)])
    scores, counts = label_search.best_first(branches, candidates, LabelSearch(), 100)
    assert nodes_asked(branches) == [
        # Two tokens follow each first one: the guess is 0.4 ** 1.4 = 0.28.
        [(0, 1), (0, 4), (0, 8), (1, 1)],
        # 0.27 at node 9, 0.2 at 2 and 3, and 0.15 at 5 and 7; the guess is 0.27 ** 1.1 = 0.24.
        [(0, 9), (1, 2)],
        # Node 9's label has 0.03. The guess is 0.2 ** 1.1 = 0.17, and then 0.15 ** 1.1 = 0.12.
        [(0, 2), (0, 3)],
        [(0, 5), (0, 7)],
        [(0, 6)],
    ]
    assert counts.tolist() == [9, 2]
    assert scores.argmax(1).tolist() == [2, 0]


def test_a_pass_takes_what_makes_it_worth_its_while(monkeypatch):
    monkeypatch.setattr(label_search, "MIN_PASS", 2)
    candidates = made()
    sure = {1: 0.5, 2: 0.9, 4: 0.3, 8: 0.1, 9: 0.9, 10: 0.9, 14: 0.9}
    branches = table(candidates, [logs(sure)])
    scores, _ = label_search.best_first(branches, candidates, LabelSearch(), 100)
    assert nodes_asked(branches) == [[(0, 1), (0, 4)], [(0, 2), (0, 8)]]
    assert scores.argmax().item() == 0


def test_a_run_is_left_where_its_next_token_is_improbable(monkeypatch):
    """Nodes 5 and 6 are a run, for 6 alone follows 5. After 5, it is too improbable to be computed."""
    monkeypatch.setattr(label_search, "MIN_PASS", 1)
    candidates = made()
    likely = {1: 0.3, 2: 0.9, 4: 0.5, 5: 0.9, 6: 0.1, 10: 0.9}
    branches = table(candidates, [logs(likely)])
    scores, _ = label_search.best_first(branches, candidates, LabelSearch(), 100)
    assert nodes_asked(branches) == [[(0, 4)], [(0, 5)], [(0, 1)], [(0, 2)]]
    torch.testing.assert_close(scores.exp()[0], torch.tensor([0.243, 0, 0, 0, 0]), atol=1e-5, rtol=1e-4)


def test_a_required_label_and_a_softmax_are_computed(monkeypatch):
    monkeypatch.setattr(label_search, "MIN_PASS", 1)
    candidates = made()
    likely = {1: 0.6, 2: 0.5, 3: 0.4, 4: 0.2, 5: 0.9, 6: 0.9, 7: 0.05, 8: 0.1, 9: 0.9}
    likely |= {10: 0.9, 11: 0.9, 12: 0.9, 13: 0.9, 14: 0.9}
    expected, asked = torch.tensor([0.27, 0.216, 0.1458, 0.009, 0.081]), []

    def found(search):
        branches = table(candidates, [logs(likely)])
        scores, counts = label_search.best_first(branches, candidates, search, 100)
        asked.append(branches.asked)
        return scores.exp()[0], int(counts)

    scores, _ = found(LabelSearch(required=torch.tensor([4])))
    torch.testing.assert_close(scores, torch.tensor([0.27, 0, 0, 0, 0.081]), atol=1e-5, rtol=1e-4)
    # The label's own tokens, in one run, beside the best.
    assert asked[0] == [[BranchRun(0, 1, 2), BranchRun(0, 8, 10)], [BranchRun(0, 2, 3)]]
    assert found(LabelSearch(required=torch.tensor([-1])))[1] == 2
    for temperature in (0.5, 1.0, 3.0):
        full = (expected.log() / temperature).softmax(0)
        for tolerance in (0.3, 0.05, 1e-3):
            search = LabelSearch(temperatures=torch.tensor([temperature]), tolerance=tolerance)
            scores, _ = found(search)
            share = (scores.log() / temperature).softmax(0)
            assert (share - full).abs().max() <= tolerance + 1e-5
    assert found(LabelSearch(temperatures=torch.tensor([1.0]), tolerance=0.0))[1] == candidates.trie.computed
    assert found(LabelSearch(temperatures=torch.tensor([0.1]), tolerance=0.2))[1] < candidates.trie.computed


TEN = [[7, token, 2] for token in range(10, 20)]
ONE_OF_TEN = {(5,): 0.5, (7,): 0.45, **{(7, token): 1e-4 for token in range(11, 20)}, (7, 10): 0.99}


@pytest.mark.parametrize(
    ("labels", "likelihoods", "temperature", "tolerance"),
    [
        # Ten labels that share a likelihood have more weight than the node above, if the temperature is above 1;
        ([[5, 2], *TEN], {(5,): 0.7, (7,): 0.3, **{(7, token): 0.1 for token in range(10, 20)}}, 5.0, 0.5),
        # one of them may have as much, if it is below 1;
        ([[5, 2], *TEN], ONE_OF_TEN, 0.5, 0.3),
        # and labels that begin each other have it several times.
        ([[5, 2], [7, 8], [7, 8, 9], [7, 8, 9, 10]], {(5,): 0.6, (7,): 0.4}, 1.0, 0.5),
    ],
)
def test_labels_left_out_of_a_softmax_are_light(labels, likelihoods, temperature, tolerance, monkeypatch):
    monkeypatch.setattr(label_search, "MIN_PASS", 1)
    candidates = made(labels)
    trie = candidates.trie
    paths = {node: tuple(trie.tokens[trie.path(node)].tolist()) for node in range(1, len(trie.parents))}
    given = [logs({node: likelihoods.get(path, 1.0) for node, path in paths.items()})]
    everything, _ = label_search.best_first(table(candidates, given), candidates, LabelSearch(len(labels)), 100)
    search = LabelSearch(temperatures=torch.tensor([temperature]), tolerance=tolerance)
    found, _ = label_search.best_first(table(candidates, given), candidates, search, 100)
    shares = (everything / temperature).softmax(-1)
    assert shares[found == -torch.inf].sum() <= tolerance


def test_runs_are_cut_into_passes():
    runs = [BranchRun(0, 1, 3), BranchRun(0, 3, 4), BranchRun(1, 1, 3), BranchRun(1, 4, 9)]
    assert list(in_passes(runs, 3)) == [runs[:2], runs[2:3], runs[3:]]
    assert list(in_passes(runs, 100)) == [runs] and list(in_passes([], 3)) == []


@pytest.mark.parametrize(
    "search, message",
    [
        (1, "search is 1; give a LabelSearch"),
        (LabelSearch(0), "search.top_k is 0; give 1 or more labels"),
        (LabelSearch(required=torch.tensor([0])), r"search.required is \[1\] torch.int64; give a tensor of \[2\]"),
        (LabelSearch(required=torch.tensor([0, 5])), "search.required has 5; give indices of the 5 candidates, or -1"),
        (LabelSearch(temperatures=[1.0, 2.0]), r"search.temperatures is \[1.0, 2.0\]; give a tensor of \[2\]"),
        (LabelSearch(temperatures=torch.tensor([1.0, 0.0])), "search.temperatures has 0.0; give positive numbers"),
        (LabelSearch(tolerance=1.0), "search.tolerance is 1.0; give a share from 0 to less than 1"),
    ],
)
def test_refusals(search, message):
    for name in ("llama", "t5"):
        with pytest.raises(PromptTuningError, match=message):
            tiny_prompt_model(name)(input_ids=torch.tensor([[5, 6], [7, 8]]), candidates=LABELS, search=search)


def test_a_teachers_scores_need_all_labels():
    scores, rows = torch.zeros(2, 5), torch.ones(2, dtype=torch.bool)
    lengths = torch.tensor(list(map(len, LABELS)))
    teacher = LabelDistillation(scores, rows, torch.tensor([0, 1]), lengths)
    with pytest.raises(PromptTuningError, match="search is given with distillation, which needs all labels' scores"):
        ids = torch.tensor([[5, 6], [7, 8]])
        tiny_prompt_model("llama")(input_ids=ids, candidates=LABELS, search=LabelSearch(), distillation=teacher)

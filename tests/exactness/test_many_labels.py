"""Labels in a trie: all scores, and the best labels by search, beside each label alone in the padded layout."""

import random

import pytest
import torch

from hf_prompt_tuning.layouts import base, cached, label_search
from hf_prompt_tuning.layouts.candidates import Candidates, Trie
from hf_prompt_tuning.layouts.label_search import LabelSearch
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model, with_prompts
from tests.shared.tiny_models import tiny_model

LABELS = [[11, 12, 2], [11, 12, 13, 2], [11, 14, 2], [15, 16, 17, 18, 2], [15, 2], [2], [19, 2], [11, 12, 13, 20, 2]]
ODD = [[11, 12], [11, 12, 13], [11, 12], [14], [14, 15, 16]]
"""Labels without EOS: one begins another, and two are the same."""
FAMILIES = ["llama", "gpt2", "opt", "bloom", "mpt", "mistral", "gemma3_text", "gemma3n_text", "gpt_neo", "falcon"]
FAMILIES += ["lfm2", "mamba"]


def many(count: int, seed: int = 0) -> list[list[int]]:
    """Labels of 1 to 4 tokens of 6, and EOS."""
    draw = random.Random(seed)
    labels = {tuple(draw.choices(range(20, 26), k=draw.randint(1, 4))): None for _ in range(20 * count)}
    return [[*label, 2] for label in list(labels)[:count]]


def family_model(name: str):
    if name in ARCHITECTURES:
        backbone = tiny_backbone(name)
    else:
        backbone = tiny_model(name, **({"sliding_window": 4} if name == "mistral" else {}))
    return with_prompts(tiny_prompt_model("", backbone=backbone), other=3).eval()


def texts(side: str = "left", lengths=(17, 1, 9, 4)) -> dict:
    batch = pad(ragged_rows(list(lengths)), side)
    batch.pop("labels")
    names = ["default", "other", "__base__", "default"]
    return batch | {"adapter_names": [names[i % 4] for i in range(len(lengths))]}


def scores(model, batch, labels, layout="auto", **options) -> torch.Tensor:
    model.use_layout(layout)
    with torch.no_grad():
        return model(**batch, candidates=labels, **options)


def test_a_trie_of_three_labels():
    trie = Trie.of([[7, 8, 2], [7, 9, 2], [5, 2]])
    assert (trie.parents, trie.tokens.tolist()) == ([-1, 0, 1, 1, 0, 2, 3, 4], [0, 7, 8, 9, 5, 2, 2, 2])
    assert (trie.ends, trie.runs, trie.computed) == ([5, 6, 7], [(1, 2), (2, 3), (3, 4), (4, 5)], 4)
    assert trie.paths.tolist() == [[1, 2, 5], [1, 3, 6], [4, 7, 0]]
    assert trie.children == [[1, 4], [2, 3], [5], [6], [7]]
    assert trie.are_apart and not Trie.of([[7], [7, 8]]).are_apart and not Trie.of([[7], [7]]).are_apart


def test_a_trie_without_branches_is_one_run_and_parts_repeat_what_is_above_them():
    assert Trie.of([[5, 6, 7, 2]]).runs == [(1, 4)]
    trie = Trie.of([[7, 8, 2], [7, 9, 2], [5, 2]])
    assert trie.parts(2) == [([(1, 2), (2, 3)], [1, 2]), ([(1, 2), (3, 4), (4, 5)], [3, 4])]
    assert trie.parts(100) == [(trie.runs, [1, 2, 3, 4])]


def test_a_tries_scores_are_its_labels_own():
    """Of random predictions at all nodes, behind two sources."""
    torch.manual_seed(0)
    labels = [*LABELS, *ODD]
    ids = tuple(torch.tensor(label) for label in labels)
    candidates = Candidates(ids, tuple(torch.zeros(len(label), 3) for label in labels))
    nodes = list(range(candidates.trie.computed + 1))
    logits = torch.randn(2, len(nodes), 30)
    places, children, values = candidates.steps(logits.flatten(0, 1), nodes * 2)
    steps = torch.zeros(2, len(candidates.trie.parents))
    steps[places // len(nodes), children] = values
    found = candidates.scores(steps)
    for i, label in enumerate(labels):
        path = [0, *candidates.trie.path(candidates.trie.ends[i])]
        assert candidates.trie.tokens[path[1:]].tolist() == label
        expected = sum(logits[:, node].log_softmax(-1)[:, token] for node, token in zip(path, label, strict=False))
        torch.testing.assert_close(found[:, i], expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", [2**26, 7])
def test_all_scores_are_the_padded_layouts(name, positions, monkeypatch):
    """The second time in parts: no pass predicts at more than 7 positions, and here a label has fewer tokens."""
    model = family_model(name)
    expected = scores(model, texts(), LABELS, "padded").scores
    monkeypatch.setattr(base, "MAX_LOGITS", 400 * positions)
    model.use_layout("auto")
    scores(model, texts(lengths=[2, 2]), [[5]])  # the check of the layout
    predicted = []
    model.get_base_model().register_forward_hook(lambda *call: predicted.append(call[-1].logits.shape[1]))
    for side in ("left", "right"):
        with torch.no_grad():
            found = model(**texts(side), candidates=LABELS).scores
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert max(predicted) <= positions
    odd = scores(model, texts(), ODD, "padded").scores
    torch.testing.assert_close(scores(model, texts(), ODD).scores, odd, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["padded", "cached", "packed"])
def test_gradients_of_scores(layout):
    model = family_model("llama")
    weights = [model.prompt_encoder[name].embedding.weight for name in ("default", "other")]
    factors = torch.randn(4, len(LABELS), generator=torch.Generator().manual_seed(0))
    gradients = []
    for each in ("padded", layout):
        model.use_layout(each)
        found = model(**texts(), candidates=LABELS).scores
        gradients.append(torch.autograd.grad((found.softmax(-1) * factors).sum(), weights))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", [2**26, 9])
def test_a_search_finds_the_best_labels(name, positions, monkeypatch):
    model, labels = family_model(name), many(60)
    everything = scores(model, texts(), labels, "padded").scores
    monkeypatch.setattr(base, "MAX_LOGITS", 400 * positions)
    monkeypatch.setattr(cached, "MAX_CACHED", 4 * positions)
    monkeypatch.setattr(label_search, "MIN_NODES", 0)
    monkeypatch.setattr(label_search, "MIN_PASS", 4)
    for top_k in (1, 3, 60, 100):
        found = scores(model, texts(), labels, search=LabelSearch(top_k))
        best = everything.topk(min(top_k, 60))
        torch.testing.assert_close(found.scores.topk(min(top_k, 60)).values, best.values, rtol=1e-5, atol=1e-4)
        assert torch.equal(found.scores.argmax(1), everything.argmax(1))
        known = found.scores > -torch.inf
        torch.testing.assert_close(found.scores[known], everything[known], rtol=1e-5, atol=1e-4)
        if found.nodes is not None:
            total = Trie.of(labels).computed
            assert bool((found.nodes > 0).all()) and bool((found.nodes <= total).all())
            assert bool(((found.nodes == total) == known.all(1)).all())
            assert int(found.nodes.sum()) < 4 * total or top_k > 3
    assert (found.nodes is None) == (name in ("lfm2", "mamba"))

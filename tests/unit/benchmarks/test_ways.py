"""Each way to learn better trains beside the defaults, on rows that quality.py does not report."""

import pytest
import torch
import ways
import ways_tried
from quality_methods import prepare
from quality_tasks import read_tasks, reported_splits
from ways import apart, measure, table
from ways_tried import WAYS, Residual, with_copies

from tests.shared.tiny_models import tiny_model


@pytest.fixture
def task(reviews):
    return read_tasks(reviews, None)["many"]


def texts(rows):
    return set(rows["text"])


def test_the_rows_apart_are_other_rows_of_the_training_file(task):
    split, reported = apart(task, 12, 5), next(reported_splits(task, 12, 5, 600))
    assert split.train["text"] == reported.train["text"]
    assert len(split.held_out) == 90 - 12 and texts(split.held_out) | texts(split.train) == texts(
        task.rows("train.jsonl")
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains(task, tokenizer, way):
    found = measure(WAYS[way], tiny_model("llama", max_position_embeddings=512), tokenizer, apart(task, 12, 5), 1)
    assert set(found) == {"accuracy", "f1", "loss", "also"}
    assert set(found["also"]) == (
        {"each alone", "all together"} if WAYS[way].orders > 1 else {ways.CALIBRATED, *ways.AVERAGED}
    )


def test_the_mean_of_orders_is_of_prompts_that_saw_the_rows_in_other_orders(task, tokenizer, monkeypatch):
    ended, together = [], ways.together
    monkeypatch.setattr(ways, "together", lambda *given: ended.append(given) or together(*given))
    split = apart(task, 12, 5)
    found = measure(WAYS["mean of 5 orders"], tiny_model("llama"), tokenizer, split, 2)
    run, held_out, prompts = ended[0]
    assert len({tuple(prompt.flatten().tolist()) for prompt in prompts}) == 5
    labels = torch.tensor(held_out["label"])
    expected = ways.metrics(run.ranker.scores(held_out, sum(prompts) / 5), labels)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    losses = [ways.metrics(run.ranker.scores(held_out, prompt), labels)["loss"] for prompt in prompts]
    assert found["also"]["each alone"]["loss"] == pytest.approx(sum(losses) / 5, abs=1e-4)
    shares = sum(run.ranker.scores(held_out, prompt).softmax(1) for prompt in prompts) / 5
    expected = float(-shares.gather(1, labels[:, None]).log().mean())
    assert found["also"]["all together"]["loss"] == pytest.approx(expected, abs=1e-4)


def test_a_network_changes_nothing_at_the_start_and_learns_with_the_vectors(task, tokenizer, tmp_path, monkeypatch):
    runs, made = [], []
    monkeypatch.setattr(ways, "prepare", lambda *given: runs.append(prepare(*given)) or runs[-1])
    monkeypatch.setattr(ways_tried, "Residual", lambda width: made.append(Residual(width)) or made[-1])
    measure(WAYS["network, 1e-2"], tiny_model("llama"), tokenizer, apart(task, 12, 5), 1)
    vectors = torch.randn(20, 32)
    assert torch.equal(Residual(32)(vectors), vectors)
    added = made[0](vectors) - vectors
    assert added.abs().max() > 1e-3 and runs[0][0].prompts()[0].shape == (20, 32)


def test_copies_lack_words_and_keep_everything_else(task):
    split = apart(task, 12, 5)
    rows = with_copies(split).train
    assert len(rows) == 5 * 12 and rows["text"][:12] == split.train["text"]
    assert rows["mood"] == list(split.train["mood"]) * 5 and rows["number"] == list(split.train["number"]) * 5
    for copy, text in zip(rows["text"][12:], list(split.train["text"]) * 4, strict=True):
        words = iter(text.split())
        assert all(word in words for word in copy.split()) and copy
    assert set(rows["text"][12:]) - texts(split.train)


def test_the_table_has_the_defaults_and_what_each_way_changes():
    entries = [
        {"task": "a", "size": 5, "way": way, "seed": seed, "f1": f1, "also": {"calibrated": {"f1": f1 + 0.01}}}
        for way, seed, f1 in [("ours", 0, 0.5), ("ours", 1, 0.6), ("cosine", 0, 0.52), ("cosine", 1, 0.59)]
    ]
    assert table(entries) == (
        "| way | a, 5 rows |\n| --- | --- |\n| ours | 0.550 ± 0.071 |\n| calibrated | +1.0 (+1.0, +1.0) |\n"
        "| cosine | +0.5 (+2.0, -1.0) |\n| cosine: calibrated | +1.5 (+3.0, +0.0) |"
    )
    assert table([entry for entry in entries if entry["way"] == "cosine"]) == "| way | a, 5 rows |\n| --- | --- |"

"""Scores against a slow count, one row and one label at a time."""

import numpy as np
import pytest
import torch

from hf_prompt_tuning.models.scoring import classification_metrics, label_nll, loss_metrics, rank_labels, text_metrics
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model

LABELS = [[11, 2], [12, 13, 2], [11, 14, 15, 2]]


def slow_scores(model, sources):
    """log p(words, EOS | prompt, source), through the backbone, one token at a time."""
    backbone = model.get_base_model()
    scores = torch.zeros(len(sources), len(LABELS))
    for b, source in enumerate(sources):
        for i, words in enumerate(LABELS):
            for t, word in enumerate(words):
                ids = torch.cat([source, torch.tensor(words[:t], dtype=torch.long)])
                embeds = torch.cat([model.prompt[None], backbone.get_input_embeddings()(ids[None])], dim=1)
                scores[b, i] += backbone(inputs_embeds=embeds).logits[0, -1].log_softmax(-1)[word]
    return scores


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "gemma", "mamba"])
def test_ranking_sums_the_log_likelihood_of_words_and_eos(name, side):
    model = tiny_prompt_model(name).eval()
    rows = ragged_rows([7, 2, 5], first_labelled=False)
    sources = [ids[labels == -100] for ids, labels in rows]
    with torch.no_grad():
        expected = slow_scores(model, sources)
        scores = rank_labels(model, pad(rows, side), LABELS, is_encoder_decoder=False)
        one = rank_labels(model, pad(rows[1:2], side), LABELS, is_encoder_decoder=False)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(one[0], expected[1], rtol=1e-5, atol=1e-4)


def test_encoder_decoder_ranking():
    model = tiny_prompt_model("t5").eval()
    rows = ragged_rows([7, 2])
    batch = pad(rows, "left") | {"labels": torch.full((2, 3), -100)}
    scores = rank_labels(model, batch, LABELS, is_encoder_decoder=True)
    for b, (ids, _) in enumerate(rows):
        for i, words in enumerate(LABELS):
            with torch.no_grad():
                loss = model(input_ids=ids[None], labels=torch.tensor([words])).loss
            assert scores[b, i].item() == pytest.approx(-loss.item() * len(words), rel=1e-5)


def test_each_examples_loss_is_its_own():
    model = tiny_prompt_model("llama").eval()
    rows = ragged_rows([7, 2, 5])
    nll, tokens = label_nll(model, pad(rows, "right"))
    assert tokens.tolist() == [7, 1, 3]
    for i, row in enumerate(rows):
        alone, _ = label_nll(model, pad([row], "right"))
        torch.testing.assert_close(alone[0], nll[i], rtol=1e-5, atol=1e-5)


def test_loss_is_weighted_by_tokens():
    metrics = loss_metrics(np.array([2.0, 1.0]), np.array([1, 9]))
    assert metrics == {"loss": pytest.approx(0.3), "perplexity": pytest.approx(np.exp(0.3))}
    assert loss_metrics(np.zeros(2), np.zeros(2)) == {}


def test_classification_metrics_leave_out_rows_without_a_label():
    scores = np.array([[0.0, -1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, -2.0]])
    metrics = classification_metrics(scores, np.array([0, 1, 1, -1]))
    # label 0: precision 1/2, recall 1; label 1: precision 1, recall 1/2; both F1 2/3
    assert metrics == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}
    assert classification_metrics(scores, np.full(4, -1)) == {}


def test_text_metrics():
    metrics = text_metrics(["a b c ", "x"], ["a b c", "a x y"])
    # second pair: precision 1, recall 1/3, F 1/2
    assert metrics == {"exact_match": 0.5, "rougeL": pytest.approx(0.75)}

"""Evaluations and pipelines of 120 labels: what all scores give, from some of them."""

import itertools

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_prompt_tuning import PromptTemplate
from hf_prompt_tuning.inspection.effects import quality
from hf_prompt_tuning.models import calibration, scoring
from hf_prompt_tuning.models.scoring import rank_labels, search_labels
from hf_prompt_tuning.training import evaluation
from tests.shared.reference import tiny_prompt_model
from tests.shared.trainers import make

WORDS = ["dog", "cat", "town", "night", "day", "film", "line", "week", "story", "help", "plot"]
LABELS = {f"{i}": f"{a} {b} {c}" for i, (a, b, c) in enumerate(itertools.permutations(WORDS, 3)) if i % 8 == 0}
LABELS = dict(list(LABELS.items())[:120])
TEMPLATE = PromptTemplate(source="Message : {message} Label :", label_column="label", label_words=LABELS)


@pytest.fixture
def rows(messages) -> list[dict]:
    """40 messages with labels."""
    return [
        {"message": f"{messages[i % len(messages)]['message']} {WORDS[i % 7]}", "label": list(LABELS)[i]}
        for i in range(40)
    ]


@pytest.fixture
def trainer(tmp_path, tokenizer, rows):
    options = dict(per_device_eval_batch_size=8, num_train_epochs=4, learning_rate=0.3)
    return make(tmp_path, tokenizer, rows, template=TEMPLATE, eval_rows=rows, **options)


def test_an_evaluation_leaves_out_labels_and_gives_the_same_metrics(trainer, rows, monkeypatch):
    trainer.train()
    full = trainer.evaluate()
    confusion, fitted = trainer.model.info.confusion_matrix, trainer.model.info.calibration
    assert fitted["rows"] == 40 and "eval_label_nodes" not in full
    monkeypatch.setattr(evaluation, "CALIBRATION_ROWS", 16)  # of 5 batches, the first and the fourth
    some = trainer.evaluate()
    nodes = {name: some.pop(f"eval_{name}") for name in ("computed_label_nodes", "label_nodes")}
    assert nodes["computed_label_nodes"] < nodes["label_nodes"]
    same = ("eval_loss", "eval_accuracy", "eval_f1", "eval_perplexity")
    assert {name: some[name] for name in same if name in full} == pytest.approx(
        {name: full[name] for name in same if name in full}, rel=1e-4
    )
    assert trainer.model.info.confusion_matrix == confusion
    assert not any("label_nodes" in name for name in trainer.model.info.metrics)
    output = trainer.predict(rows)
    sample = [*range(8), *range(24, 32)]
    expected = calibration.fit_calibration(output.predictions[sample], output.label_ids[sample])
    assert trainer.model.info.calibration == pytest.approx(expected, rel=1e-3)
    assert np.isfinite(output.predictions).all() and output.predictions.shape == (40, 120)
    untuned = trainer.evaluate_untuned()
    assert untuned["untuned_computed_label_nodes"] < untuned["untuned_label_nodes"] == nodes["label_nodes"]


def test_a_row_of_which_a_search_computes_all_labels_is_not_of_the_calibrations_sample(trainer, monkeypatch):
    """It is an uncertain one: with such rows the sample would not be like the data."""

    def whole_first_row(model, batch, ids, is_encoder_decoder, search):
        output = search_labels(model, batch, ids, is_encoder_decoder, search)
        if search is not None:
            output.scores[0] = search_labels(model, batch, ids, is_encoder_decoder, None).scores[0]
            output.scores[1:, 0] = -torch.inf
            output.nodes[0], output.nodes[1:] = trainer.make_scorer().label_nodes, 5
        return output

    monkeypatch.setattr(scoring, "search_labels", whole_first_row)
    monkeypatch.setattr(evaluation, "CALIBRATION_ROWS", 16)  # of 5 batches, the first and the fourth
    trainer.evaluate()
    assert trainer.model.info.calibration["rows"] == 16


def test_metrics_of_the_callers_own_get_all_scores(tmp_path, tokenizer, rows):
    seen = []

    def own(prediction):
        seen.append(prediction.predictions)
        return {"mine": 1.0}

    trainer = make(tmp_path, tokenizer, rows, template=TEMPLATE, eval_rows=rows, trainer={"compute_metrics": own})
    assert "eval_label_nodes" not in trainer.evaluate()
    assert np.isfinite(seen[0]).all()


def test_the_inspectors_quality(trainer):
    """Loss and accuracy of rows, from the right label and what could be better."""
    model, coder = trainer.model.eval(), trainer.rows.tokenizer
    (batch,) = list(trainer.get_eval_dataloader())[:1]
    found = quality(model, [batch], coder.label_token_ids)
    gold = batch.pop("label")
    scores = rank_labels(model, batch, coder.label_token_ids, False)
    nll = -scores.gather(1, gold[:, None]).sum()
    lengths = sum(len(coder.label_token_ids[label]) for label in gold.tolist())
    assert found.loss == pytest.approx(float(nll) / lengths, rel=1e-4)
    assert found.accuracy == pytest.approx(float((scores.argmax(1) == gold).float().mean()))


@pytest.mark.parametrize("temperature", [None, 0.3, 4.0])
def test_a_pipelines_scores_are_right_to_a_thousandth(temperature, tokenizer, rows):
    model = tiny_prompt_model("llama").eval()
    model.info.template = TEMPLATE
    if temperature is not None:
        model.info.calibration = {"temperature": temperature}
    texts = [row["message"] for row in rows[:7]]
    pipe = pipeline("prompt-classification", model=model, tokenizer=tokenizer)
    everything = pipe(texts, top_k=None, batch_size=4)
    calls = []
    model.register_forward_hook(lambda *call: calls.append(call[-1]))
    for options in ({}, {"top_k": 3}, {"top_k": 500}):
        found = pipe(texts, batch_size=4, **options)
        for row, expected in zip(found, everything, strict=True):
            row = row if options else [row]
            assert len(row) == min(options.get("top_k", 1), 120)
            assert [each["label"] for each in row] == [each["label"] for each in expected[: len(row)]]
            for each, other in zip(row, expected, strict=False):
                assert each["score"] == pytest.approx(other["score"], abs=1e-3)
    nodes = torch.cat([output.nodes for output in calls])
    assert len(nodes) == 21 and int(nodes[:7].sum()) <= int(nodes[14:].sum())
    if temperature == 0.3:
        assert int(nodes[:7].sum()) < int(nodes[14:].sum())

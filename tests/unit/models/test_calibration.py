"""Temperatures: found where they are known, finite where rows ask for none, and used by pipelines."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_prompt_tuning import load_prompt
from hf_prompt_tuning.models.calibration import RANGE, expected_calibration_error, fit_calibration
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.several.task import PromptTask
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE, make


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_labels_were_drawn_with(temperature):
    draws = np.random.default_rng(0)
    logits = draws.normal(size=(20_000, 3)) * 2
    references = (logits + draws.gumbel(size=logits.shape)).argmax(1)
    found = fit_calibration(logits * temperature - 7, references)
    assert found["temperature"] == pytest.approx(temperature, rel=0.05) and found["rows"] == 20_000
    assert found["calibrated_ece"] < 0.01
    assert (found["ece"] > 0.05) == (temperature != 1.0)


def test_no_row_that_is_told_right_asks_for_a_temperature_of_zero():
    """Of two rows a right label counts 3/4: the softmax of (0, -8 / T) is that at T = 8 / log 3."""
    found = fit_calibration(np.array([[0.0, -8.0], [-8.0, 0.0]]), np.array([0, 1]))
    assert found["temperature"] == pytest.approx(8 / np.log(3), rel=1e-3)
    wrong = fit_calibration(np.array([[0.0, -8.0], [-8.0, 0.0]]), np.array([1, 0]))
    assert wrong["temperature"] == pytest.approx(RANGE[1], rel=1e-2)


def test_rows_without_a_label_do_not_count():
    scores, references = np.array([[0.0, -2.0], [-9.0, 0.0], [0.0, -1.0]]), np.array([0, -1, 1])
    assert fit_calibration(scores, references) == fit_calibration(scores[[0, 2]], references[[0, 2]])
    assert fit_calibration(scores, np.full(3, -1)) == {}


def test_the_expected_calibration_error():
    """Three rows at 0.75 of which two are right, one at 0.95 that is wrong: (|3 * 0.75 - 2| + |0.95 - 0|) / 4."""
    scores = np.log([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.05, 0.95]])
    assert expected_calibration_error(scores, np.array([0, 1, 1, 0])) == pytest.approx((0.25 + 0.95) / 4)


def test_an_evaluation_fits_it_and_a_pipeline_divides_by_it(tmp_path, tokenizer, messages):
    trainer = make(tmp_path, tokenizer, messages, template=TEMPLATE, eval_rows=messages)
    trainer.train()
    output = trainer.predict(messages)
    assert trainer.model.info.calibration == {}
    trainer.evaluate()
    trainer.predict(messages[:3])
    found = trainer.model.info.calibration
    assert found == pytest.approx(fit_calibration(output.predictions, output.label_ids), rel=1e-4)
    assert found["rows"] == len(messages)
    trainer.save_model()
    model, *_ = load_prompt(tmp_path, backbone=tiny_model("llama"), tokenizer=tokenizer)
    pipe = pipeline("prompt-classification", model=model, tokenizer=tokenizer)
    scores = torch.tensor(output.predictions) / found["temperature"]
    for row, expected in zip(messages, scores.softmax(-1).tolist(), strict=True):
        got = {one["label"]: one["score"] for one in pipe(row, top_k=2)}
        assert list(map(got.get, TEMPLATE.label_words.values())) == pytest.approx(expected, abs=1e-4)
    said = f"divided by {found['temperature']:.3g}, which was fitted on {len(messages)} of these rows"
    assert said in (tmp_path / "README.md").read_text()


def test_each_prompt_of_an_ensemble_has_its_own(tmp_path, tokenizer, messages):
    members = [PromptTask("one", random_prompt(4), seed=1), PromptTask("two", random_prompt(4), seed=2)]
    trainer = EnsembleTrainer(
        tiny_model("llama"), arguments(tmp_path), members, messages, messages, tokenizer, TEMPLATE
    )
    trainer.evaluate()
    output = trainer.predict(messages)
    for g, name in enumerate(trainer.members):
        expected = fit_calibration(output.predictions[:, g], output.label_ids)
        assert trainer.model.prompt_info[name].calibration == pytest.approx(expected, rel=1e-4)

"""What is predicted of a row stands with that row, whatever the order that training takes."""

import json

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from hf_prompt_tuning import PromptTemplate
from hf_prompt_tuning.cli.main import save_predictions
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.several.task import PromptTask
from hf_prompt_tuning.several.trainer import MultiPromptTrainer
from tests.shared.several_prompts import arguments as arguments_of_several
from tests.shared.several_prompts import random_prompt
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import make
from tests.shared.versions import since

WORDS = ["a", "small", "dog", "and", "a", "big", "cat", "in", "the", "old", "town", "of", "night", "and", "day"]
LENGTHS = (1, 9, 3, 12, 5, 7, 2, 11, 4, 6)
TEMPLATE = PromptTemplate(
    source="Message : {message} Label :", label_column="Label", label_words={"1": "complaint", "2": "no complaint"}
)
FREE = PromptTemplate(source="Message : {message} Answer :", target="{answer}", max_target_length=6)
GROUPED = dict(train_sampling_strategy="group_by_length", per_device_eval_batch_size=2)


@pytest.fixture
def rows():
    """Rows of very different lengths, in no order."""
    return [
        {"message": " ".join(WORDS[:length]), "Label": str(1 + i % 2), "answer": WORDS[i]}
        for i, length in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("template", [TEMPLATE, FREE], ids=["labels", "texts"])
@pytest.mark.parametrize(
    "values",
    [
        GROUPED,
        GROUPED | {"dataloader_drop_last": True, "per_device_eval_batch_size": 4},
        pytest.param(
            {"train_sampling_strategy": "batch_rebalance", "per_device_eval_batch_size": 3}, marks=since("5.17")
        ),
        pytest.param(
            {"dataloader_num_workers": 2, "dataloader_in_order": False, "per_device_eval_batch_size": 3},
            marks=since("5.15"),
        ),
    ],
    ids=["grouped", "drop-last", "rebalanced", "out-of-order"],
)
def test_predictions_are_in_the_rows_order(template, values, tmp_path, tokenizer, rows):
    expected = make(tmp_path / "a", tokenizer, rows, template, eval_rows=rows).predict(rows)
    trainer = make(tmp_path / "b", tokenizer, rows, template, eval_rows=rows, **values)
    output = trainer.predict(rows)
    assert list(output.label_ids) == list(expected.label_ids) and len(output.predictions) == 10
    if template is FREE:
        assert output.predictions == expected.predictions
    else:
        np.testing.assert_allclose(output.predictions, expected.predictions, rtol=1e-4, atol=1e-4)
    file = save_predictions(trainer, output, Dataset.from_list(rows))
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["row"] for record in records] == list(range(10))
    assert [record["input"] for record in records] == [template.source_text(row) for row in rows]


def test_metrics_see_the_rows_in_their_order(tmp_path, tokenizer, rows):
    seen = []

    def metrics(prediction):
        seen.append(prediction.label_ids.tolist())
        return {}

    data = {"all": rows, "some": rows[3:]}
    trainer = make(
        tmp_path, tokenizer, rows, TEMPLATE, eval_rows=data, trainer={"compute_metrics": metrics}, **GROUPED
    )
    trainer.evaluate()
    assert seen == [[i % 2 for i in range(10)], [i % 2 for i in range(3, 10)]]


def test_a_stream_in_shards_is_read_in_its_order(tmp_path, tokenizer, rows):
    """With several workers, each would read a shard, and their batches would come in turn."""
    stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=3)
    assert isinstance(stream, IterableDataset) and stream.num_shards == 3
    expected = make(tmp_path / "a", tokenizer, rows, TEMPLATE).predict(rows)
    values = dict(dataloader_num_workers=2, per_device_eval_batch_size=2)
    output = make(tmp_path / "b", tokenizer, rows, TEMPLATE, **values).predict(stream)
    assert output.label_ids.tolist() == expected.label_ids.tolist()
    np.testing.assert_allclose(output.predictions, expected.predictions, rtol=1e-4, atol=1e-4)


def test_other_data_is_not_taken_for_the_evaluations(tmp_path, tokenizer, rows):
    """Workers that stay are the evaluation data's own: Trainer keeps one loader for whatever it is given."""
    values = dict(dataloader_num_workers=1, dataloader_persistent_workers=True)
    trainer = make(tmp_path, tokenizer, rows, TEMPLATE, eval_rows=rows, **values)
    first = trainer.evaluate()
    other = trainer.evaluate(rows[:3], metric_key_prefix="other")
    alone = make(tmp_path / "b", tokenizer, rows, TEMPLATE).predict(rows[:3]).metrics
    assert other["other_loss"] == pytest.approx(alone["test_loss"], rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)


@pytest.mark.parametrize("template", [TEMPLATE, FREE], ids=["labels", "texts"])
def test_several_prompts_predict_in_the_rows_order(template, tmp_path, tokenizer, rows):
    members = [PromptTask("one", random_prompt(4), seed=1), PromptTask("two", random_prompt(6), seed=2)]

    def ensemble(folder, **values):
        args = arguments_of_several(folder, **values)
        return EnsembleTrainer(tiny_model("llama"), args, members, None, rows, tokenizer, template)

    expected = ensemble(tmp_path / "a").predict(rows)
    trainer = ensemble(tmp_path / "b", **GROUPED)
    output = trainer.predict(rows)
    assert list(output.label_ids) == list(expected.label_ids)
    if template is FREE:
        assert output.predictions == expected.predictions
    else:
        np.testing.assert_allclose(output.predictions, expected.predictions, rtol=1e-4, atol=1e-4)
    file = save_predictions(trainer, output, Dataset.from_list(rows))
    assert [json.loads(line)["row"] for line in file.read_text().splitlines()] == list(range(10))


def test_tasks_predict_in_the_rows_order(tmp_path, tokenizer, rows):
    tasks = [
        PromptTask("labels", random_prompt(4), None, rows, TEMPLATE, seed=1),
        PromptTask("texts", random_prompt(6), None, rows, FREE, seed=2),
    ]

    def predicted(folder, **values):
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments_of_several(folder, **values), tasks, tokenizer)
        return trainer.predict_tasks({"labels": rows, "texts": rows})

    expected, found = predicted(tmp_path / "a"), predicted(tmp_path / "b", **GROUPED)
    assert found["texts"].predictions == expected["texts"].predictions
    np.testing.assert_allclose(found["labels"].predictions, expected["labels"].predictions, rtol=1e-4, atol=1e-4)

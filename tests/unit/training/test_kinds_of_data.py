"""Data of a kind that trains nothing, or that trains silently on the wrong thing."""

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from hf_prompt_tuning import EnsembleTrainer, MultiPromptTrainer, PromptTask, PromptTemplate, PromptTuningError
from tests.shared.several_prompts import random_prompt
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE, arguments, make

IDS = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
SPLITS = {"train": Dataset.from_list(IDS), "test": Dataset.from_list(IDS)}

KINDS = pytest.mark.parametrize(
    ("data", "message"),
    [
        (DatasetDict(SPLITS), "data is a DatasetDict of 'train', 'test'; give one of its splits"),
        (SPLITS, "data is a dict of 'train', 'test'; give one of its splits"),
        ({"text": ["a"], "label": ["b"]}, r"data is a dict of 'text', 'label'; give .* Dataset.from_dict"),
        (pd.DataFrame({"message": ["a"], "label": ["1"]}), "data is a DataFrame; give Dataset.from_pandas"),
        (pa.table({"message": ["a"], "label": ["1"]}), r"data is a Table; give Dataset\(…\) of the datasets library"),
        ("train.jsonl", "data is the str 'train.jsonl'; give its rows"),
    ],
    ids=["DatasetDict", "dict", "columns", "DataFrame", "Table", "str"],
)


@KINDS
def test_what_is_not_rows(data, message, tmp_path, tokenizer, messages):
    for template, rows in ((TEMPLATE, messages), (None, IDS)):
        with pytest.raises(PromptTuningError, match=f"the training {message}"):
            make(tmp_path, tokenizer, data, template)
        with pytest.raises(PromptTuningError, match=f"the test {message}"):
            make(tmp_path, tokenizer, rows, template).predict(data)


@KINDS
def test_what_is_not_rows_of_several_prompts(data, message, tmp_path, tokenizer):
    task, args = PromptTask("one", random_prompt(4), data, None, TEMPLATE), arguments(tmp_path)
    with pytest.raises(PromptTuningError, match=f"the one training {message}"):
        MultiPromptTrainer(tiny_model("llama"), args, [task], tokenizer)
    members = [PromptTask(name, random_prompt(4)) for name in "ab"]
    with pytest.raises(PromptTuningError, match=f"the training {message}"):
        EnsembleTrainer(tiny_model("llama"), args, members, data, None, tokenizer, TEMPLATE)


def test_evaluation_data_may_be_several(tmp_path, tokenizer):
    trainer = make(tmp_path, tokenizer, IDS, None, eval_rows=DatasetDict(SPLITS))
    assert "eval_test_loss" in trainer.evaluate()
    with pytest.raises(PromptTuningError, match=r"the evaluation \(a\) data is a DataFrame"):
        make(tmp_path, tokenizer, IDS, None, eval_rows={"a": pd.DataFrame(IDS)})


def test_token_ids_without_any_label(tmp_path, tokenizer):
    for bare in ([-100, -100, -100], []):
        rows = [row | {"labels": bare} for row in IDS]
        with pytest.raises(PromptTuningError, match="no row of the training data has a label"):
            make(tmp_path, tokenizer, rows, None)
        with pytest.raises(PromptTuningError, match="no row of the one training data has a label"):
            task = PromptTask("one", random_prompt(4), rows)
            MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), [task], tokenizer)
        make(tmp_path, tokenizer, [*rows, IDS[0]], None, eval_rows=rows)
        make(tmp_path, tokenizer, rows, None, trainer={"data_collator": dict})  # may make its own


def test_a_single_label(tmp_path, tokenizer, messages, caplog):
    template = PromptTemplate(source="Message : {message} Label :", label_column="label")
    rows = [{"message": row["message"], "label": "bad"} for row in messages]
    make(tmp_path, tokenizer, rows, template)
    (message,) = [record.getMessage() for record in caplog.records if "the only label" in record.getMessage()]
    assert "column 'label' are 'bad'" in message
    caplog.clear()
    make(tmp_path, tokenizer, [row for row in messages if row["label"] == "1"])  # the words of both labels are given
    make(tmp_path, tokenizer, [*rows, rows[0] | {"label": "good"}], template)
    assert "the only label" not in caplog.text

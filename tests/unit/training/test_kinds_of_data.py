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


PADDED = [{"input_ids": [0, 5, 6], "labels": [-100, -100, 6]}, {"input_ids": [8, 9, 0], "labels": [-100, 9, -100]}]


def test_pads_without_a_mask_are_warned_of_once_as_text(tmp_path, tokenizer, caplog):
    """As `forward` reads them, which has no mask to tell them by."""
    trainer = make(tmp_path, tokenizer, [*IDS, *PADDED], None, eval_rows={"a": PADDED})
    trainer.evaluate()
    trainer.predict(PADDED)
    said = "The training data has no attention_mask, and 2 of 4 rows begin or end with the pad token 0, which is read"
    assert [message.startswith(said) for message in caplog.messages if "pad" in message] == [True]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (2, 3)])
    assert batch["attention_mask"].all()
    read = trainer.model(**batch, only_labelled=True).loss
    caplog.clear()
    labels = {name: batch[name] for name in ("input_ids", "labels")}
    assert trainer.model(**labels, only_labelled=True).loss == read
    assert "rows begin or end with the pad token, which is read as text" in caplog.text


def test_what_is_no_pad_is_not_warned_of(tmp_path, tokenizer, caplog):
    masked = [row | {"attention_mask": [int(i != 0) for i in row["input_ids"]]} for row in PADDED]
    make(tmp_path, tokenizer, masked, None)
    make(tmp_path, None, IDS, None)
    tokenizer.pad_token = tokenizer.eos_token
    ended = [{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, {"input_ids": [1, 5, 2], "labels": [-100, 5, 2]}]
    make(tmp_path, tokenizer, ended, None)
    assert not [message for message in caplog.messages if "pad" in message]
    make(tmp_path, tokenizer, [*ended, {"input_ids": [5, 2, 2], "labels": [-100, 2, -100]}], None)
    assert "1 of 3 rows begin or end with the pad token 2" in caplog.text


def test_a_wrong_column_is_named_before_the_words_of_labels(tmp_path, tokenizer):
    """Words for its labels would help nothing."""
    template = PromptTemplate("Message : {massage}", label_column="label")
    rows = [{"message": "never came", "label": 1}, {"message": "thank you", "label": 2}]
    with pytest.raises(PromptTuningError, match=r"field \{massage\} is no column of the training data, .*'message'"):
        make(tmp_path, tokenizer, rows, template)
    with pytest.raises(PromptTuningError, match=r"field \{massage\} is no column of the evaluation data"):
        make(tmp_path, tokenizer, None, template, eval_rows=rows)


@pytest.mark.parametrize("given", ["tokenizer", "peft_config"])
def test_an_argument_that_has_another_name_here(given, tmp_path, tokenizer):
    ours = {"tokenizer": "processing_class", "peft_config": "prompt_config"}[given]
    message = f"{given} is given, and here it is called {ours}; give it so"
    with pytest.raises(PromptTuningError, match=message):
        make(tmp_path, None, IDS, None, trainer={given: tokenizer})
    task, args = PromptTask("one", random_prompt(4), IDS), arguments(tmp_path)
    with pytest.raises(PromptTuningError, match=message):
        MultiPromptTrainer(tiny_model("llama"), args, [task], **{given: tokenizer})

"""Files become rows, with values as they are written."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_prompt_tuning import ChatTemplate, ClassTemplate, PromptTemplate, PromptTuningError, TagTemplate
from hf_prompt_tuning.cli.data_arguments import DataArguments
from hf_prompt_tuning.cli.splits import load_splits, split_names, warn_of_unlearned_labels
from hf_prompt_tuning.data.files import read_file
from hf_prompt_tuning.data.head_template import HeadTemplate

ROWS = [{"text": "NA", "label": 1}, {"text": "null, or \U0001f600", "label": 0}]
TEXTS = [{"text": "NA", "label": "1"}, {"text": "null, or \U0001f600", "label": "0"}]


def test_every_kind_of_file(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\nNA,1\n"null, or \U0001f600",0\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\tlabel\nNA\t1\nnull, or \U0001f600\t0\n", encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    for name in ("a.json", "a.jsonl", "a.parquet"):
        assert read_file(tmp_path / name).to_list() == ROWS
    for name in ("a.csv", "a.tsv"):
        assert read_file(tmp_path / name).to_list() == TEXTS


@pytest.mark.parametrize("place", ["data[1].parquet", "data?.parquet", "data*.parquet", "run[1]/data1.parquet"])
def test_a_file_whose_path_looks_like_a_pattern_is_read_and_no_other(tmp_path, place):
    for name, rows in (("data1.parquet", ROWS[:1]), ("run1/data1.parquet", ROWS[:1]), (place, ROWS[1:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Dataset.from_list(rows).to_parquet(tmp_path / name)
    assert read_file(tmp_path / place).to_list() == ROWS[1:]


def test_a_parquet_file_that_was_written_again_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for rows in (ROWS, ROWS[1:]):
        Dataset.from_list(rows).to_parquet("a[1].parquet")
        assert read_file("a[1].parquet").to_list() == rows


def test_a_file_without_a_header(tmp_path):
    (tmp_path / "a.tsv").write_text('a "quoted word\t1\nno header\t0\n')
    rows = read_file(tmp_path / "a.tsv", ["text", "label"]).to_list()
    assert rows == [{"text": 'a "quoted word', "label": "1"}, {"text": "no header", "label": "0"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", "ends in '.txt'; give one of .csv"),
        ("a.csv", "", "is empty; give one with rows"),
        ("a.csv", "text,label\n", "has no rows; give one with rows"),
        ("a.jsonl", "no json", r"row 1 \(line 1\) of the data file .*a.jsonl' cannot be used: it is no JSON"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("none.csv", None, "is not there"),
    ],
)
def test_files_that_are_not_what_their_names_say(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(PromptTuningError, match=message):
        read_file(tmp_path / name)


def test_column_names_are_for_tables(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(PromptTuningError, match="column_names are for csv and tsv"):
        read_file(tmp_path / "a.jsonl", ["a"])


def test_splits_and_samples(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"n": n}) for n in range(100)))
    splits = load_splits(DataArguments(train_file=str(file), validation_split_percentage=20), seed=1)
    assert (len(splits["train"]), len(splits["validation"])) == (80, 20)
    assert not set(splits["train"]["n"]) & set(splits["validation"]["n"])
    args = DataArguments(train_file=str(file), validation_file=str(file), max_train_samples=7, max_eval_samples=200)
    few = load_splits(args, seed=1)
    assert (len(few["train"]), len(few["validation"])) == (7, 100)
    assert few["train"]["n"] != list(range(7))
    assert few["train"]["n"][:] == load_splits(args, seed=1)["train"]["n"][:]
    assert few["train"]["n"][:] != load_splits(args, seed=2)["train"]["n"][:]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "there is no data"),
        (
            {"validation_split_percentage": 100, "train_file": "FILE"},
            "validation_split_percentage is 100; give 1 to 99",
        ),
        (
            {"validation_split_percentage": 60, "train_file": "TWO"},
            "validation_split_percentage is 60 and there are 2 training rows, of which it would leave none",
        ),
        (
            {"validation_split_percentage": 99, "train_file": "TWO"},
            "validation_split_percentage is 99 and there are 2 training rows",
        ),
        (
            {"validation_split_percentage": 10, "train_file": "TWO", "validation_file": "FILE"},
            "validation_split_percentage and validation_file are both given",
        ),
        ({"max_train_samples": 0, "train_file": "FILE"}, "the limit on train samples is 0"),
    ],
)
def test_refusals(tmp_path, values, message):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(ROWS[0]))
    two = tmp_path / "b.jsonl"
    two.write_text("\n".join(map(json.dumps, ROWS)))
    values = {k: {"FILE": str(file), "TWO": str(two)}.get(v, v) for k, v in values.items()}
    with pytest.raises(PromptTuningError, match=message):
        load_splits(DataArguments(**values), seed=0)


def test_a_split_leaves_one_row_to_train_on(tmp_path):
    file = tmp_path / "a.jsonl"
    for rows in range(2, 12):
        file.write_text("\n".join(json.dumps({"n": n}) for n in range(rows)))
        for percentage in (1, 7, 29, 50, 90, 99):
            args = DataArguments(train_file=str(file), validation_split_percentage=percentage)
            if -(-rows * percentage // 100) == rows:
                with pytest.raises(PromptTuningError, match="of which it would leave none"):
                    load_splits(args, seed=1)
            else:
                splits = load_splits(args, seed=1)
                assert len(splits["train"]) + len(splits["validation"]) == rows and len(splits["train"])


@pytest.mark.parametrize(
    ("template", "train", "validation", "told"),
    [
        (PromptTemplate("{text}", label_column="label"), ["a", "b"], ["b", "c", "d", "c", ""], "'c', 'd'"),
        (PromptTemplate("{text}", label_column="label"), [1, 2, None], [2, 3, -1], "'3'"),
        (PromptTemplate("{text}", label_column="label"), ["a", "b"], ["b", "a"], None),
        (PromptTemplate("{text}", target="{label}"), ["a", "b"], ["c"], None),
        (ClassTemplate("{text}", label_column="label"), [1, 2], [2, 3], "'3'"),
        (ClassTemplate("{text}", label_column="label"), [1.0, 2.5], [3.5], None),
        (ClassTemplate("{text}", label_column="label"), [["a"], ["b"]], [["a", "c"], []], "'c'"),
        (TagTemplate("text", label_column="label"), [["a"], ["b"]], [["a", "c"], []], "'c'"),
        (ChatTemplate("label"), ["a"], ["b"], None),
    ],
)
def test_labels_that_only_validation_rows_have_are_told(template, train, validation, told, caplog):
    splits = DatasetDict(
        {
            name: Dataset.from_dict({"text": ["x"] * len(labels), "label": labels})
            for name, labels in (("train", train), ("validation", validation))
        }
    )
    template = template.with_label_words(splits["train"]) if isinstance(template, HeadTemplate) else template
    warn_of_unlearned_labels(template, splits)
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == (told is not None)
    assert told is None or f"no training row has the label {told}, and validation rows do" in found[0]


def test_names_of_labels_that_only_validation_rows_have_are_told(caplog):
    of = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    train, validation = (Dataset.from_dict({"text": ["x"], "label": [i]}, features=of) for i in (0, 1))
    splits = DatasetDict({"train": train, "validation": validation})
    warn_of_unlearned_labels(PromptTemplate("{text}", label_column="label"), splits)
    assert "no training row has the label 'yes', and validation rows do" in caplog.text


def test_a_local_data_set_by_name(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "validation.jsonl").write_text(json.dumps(ROWS[1]))
    splits = load_splits(DataArguments(dataset_name=str(tmp_path)), seed=0)
    assert splits["validation"].to_list() == ROWS[1:]


def test_a_local_data_set_whose_path_is_a_pattern_is_refused(tmp_path):
    for name, row in (("data1", ROWS[0]), ("data[1]", ROWS[1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps(row))
    name, message = str(tmp_path / "data[1]"), r"dataset_name is '.*data\[1\]'.* without \*, \? and \["
    with pytest.raises(PromptTuningError, match=message):
        load_splits(DataArguments(dataset_name=name), seed=0)
    with pytest.raises(PromptTuningError, match=message):
        split_names(name, None, None)


def test_a_data_set_that_is_a_script(tmp_path):
    folder = tmp_path / "raft"
    folder.mkdir()
    (folder / "raft.py").write_text("")
    with pytest.raises(PromptTuningError, match=r"the data set .* could not be loaded"):
        load_splits(DataArguments(dataset_name=str(folder)), seed=0)

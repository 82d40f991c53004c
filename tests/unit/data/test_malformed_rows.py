"""What is odd in a data file is trained on as it is written, or refused with the file and the row."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from hf_prompt_tuning import PromptTemplate, PromptTuningError
from hf_prompt_tuning.cli.data_arguments import DataArguments
from hf_prompt_tuning.cli.splits import load_splits
from hf_prompt_tuning.data.files import CHUNK, read_file
from hf_prompt_tuning.data.tokenization import PromptTokenizer
from tests.sessions import soak_rows
from tests.shared.reference import row_encoder_of, tiny_prompt_model
from tests.shared.trainers import losses, make

TEMPLATE = PromptTemplate(
    source="{text} :", label_column="label", label_words={"1": "complaint", "2": "no complaint"}, max_source_length=60
)
FINE = {"text": "never came", "label": "1"}


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def trainer_of(tmp_path, tokenizer, file, template=TEMPLATE, **values):
    """The file as the command reads it, in a trainer: read, and made tokens of."""
    data = load_splits(DataArguments(train_file=str(file), **values), seed=0)["train"]
    return make(tmp_path / "out", tokenizer, data, template, max_steps=1)


def write(tmp_path, name, content):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(content, file)
    else:
        # csv.writer of Python 3.10 takes no NUL.
        rows = [["text", "label"], *content]
        if name.endswith(".csv"):
            written = [",".join('"' + value.replace('"', '""') + '"' for value in row) for row in rows]
        else:
            written = ["\t".join(row) for row in rows]
        file.write_bytes("".join(f"{line}\r\n" for line in written).encode())
    return file


ODD = {
    "right-to-left": "שלום עולם وداعا",
    "emoji": "never 😀 came 👩‍👩‍👧 again",
    "numbers": "007",
    "a decimal": "4.10",
    "a date": "2024-01-01",
    "a missing value's word": "NA",
    "another": "null",
    "NUL": "a\0b",
    "a byte order mark within": "a\ufeffb",
    "line ends of other alphabets": "a\u2028b\x85c",
    "braces": "{label} {0} }{",
    "special tokens": "a < s > b",
    "JSON in a text": '["day", 1]',
}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_odd_texts_are_trained_on_as_they_are_written(tmp_path, tokenizer, suffix):
    texts = [text for text in ODD.values() if suffix != "tsv" or '"' not in text]
    rows = [{"text": text, "label": str(1 + i % 2)} for i, text in enumerate(texts)]
    content = {
        "json": json.dumps(rows).encode(),
        "jsonl": lines(*rows),
        "parquet": pa.Table.from_pylist(rows),
    }.get(suffix, [list(row.values()) for row in rows])
    file = write(tmp_path, f"a.{suffix}", content)
    assert read_file(file).to_list() == rows
    trainer = trainer_of(tmp_path, tokenizer, file)
    assert [row_encoder_of(trainer).readable(row) for row in trainer.train_dataset] == [
        {"source": f"{row['text']} :", "target": " complaint" if row["label"] == "1" else " no complaint"}
        for row in rows
    ]
    trainer.train()
    assert 0 < losses(trainer)[0] < 100


def test_a_column_of_numbers_or_dates_is_its_text(tmp_path, tokenizer):
    for values, text in [([5, 7], "5"), ([2.5, 7], "2.5"), ([True, False], "True"), ([5, None], "5")]:
        file = write(tmp_path, "a.jsonl", lines(*({"x": v, "text": "day", "label": 1} for v in values)))
        trainer = trainer_of(tmp_path, tokenizer, file, PromptTemplate(**TEMPLATE_OF_TWO))
        assert row_encoder_of(trainer).readable(trainer.train_dataset[0])["source"] == f"{text} day"
    table = pa.table({"x": pa.array([0], pa.date32()), "text": ["day"], "label": [1]})
    trainer = trainer_of(tmp_path, tokenizer, write(tmp_path, "a.parquet", table), PromptTemplate(**TEMPLATE_OF_TWO))
    assert row_encoder_of(trainer).readable(trainer.train_dataset[0])["source"] == "1970-01-01 day"


TEMPLATE_OF_TWO = dict(source="{x} {text}", label_column="label", label_words={"1": "day", "2": "night"})


def test_one_missing_value_of_two_is_an_empty_text(tmp_path, tokenizer):
    file = write(tmp_path, "a.jsonl", lines({"x": "old", "text": "day", "label": 1}, {"text": "day", "label": 1}))
    trainer = trainer_of(tmp_path, tokenizer, file, PromptTemplate(**TEMPLATE_OF_TWO))
    assert [row_encoder_of(trainer).readable(row)["source"] for row in trainer.train_dataset] == ["old day", " day"]


def test_an_empty_text_is_trained_on_where_the_template_has_words(tmp_path, tokenizer):
    for name, content in [("a.csv", [["", "1"], ["a", "2"]]), ("a.jsonl", lines({"text": "", "label": "1"}, FINE))]:
        trainer = trainer_of(tmp_path, tokenizer, write(tmp_path, name, content))
        assert row_encoder_of(trainer).readable(trainer.train_dataset[0]) == {"source": " :", "target": " complaint"}


def test_a_megabyte_is_cut_without_tokenizing_it(tmp_path, tokenizer, monkeypatch):
    words = "day and night " * 75_000
    assert len(words) > 2**20
    file = write(tmp_path, "a.csv", [[words, "1"], ["a", "2"]])
    longest, tokenize = 0, type(tokenizer).__call__

    def watched(self, text, **options):
        nonlocal longest
        longest = max(longest, len(text))
        return tokenize(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", watched)
    trainer = trainer_of(tmp_path, tokenizer, file)
    first = trainer.train_dataset[0]
    assert first["labels"].count(-100) == 60
    assert row_encoder_of(trainer).readable(first)["source"].startswith("day and night day and night")
    assert longest < 2000


def test_a_megabyte_without_a_cut_is_refused(tmp_path, tokenizer):
    file = write(tmp_path, "a.jsonl", lines(FINE, {"text": "a" * 2**20, "label": "2"}))
    whole = PromptTemplate(source="{text} :", label_column="label", label_words={"1": "day", "2": "night"})
    with pytest.raises(PromptTuningError, match=r"row 2 of the training data \(row 2 of a.jsonl\) has 10\d+ tokens"):
        trainer_of(tmp_path, tokenizer, file, whole)


def bad_parquet():
    """A text that is no UTF-8, in the second chunk of a file that says it is."""
    many = ["a"] * CHUNK
    good = pa.table({"text": many, "label": ["1"] * CHUNK})
    ends = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2, 6)))
    broken = pa.StringArray.from_buffers(2, ends, pa.py_buffer(b"okcaf\xe9"))
    return pa.concat_tables([good, pa.table({"text": broken, "label": ["1", "2"]})])


QUOTED = b'text,label\n"two\nlines",1\n'
REFUSED = {
    "no JSON": ("a.jsonl", lines(FINE) + b"\nnot json\n" + lines(FINE), "row 2 (line 3)", "it is no JSON"),
    "half a line": ("a.jsonl", lines(FINE) + b'{"text": "ab', "row 2 (line 2)", "it is no JSON"),
    "a raw NUL": ("a.jsonl", b'{"text": "a\0b", "label": "1"}', "row 1 (line 1)", "it is no JSON"),
    "a number for a row": ("a.jsonl", lines(FINE) + b"5\n", "row 2 (line 2)", "it is a number, not an object"),
    "a list for a row": ("a.jsonl", lines(FINE, ["a"]), "row 2 (line 2)", "it is a list, not an object"),
    "a key twice": ("a.jsonl", b'{"text": "a", "text": "b"}', "row 1 (line 1)", "it has 'text' twice"),
    "half a surrogate": ("a.jsonl", lines(FINE) + rb'{"text": "\ud800"}', "row 2 (line 2)", r"\ud800 is no UTF-8"),
    "Latin-1 in jsonl": ("a.jsonl", lines(FINE) + b'{"text": "caf\xe9"}', "row 2 (line 2)", "byte 0xe9 is no UTF-8"),
    "Latin-1 in csv": ("a.csv", QUOTED + b"caf\xe9,2\n", "row 2 (line 4)", "byte 0xe9 is no UTF-8"),
    "Latin-1 in tsv": ("a.tsv", b"text\tlabel\ncaf\xe9\t2\n", "row 1 (line 2)", "byte 0xe9 is no UTF-8"),
    "Latin-1 in parquet": ("a.parquet", bad_parquet(), f"row {CHUNK + 2}", "UTF8"),
    "UTF-16": ("a.csv", "text,label\n".encode("utf-16"), "the header (line 1)", "byte 0xff is no UTF-8"),
    "a number among texts": (
        "a.jsonl",
        lines(FINE, {"text": 5}),
        "row 2 (line 2)",
        "'text' is a number (5), and",
    ),
    "a list among texts": ("a.jsonl", lines(FINE, {"text": ["a"]}), "row 2 (line 2)", "'text' is a list"),
    "an object": ("a.json", json.dumps([FINE, {"text": {}}]).encode(), "row 2", "'text' is an object"),
    "a text among numbers": ("a.jsonl", lines({"label": 1}, {"label": "2"}), "row 2 (line 2)", "'label' is a text"),
    "a huge number": ("a.jsonl", lines({"text": 2**70}), "row 1 (line 1)", "a number of more than 64 bits"),
    "a broken item": ("a.json", b'[{"text": "a"}, {"text" 5}]', "row 2", "it is no JSON"),
    "no comma between items": ("a.json", b'[{"text": "a"} {"text": "b"}]', "row 2", "it is no JSON"),
    "a comma behind the last": ("a.json", b'[{"text": "a"}, ]', "row 2", "it is no JSON"),
    "a comma before the first": ("a.json", b'[ , {"text": "a"}]', "row 1", "it is no JSON"),
    "a comma and no more": ("a.json", b'[{"text": "a"}, ', "row 2", "it is no JSON"),
    "a list that is cut": ("a.json", b'[{"text": "a"}, {"text": "b"}', "row 3", "it is no JSON"),
    "a value too few": ("a.csv", QUOTED + b"b\nc,2\n", "row 2 (line 4)", "it has 1 values for the 2 columns 'text'"),
    "a value too many": ("a.tsv", b"text\tlabel\na\t1\tb\n", "row 1 (line 2)", "it has 3 values for the 2"),
    "too many in each": (
        "a.csv",
        b"text,label\na,1,x\nb,2,y\n",
        "row 1 (line 2)",
        "it has 3 values for the 2",
    ),
    "an open quotation": ("a.csv", QUOTED + b'"b,1\nc,2\n', "row 2 (line 4)", "unexpected end of data"),
    "a stray quotation mark": ("a.csv", QUOTED + b'"b" c,1\n', "row 2 (line 4)", "written twice"),
    "a NUL in a column's name": ("a.csv", b"te\0xt,label\na,1\n", "the header (line 1)", r"'te\x00xt' has a NUL"),
    "a NUL in a key": ("a.jsonl", lines(FINE, {"a\0": "1"}), "row 2 (line 2)", r"'a\x00' has a NUL"),
    "a column twice": ("a.csv", b"text,text\na,1\n", "the header (line 1)", "it names the column 'text' twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_row_is_refused_with_its_file_and_row(case, tmp_path, tokenizer):
    name, content, where, what = REFUSED[case]
    file = write(tmp_path, name, content)
    with pytest.raises(PromptTuningError) as refused:
        trainer_of(tmp_path, tokenizer, file)
    message = str(refused.value)
    assert message.startswith(f"{where} of the data file {str(file)!r} cannot be used: ")
    assert what in message
    assert message.endswith("Correct it or remove it.")


def test_files_damaged_at_random():
    """`make soak` tries 10,000."""
    figures = soak_rows.soak(files=200, seed=0)
    assert sum(figures.values()) == 200 and figures["rows refused"] > 80


UNUSABLE = {
    "a missing text": ({"text": None, "label": "1"}, "{text} is missing; give the row a text"),
    "no such key": ({"label": "1"}, "{text} is missing; give the row a text"),
    "a missing label": ({"text": "a", "label": None}, "the row has no label (column 'label' holds None)"),
    "an empty label": ({"text": "a", "label": ""}, "the row has no label"),
    "another label": ({"text": "a", "label": "3"}, "the label '3' (column 'label') has no words"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_row_that_cannot_be_trained_on_is_refused_wherever_it_was_drawn_to(case, tmp_path, tokenizer):
    row, what = UNUSABLE[case]
    file = write(tmp_path, "rows.jsonl", lines(*[FINE] * 20, row, *[FINE] * 19))
    for values in ({}, {"max_train_samples": 40}, {"validation_split_percentage": 10}):
        with pytest.raises(PromptTuningError) as refused:
            trainer_of(tmp_path, tokenizer, file, **values)
        number, message = str(refused.value).split(" of the training data (row 21 of rows.jsonl): ")
        assert number.startswith("row ") and message.startswith(what)
        assert (number == "row 21") is (values == {})


def test_a_field_of_lists_is_refused(tmp_path, tokenizer):
    listed = lines({"text": ["a", "b"], "label": "1"})
    for name, content in [
        ("a.jsonl", listed),
        ("a.parquet", pa.table({"text": [["a", "b"]], "label": ["1"]})),
    ]:
        with pytest.raises(PromptTuningError, match=r"\(row 1 of a\..*\): \{text\} is a list \(\['a', 'b'\]\), and"):
            trainer_of(tmp_path, tokenizer, write(tmp_path, name, content))
    raw = pa.table({"text": pa.array([b"a"]), "label": ["1"]})
    with pytest.raises(
        PromptTuningError,
        match=r"row 1 of a.parquet\): \{text\} is a bytes .*, and a template takes texts, numbers and dates",
    ):
        trainer_of(tmp_path, tokenizer, write(tmp_path, "a.parquet", raw))


def test_lists_that_differ_within_a_column_are_refused(tmp_path):
    file = write(tmp_path, "a.jsonl", lines({"x": [1]}, {"x": ["a"]}))
    with pytest.raises(PromptTuningError, match=r"rows 1 to 2 of the data file .* do not agree on what a column"):
        read_file(file)
    apart = [{"x": [1]}] * CHUNK + [{"x": ["a"]}]
    with pytest.raises(PromptTuningError, match=r"the rows of the data file .* do not agree on what a column"):
        read_file(write(tmp_path, "a.jsonl", lines(*apart)))


def test_columns_that_come_late_and_numbers_that_turn_decimal(tmp_path):
    """Beyond the rows that are made columns of at once."""
    rows = [{"n": 1}] * CHUNK + [{"n": 2.5, "late": "x"}]
    data = read_file(write(tmp_path, "a.jsonl", lines(*rows)))
    assert data[0] == {"n": 1.0, "late": None}
    assert data[CHUNK] == {"n": 2.5, "late": "x"}


def test_a_stream_without_its_column_is_refused(tmp_path, tokenizer):
    from datasets import IterableDataset

    encoder = PromptTokenizer(TEMPLATE, tokenizer, False)
    stream = IterableDataset.from_generator(lambda: iter([{"txt": "day", "label": "1"}]))
    with pytest.raises(PromptTuningError, match=r"field \{text\} is no column of the training data, which has 'txt'"):
        list(encoder.encode_dataset(stream, "training"))


def test_one_row_cannot_be_split(tmp_path):
    file = write(tmp_path, "a.jsonl", lines(FINE))
    with pytest.raises(PromptTuningError, match="validation_split_percentage is 10 and there is 1 training row"):
        load_splits(DataArguments(train_file=str(file), validation_split_percentage=10), seed=0)


def test_the_rows_of_a_test_file_are_named_too(tmp_path, tokenizer):
    file = write(tmp_path, "t.csv", [["a", "1"], ["b", "3"]])
    data = load_splits(DataArguments(test_file=str(file)), seed=0)["test"]
    trainer = make(tmp_path / "out", tokenizer, None, TEMPLATE, model=tiny_prompt_model("gpt2"))
    with pytest.raises(PromptTuningError, match=r"row 2 of the test data \(row 2 of t.csv\): the label '3'"):
        trainer.predict(data)

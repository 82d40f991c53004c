"""Where the source is cut, where the target starts, and where it ends."""

import logging

import pytest
from datasets import Dataset, IterableDataset
from tokenizers import processors

from hf_prompt_tuning import PromptTemplate, PromptTuningError
from hf_prompt_tuning.data.tokenization import PromptTokenizer, continuation_ids

WORDS = {"1": "complaint", "2": "no complaint"}


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def encoder(tokenizer, seq2seq=False, **values):
    template = {"source": "Message : {message} Label :", "label_column": "label", "label_words": WORDS}
    return PromptTokenizer(PromptTemplate(**{**template, **values}), tokenizer, seq2seq)


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [
        ("gpt2", ["Mess", "age", "Ġ:", "Ġnever", "Ġcame", "ĠLabel", "Ġ:"], ["Ġcomplaint", "</s>"]),
        ("llama", ["<s>", "▁Message", "▁:", "▁never", "▁came", "▁Label", "▁:"], ["▁complaint", "</s>"]),
    ],
)
def test_a_causal_row(tokenizers, kind, source, target):
    tokenizer = tokenizers[kind]
    row = encoder(tokenizer).encode({"message": "never came", "label": 1})
    got = tokens(tokenizer, row["input_ids"])
    assert "".join(got) == "".join(source + target)
    border = row["labels"].count(-100)
    assert got[border:] == target
    assert row["labels"] == [-100] * border + row["input_ids"][border:]
    assert (row["label"], row["length"], row["was_cut"]) == (0, len(got), False)


def test_an_encoder_decoder_row(tokenizers):
    tokenizer = tokenizers["t5"]
    row = encoder(tokenizer, seq2seq=True).encode({"message": "never came", "label": 2})
    assert tokens(tokenizer, row["input_ids"])[-2:] == ["▁:", "</s>"]
    assert tokens(tokenizer, row["labels"]) == ["▁no", "▁complaint", "</s>"]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_whole_row_reads_as_the_text(tokenizers, kind):
    tokenizer = tokenizers[kind]
    row = encoder(tokenizer).encode({"message": "why is my line down", "label": 2})
    text = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
    assert text == "Message : why is my line down Label : no complaint"


@pytest.mark.parametrize(
    ("around", "target"),
    [
        ("$A </s> <unk>", ["Ġcomplaint", "</s>", "<unk>"]),  # mBART's language, which its decoder starts with
        ("<unk> $A </s>", ["<unk>", "Ġcomplaint", "</s>"]),  # mBART-50's
        ("<s> $A", ["<s>", "Ġcomplaint", "</s>"]),
    ],
)
def test_an_encoder_decoders_target_ends_as_its_tokenizer_has_it(around, target, tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 1), ("</s>", 2), ("<unk>", 3)]
    )
    row = encoder(tokenizer, seq2seq=True, label_words={"1": " complaint"}).encode({"message": "a", "label": 1})
    assert "".join(tokens(tokenizer, row["labels"])) == "".join(target)


def test_white_space_at_the_border_belongs_to_the_target(tokenizers):
    tokenizer = tokenizers["gpt2"]
    plain = encoder(tokenizer).encode({"message": "x", "label": 1})
    assert encoder(tokenizer, source="Message : {message} Label : ").encode({"message": "x", "label": 1}) == plain
    newline = encoder(tokenizer, source="Message : {message} Label :\n").encode({"message": "x", "label": 1})
    target = [i for i in newline["labels"] if i != -100]
    assert tokenizer.decode(target) == "\ncomplaint</s>"
    own = PromptTokenizer(PromptTemplate(source="a", target="\n{y}"), tokenizer, False).target_ids("\ncat")
    assert tokenizer.decode(own) == "\ncat</s>"
    none = encoder(tokenizer, separator="").encode({"message": "x", "label": 1})
    assert tokenizer.decode([i for i in none["labels"] if i != -100]) == "complaint</s>"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_continuations_decode_to_their_words(tokenizers, kind):
    tokenizer = tokenizers[kind]
    for text in (" complaint", " no complaint", " : day"):
        assert tokenizer.decode(continuation_ids(tokenizer, text)).strip() == text.strip()


def test_the_longest_field_is_cut_and_nothing_else(tokenizers):
    tokenizer = tokenizers["llama"]
    long, short = "story about a small dog and a big cat " * 20, "the town"
    both = dict(source="{message} : {other} Label :", max_source_length=30)
    coder = encoder(tokenizer, **both)
    row = {"message": long, "other": short, "label": 2}
    ids, was_cut = coder.source_ids(row)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert was_cut and len(ids) <= 30
    assert text.endswith(": the town Label :")
    assert text.startswith("story about a small dog")
    roomy = encoder(tokenizer, **both | {"max_source_length": 300})
    longer = roomy.source_ids(row | {"message": long[: len(text)]})
    assert len(longer[0]) > 30 and not longer[1]  # no shorter than it had to be
    whole = coder.encode(row)
    assert tokens(tokenizer, whole["input_ids"])[-3:] == ["▁no", "▁complaint", "</s>"]
    short_row = {"message": short, "other": short}
    assert coder.source_ids(short_row) == roomy.source_ids(short_row)


def test_a_megabyte_of_text_is_cut_in_no_time(tokenizers):
    ids, was_cut = encoder(tokenizers["gpt2"], max_source_length=40).source_ids({"message": "a b " * 250_000})
    assert was_cut and len(ids) == 40


def test_how_many_rows_were_cut_is_said_once(tokenizers, caplog):
    data = Dataset.from_list([{"message": "day and night " * n, "label": 1} for n in (1, 30, 40)])
    with caplog.at_level(logging.WARNING):
        encoded = encoder(tokenizers["gpt2"], max_source_length=20).encode_dataset(data, "training")
    assert [r.getMessage() for r in caplog.records] == [
        "2 of 3 training rows were cut to max_source_length=20 tokens."
    ]
    assert set(encoded.column_names) == {"input_ids", "labels", "label", "length"}


def test_the_first_row_of_a_stream_that_is_cut_is_told_once(tokenizers, caplog):
    data = Dataset.from_list([{"message": "day and night " * n, "label": 1} for n in (1, 30, 40)])
    coder = encoder(tokenizers["gpt2"], max_source_length=20)
    for _ in range(2):
        for row in coder.encode_dataset(data.to_iterable_dataset(), "training"):
            assert set(row) == {"input_ids", "labels", "label", "length"}
    assert caplog.messages == ["Row 2 is the first of the training stream that is cut to max_source_length=20 tokens."]


def test_streams_are_encoded_as_they_come(tokenizers):
    stream = IterableDataset.from_generator(lambda: iter([{"message": "day", "label": "1"}]))
    rows = list(encoder(tokenizers["gpt2"]).encode_dataset(stream, "training"))
    assert rows[0]["label"] == 0


def test_a_transform_of_the_callers_makes_rows_before_they_are_encoded(tokenizers):
    data = Dataset.from_list([{"message": "DAY", "label": 1}, {"message": "NIGHT", "label": 2}])
    small = data.with_transform(lambda rows: {**rows, "message": [text.lower() for text in rows["message"]]})
    coder = encoder(tokenizers["gpt2"])
    expected = [coder.encode({"message": text, "label": label}) for text, label in (("day", 1), ("night", 2))]
    encoded = coder.encode_dataset(small, "training")
    assert encoded["input_ids"] == [row["input_ids"] for row in expected]
    assert list(encoded)[1]["labels"] == expected[1]["labels"]
    assert small[0]["message"] == "day" and data[0]["message"] == "DAY"


def test_a_row_without_a_label_can_be_predicted_but_not_trained_on(tokenizers):
    data = Dataset.from_list([{"message": "day", "label": 1}, {"message": "night", "label": -1}])
    coder = encoder(tokenizers["gpt2"])
    row = coder.encode_dataset(data, "test", require_target=False)[1]
    assert row["label"] == -1
    assert set(row["labels"]) == {-100}
    with pytest.raises(PromptTuningError, match="row 2 of the training data: the row has no label"):
        coder.encode_dataset(data, "training")


@pytest.mark.parametrize(
    ("values", "row", "message"),
    [
        ({"source": "{message}"}, {"message": " ", "label": 1}, "is empty here"),
        ({"max_source_length": 3}, {"message": "a b c", "label": 1}, "own words take 5 tokens"),
        ({}, {"message": "a", "label": 7}, "the label 7"),
        (
            {"label_column": None, "label_words": None, "target": "{t}"},
            {"message": "a", "t": ""},
            "the target '' tokenizes to nothing",
        ),
        (
            {"label_column": None, "label_words": None, "target": "{t}", "max_target_length": 3},
            {"message": "a", "t": "the old town of night"},
            "max_target_length is 3. Targets are never cut",
        ),
    ],
)
def test_refusals_name_the_row(tokenizers, values, row, message):
    coder = encoder(tokenizers["gpt2"], **values)
    with pytest.raises(PromptTuningError, match=f"row 1 of the training data: .*{message}"):
        coder.encode_dataset(Dataset.from_list([row]), "training")


def test_labels_with_the_same_tokens_are_refused(tokenizers):
    with pytest.raises(PromptTuningError, match="labels '1' and '2' are the same tokens"):
        encoder(tokenizers["t5"], seq2seq=True, label_words={"1": "ß", "2": "ÿ"})


def test_a_tokenizer_without_eos_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(PromptTuningError, match="has no EOS token"):
        encoder(tokenizer)

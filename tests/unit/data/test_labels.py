"""Which label a row has, however its value, its column and its words are written."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, List, Value

from hf_prompt_tuning import PromptTemplate, PromptTuningError
from hf_prompt_tuning.data.encoding import encode_data, with_label_words
from hf_prompt_tuning.data.tokenization import PromptTokenizer

TEXTS = ["never came", "thank you", "third time", "great help"]


def labelled(**values):
    return PromptTemplate(**{"source": "{text}", "label_column": "Label", **values})


def rows(labels, feature=None, column="Label"):
    features = Features({"text": Value("string"), column: feature}) if feature else None
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(labels))]
    return Dataset.from_dict({"text": texts, column: labels}, features=features)


def targets(template, data, tokenizer, require_target=False, train=None):
    """The words that each row is to be answered with, read back from its token ids; None for none."""
    template = with_label_words(template, data if train is None else train, None)
    encoder = PromptTokenizer(template, tokenizer, False)
    encoded = encode_data(data, "test", encoder, None, require_target)
    words = list(template.label_words.values())
    found = []
    for row in encoded:
        assert (row["label"] < 0) == all(token == -100 for token in row["labels"])
        found.append(None if row["label"] < 0 else words[row["label"]])
        if row["label"] >= 0:
            assert encoder.readable(row)["target"].strip() == words[row["label"]].strip()
    return found


@pytest.mark.parametrize(
    "names", [["1", "0"], ["0", "1"], ["1", "2", "3"], ["neg", "pos"], ["2", "0", "1"], ["-1", "1"]]
)
def test_a_classlabels_names_are_its_words_however_often_they_are_resolved(names, tokenizer):
    data = rows(list(range(len(names))), ClassLabel(names=names))
    template = labelled().with_label_words(data)
    assert template.label_words == {str(i): name for i, name in enumerate(names)}
    assert template.with_label_words(data) == template
    assert with_label_words(template, data, None) == template
    assert targets(template, data, tokenizer) == names
    assert targets(labelled(), data, tokenizer, require_target=True) == names


def test_words_given_by_name_stay_when_they_are_resolved_again(tokenizer):
    data = rows([0, 1, 2], ClassLabel(names=["1", "2", "3"]))
    template = labelled(label_words={"1": "bad", "2": "fair", "3": "good"}).with_label_words(data)
    assert template.label_words == {"0": "bad", "1": "fair", "2": "good"}
    assert template.with_label_words(data) == template
    assert targets(template, data, tokenizer) == ["bad", "fair", "good"]


@pytest.mark.parametrize(
    ("names", "words", "expected"),
    [
        (["0", "1"], {0: "bad", 1: "good"}, {"0": "bad", "1": "good"}),
        (["neg", "pos"], {0: "bad", 1: "good"}, {"0": "bad", "1": "good"}),
        (["neg", "pos"], {"pos": "good", "neg": "bad"}, {"1": "good", "0": "bad"}),
        (["neg", "pos"], {"pos": "good", 0: "bad"}, {"1": "good", "0": "bad"}),
        (["1", "2", "3"], {"0": "a", "1": "b", "2": "c"}, {"0": "a", "1": "b", "2": "c"}),
        (["none", "a", "b"], {"a": "good", "b": "bad"}, {"1": "good", "2": "bad"}),
    ],
)
def test_words_of_a_classlabel_may_be_given_by_name_or_number(names, words, expected):
    data = rows([0, 1], ClassLabel(names=names))
    assert labelled(label_words=words).with_label_words(data).label_words == expected


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (["1", "0"], {"0": "bad", "1": "good"}, "is the name of label 1 and the number of the label '1'"),
        (["1", "0"], {0: "bad", 1: "good"}, "label_words has the key '0', which in the ClassLabel column 'Label'"),
        (["1", "2", "3"], {"1": "bad", "2": "good"}, "Leave label_words out, for the names to be the words"),
        (
            ["neg", "pos"],
            {"neg": "bad", "good": "good"},
            "label_words has the key 'good', which is no label of the ClassLabel column 'Label'",
        ),
        (["neg", "pos"], {"neg": "bad", "0": "good"}, "label_words has the label '0' twice; give its words once"),
    ],
)
def test_words_that_fit_no_label_of_a_classlabel_or_two(names, words, message):
    with pytest.raises(PromptTuningError, match=message):
        labelled(label_words=words).with_label_words(rows([0, 1], ClassLabel(names=names)))


@pytest.mark.parametrize(
    "values",
    [
        ["0", "1"], [0, 1], [0.0, 1.0], list(np.array([0, 1])), list(np.array([0, 1], dtype=np.uint8)),
        list(np.array([0, 1], dtype=np.float32)),
    ],
)  # fmt: skip
def test_however_a_label_is_typed(values, tokenizer):
    template = labelled(label_words={0: "bad", 1.0: "good"})
    assert template.label_words == {"0": "bad", "1": "good"}
    assert [template.label_index({"Label": value}) for value in values] == [0, 1]
    listed = [{"text": "never", "Label": value} for value in values]
    encoded = encode_data(listed, "training", PromptTokenizer(template, tokenizer, False), None, True)
    assert encoded["label"] == [0, 1]


@pytest.mark.parametrize(
    "words", [{True: "yes", False: "no"}, {"True": "yes", "False": "no"}, {"true": "yes", "false": "no"}]
)
@pytest.mark.parametrize("column", ["Label", "label"])
def test_booleans(words, column, tokenizer):
    template = labelled(label_words=words, label_column=column)
    assert template.label_index({column: np.bool_(True)}) == 0
    assert targets(template, rows([True, False, None], column=column), tokenizer) == ["yes", "no", None]


@pytest.mark.parametrize("feature", [None, ClassLabel(names=["no", "no complaint"])])
def test_words_that_begin_alike_and_rows_without_a_label(feature, tokenizer):
    template = labelled(label_words={"0": "no", "1": "no complaint"})
    assert targets(template, rows([0, 1, None, -1], feature), tokenizer) == ["no", "no complaint", None, None]
    with pytest.raises(PromptTuningError, match=r"row 3 of the test data: the row has no label \(column 'Label'"):
        targets(template, rows([0, 1, None], feature), tokenizer, require_target=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bad", "good"], r"label_words is \['bad', 'good'\]; give the words of each label value"),
        ("bad", "label_words is 'bad'; give the words of each label value"),
        ({}, r"label_words is {}; give the words of each label value"),
        ({"1": "a", 1: "b"}, "label_words has the label '1' twice"),
        ({"1": None}, "the words of label '1' are None; give a text"),
        ({"1": ["a"]}, r"the words of label '1' are \['a'\]; give a text"),
        ({"1": "a", "2": "a "}, "labels '1' and '2' have the same words"),
    ],
)
def test_words_that_are_none(words, message):
    with pytest.raises(PromptTuningError, match=message):
        labelled(label_words=words)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_column": ["a", "b"]}, r"label_column is \['a', 'b'\], a list; give a text"),
        ({"source": None}, "source is None, a NoneType; give a text"),
    ],
)
def test_fields_that_are_no_texts(values, message):
    with pytest.raises(PromptTuningError, match=message):
        labelled(**values)


def test_a_row_has_one_label(tokenizer):
    with pytest.raises(
        PromptTuningError, match=r"the label \['a'\] \(column 'Label'\) is a list; a row has one label"
    ):
        labelled(label_words={"a": "x"}).label_index({"Label": ["a"]})
    for feature, labels in ((List(Value("string")), [["a"], ["b"]]), (List(ClassLabel(names=["a", "b"])), [[0], [1]])):
        data = rows(labels, feature)
        for template in (labelled(), labelled(label_words={"a": "x", "b": "y"})):
            with pytest.raises(PromptTuningError, match=r"label_column 'Label' holds List.*; a row has one label"):
                template.with_label_words(data)
    with pytest.raises(PromptTuningError, match="no row of the data has a label in 'Label'; label some"):
        labelled().with_label_words(rows([None, None], Value("string")))


def test_splits_whose_classlabels_are_in_another_order_are_read_by_name(tokenizer):
    train = rows([0, 1], ClassLabel(names=["neg", "pos"]))
    template = labelled().with_label_words(train)
    for other, expected in (
        (rows([0, 1], ClassLabel(names=["pos", "neg"])), ["pos", "neg"]),
        (rows([0, 1], ClassLabel(names=["mixed", "neg"])), [None, "neg"]),
        (rows(["pos", "neg"]), ["pos", "neg"]),
        (rows([1, 0]), ["pos", "neg"]),
    ):
        assert targets(template, other, tokenizer) == expected
    with pytest.raises(
        PromptTuningError, match=r"row 1 of the test data: the label 0 \(column 'Label'\) has no words"
    ):
        targets(template, rows([0], ClassLabel(names=["mixed", "neg"])), tokenizer, require_target=True)
    with pytest.raises(
        PromptTuningError, match=r"row 1 of the test data: the label 'mixed' \(column 'Label'\) has no"
    ):
        targets(template, rows(["mixed"]), tokenizer)
    # words by value, and names in the other split
    template = labelled().with_label_words(rows(["neg", "pos"]))
    assert targets(template, rows([1, 0], ClassLabel(names=["neg", "pos"])), tokenizer) == ["pos", "neg"]


@pytest.mark.parametrize(
    ("train", "other"),
    [
        (rows([0, 1], ClassLabel(names=["1", "0"])), rows([0, 1])),
        (rows([0, 1], ClassLabel(names=["1", "0"])), rows(["0", "1"])),
        (rows([0, 1]), rows([0, 1], ClassLabel(names=["1", "0"]))),
    ],
)
def test_a_number_that_may_be_two_labels_is_refused(train, other, tokenizer):
    words = None if isinstance(train.features["Label"], ClassLabel) else {"0": "bad", "1": "good"}
    template = labelled(label_words=words).with_label_words(train)
    with pytest.raises(PromptTuningError, match=r"may be .*: this data names its labels in another way"):
        targets(template, other, tokenizer, train=train)


def test_rows_of_a_name_that_is_no_candidate_are_counted(tokenizer, caplog):
    feature = ClassLabel(names=["Unlabeled", "neg", "pos"])
    template = labelled().with_label_words(rows([1, 2], feature))
    assert targets(template, rows([0, 1, 2], feature), tokenizer) == [None, "neg", "pos"]
    assert "1 of 3 test rows have the label 'Unlabeled', which has no words" in caplog.text
    caplog.clear()
    assert targets(template, rows([0, 0], feature), tokenizer) == [None, None]
    assert caplog.text == ""


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow"])
@pytest.mark.parametrize(
    "feature", [ClassLabel(names=["1", "0", "2"]), Value("float32"), Value("int8"), Value("bool")]
)
def test_formats_of_a_dataset_are_no_matter(feature, kind, tokenizer):
    data = rows([1, 0, 1], feature)
    words = None if isinstance(feature, ClassLabel) else {"0": "bad", "1": "good", "true": "yes", "false": "no"}
    expected = {"bool": ["yes", "no", "yes"]}.get(feature.dtype, ["good", "bad", "good"] if words else ["0", "1", "0"])
    assert targets(labelled(label_words=words), data.with_format(kind), tokenizer) == expected
    stream, template = data.to_iterable_dataset().with_format(kind), labelled(label_words=words).with_label_words(data)
    encoder = PromptTokenizer(template, tokenizer, False)
    found = [row["label"] for row in encode_data(stream, "training", encoder, None, True)]
    assert [list(template.label_words.values())[i] for i in found] == expected


def test_streams(tokenizer):
    feature = ClassLabel(names=["1", "0"])
    data = rows([0, 1], feature)
    template = labelled().with_label_words(data)
    stream = data.to_iterable_dataset()
    encoder = PromptTokenizer(template, tokenizer, False)
    assert [row["label"] for row in encode_data(stream, "training", encoder, None, True)] == [0, 1]
    by_name = labelled(label_words={"no": "bad", "yes": "good"})
    stream = rows([1, 0], ClassLabel(names=["no", "yes"])).to_iterable_dataset()
    template = with_label_words(by_name, stream, None)
    assert template.label_words == {"0": "bad", "1": "good"}
    encoder = PromptTokenizer(template, tokenizer, False)
    assert [row["label"] for row in encode_data(stream, "training", encoder, None, True)] == [1, 0]
    unknown = IterableDataset.from_generator(
        lambda: iter([{"text": "a", "Label": "no"}, {"text": "b", "Label": "yes"}])
    )
    encoder = PromptTokenizer(with_label_words(by_name, unknown, None), tokenizer, False)
    assert [row["label"] for row in encode_data(unknown, "training", encoder, None, True)] == [0, 1]
    with pytest.raises(PromptTuningError, match="neither data nor label_words to learn the labels from"):
        with_label_words(labelled(), stream, None)


def test_a_template_without_words_encodes_nothing(tokenizer):
    with pytest.raises(PromptTuningError, match="the template has no label words; give label_words, or"):
        PromptTokenizer(labelled(), tokenizer, False)


def test_lists_of_rows_have_the_columns_of_all_rows(tokenizer):
    template = labelled(label_words={"a": "good", "b": "bad"})
    encoder = PromptTokenizer(template, tokenizer, False)
    listed = [{"text": "never"}, {"text": "great", "Label": "b"}]
    assert encode_data(listed, "evaluation", encoder, None, False)["label"] == [-1, 1]
    with pytest.raises(PromptTuningError, match="row 2 of the evaluation data is 'great'; give a mapping of column"):
        encode_data([{"text": "never"}, "great"], "evaluation", encoder, None, False)
    with pytest.raises(PromptTuningError, match="the rows of the evaluation data do not agree on what a column holds"):
        encode_data([{"text": "never", "Label": 1}, {"text": "x", "Label": "b"}], "evaluation", encoder, None, False)


def test_a_label_of_minus_100_is_none_unless_it_has_words(tokenizer):
    template = PromptTemplate("{text}", label_column="Label", label_words={"0": "no", "1": "yes"})
    assert targets(template, rows([0, 1, -100]), tokenizer) == ["no", "yes", None]
    worded = PromptTemplate("{text}", label_column="Label", label_words={"0": "no", "-100": "yes"})
    assert targets(worded, rows([0, -100]), tokenizer) == ["no", "yes"]
    texts = PromptTemplate("{text}", label_column="Label").with_label_words(rows(["no", "yes", "-100"]))
    assert texts.label_words == {"no": "no", "yes": "yes"}

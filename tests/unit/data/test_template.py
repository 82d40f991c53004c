"""Columns become words."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_prompt_tuning import PromptTemplate, PromptTuningError

WORDS = {"1": "complaint", "2": "no complaint"}


def labelled(**values):
    return PromptTemplate(**{"source": "{text}", "label_column": "Label", **values})


def test_fields_are_columns_of_that_very_name():
    template = PromptTemplate(source="Tweet text : {Tweet text} {{a:{b.c}}} Label :", target="{out}")
    row = {"Tweet text": "hi", "b.c": 3, "out": "yes"}
    assert template.source_text(row) == "Tweet text : hi {a:3} Label :"
    assert template.target_text(row) == "yes"
    assert template.columns == ["Tweet text", "b.c", "out"]


def test_a_field_reaches_no_attribute():
    for field in ("text.__class__", "text[0]", "text!r", "text:>10"):
        with pytest.raises(PromptTuningError, match="a field is a column's name, nothing else"):
            PromptTemplate(source=f"{{{field}}}", target="x")
    template = PromptTemplate(source="{text.upper}", target="x")
    with pytest.raises(PromptTuningError, match=r"field \{text.upper\} is no column of the training data"):
        template.check_columns(["text"], "training")


def test_a_missing_value_is_an_empty_text():
    assert PromptTemplate(source="a {x} b", target="t").source_text({"x": None}) == "a  b"


@pytest.mark.parametrize("value", [1, "1", 1.0])
def test_a_label_is_found_however_it_is_typed(value):
    template = labelled(label_words=WORDS)
    assert template.label_index({"Label": value}) == 0
    assert template.target_text({"Label": value}) == "complaint"


@pytest.mark.parametrize("value", [None, "", -1, "-1", float("nan")])
def test_rows_without_a_label(value):
    template = labelled(label_words=WORDS)
    assert template.label_index({"Label": value}) is None
    assert template.label_index({}) is None
    assert template.target_text({"Label": value}) is None


def test_minus_one_is_a_label_where_it_has_words():
    assert labelled(label_words={"-1": "bad", "1": "good"}).label_index({"Label": -1}) == 0


def rows(labels, feature=None):
    features = Features({"text": Value("string"), "Label": feature}) if feature else None
    return Dataset.from_dict({"text": ["t"] * len(labels), "Label": labels}, features=features)


def test_classlabel_names_become_words_without_the_unused_ones():
    feature = ClassLabel(names=["Unlabeled", "complaint", "no_complaint"])
    template = labelled().with_label_words(rows([1, 2, 1], feature))
    assert template.label_words == WORDS
    # the test split's rows are all `Unlabeled`
    with pytest.raises(PromptTuningError, match="the label 0"):
        template.label_index({"Label": 0})


def test_words_may_be_given_by_classlabel_names():
    feature = ClassLabel(names=["Unlabeled", "complaint", "no complaint"])
    template = labelled(label_words={"complaint": "bad", "no complaint": "fine"})
    assert template.with_label_words(rows([1, 2], feature)).label_words == {"1": "bad", "2": "fine"}


def test_a_text_columns_values_are_their_own_words():
    assert labelled().with_label_words(rows(["b", "a", "b"])).label_words == {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "{a}"}, "label_column is .*; give one of them"),
        ({"source": "{a}", "target": "x", "label_column": "y"}, "label_column is .*; give one of them"),
        ({"source": "a { b", "target": "x"}, "stray '{'; write"),
        ({"source": "a {} b", "target": "x"}, "stray '{}'"),
        ({"source": "a", "target": "x}"}, "stray '}'"),
        ({"source": "a", "target": "x", "label_words": WORDS}, "without label_column"),
        ({"source": "a", "target": "x", "max_source_length": 0}, "max_source_length is 0; give 1 or more tokens"),
        (
            {"source": "a", "label_column": "y", "label_words": {"1": "x", "2": "x "}},
            "labels '1' and '2' have the same",
        ),
        ({"source": "a", "label_column": "y", "label_words": {"1": " "}}, r"label '1' has no words \(got"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(PromptTuningError, match=message):
        PromptTemplate(**values)


def test_labels_that_cannot_be_known():
    with pytest.raises(PromptTuningError, match=r"holds \['0', '1'\], which say nothing"):
        labelled().with_label_words(rows([0, 1]))
    with pytest.raises(PromptTuningError) as refused:
        labelled().with_label_words(rows([3, 1, 2]))
    assert 'label_words {"1": "…", "2": "…", "3": "…"}' in str(refused.value)
    assert 'label_words {"1": "1", "2": "2", "3": "3"}' in str(refused.value)
    with pytest.raises(PromptTuningError, match="label_column 'Label' is no column of the data, which has 'text'"):
        labelled().with_label_words(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(PromptTuningError, match="neither data nor label_words"):
        labelled().with_label_words(None)
    with pytest.raises(PromptTuningError, match=r"the label 3 \(column 'Label'\) has no words"):
        labelled(label_words=WORDS).label_index({"Label": 3})


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        (True, "TRUE", "Write 'True' and 'TRUE' in one way: capital letters count, and YAML reads true without"),
        ("false", "FALSE", "Write 'false' and 'FALSE' in one way: capital letters count, and YAML reads"),
        ("Spam", "spam", "Write 'Spam' and 'spam' in one way: capital letters count[.]$"),
        ("spam", "ham", "Add it there, or correct the row[.]$"),
    ],
)
def test_a_label_in_other_letters_than_its_words_key(key, value, advice):
    template = PromptTemplate("{text}", label_column="Label", label_words={key: "yes", "other": "no"})
    with pytest.raises(PromptTuningError, match=rf"the label '{value}' .* has no words; .*\. {advice}"):
        template.label_index({"Label": value})

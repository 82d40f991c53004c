"""Labels of classification heads: which classes a column has, and what a head learns of a row."""

import json
import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_prompt_tuning import ClassTemplate, PromptTuningError, TagTemplate
from hf_prompt_tuning.data.backbone_classes import for_backbone
from hf_prompt_tuning.data.head_tokenization import head_tokenizer
from hf_prompt_tuning.prompts.info import INFO_FILE, PromptInfo
from tests.shared.classifiers import tiny_classifier, tokenizer_with_cls

TEXT = ClassTemplate("{text}", "label")
WORDS = TagTemplate("words", "tags")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def data_of(labels, feature=None):
    features = feature and Features({"text": Value("string"), "label": feature})
    return Dataset.from_dict({"text": ["a"] * len(labels), "label": labels}, features=features)


def refused(message):
    return pytest.raises(PromptTuningError, match=message)


NAMED = ClassLabel(names=["neg", "pos", "unused"])


@pytest.mark.parametrize(
    ("labels", "feature", "kind", "classes", "learned"),
    [
        (["b", "a", None, ""], None, SINGLE, ["a", "b"], [1, 0, None, None]),
        ([10, 9, -1], None, SINGLE, ["9", "10"], [1, 0, None]),
        ([True, False], None, SINGLE, ["False", "True"], [1, 0]),
        ([1, 0, -1], NAMED, SINGLE, ["neg", "pos"], [1, 0, None]),
        ([0.5, -100.0, None, 3.0], None, REGRESSION, None, [0.5, -100.0, None, 3.0]),
        ([["b"], ["a", "c"], [], None], None, MULTI, ["a", "b", "c"], [[0, 1, 0], [1, 0, 1], [0, 0, 0], None]),
        ([[1], [0, 1]], List(NAMED), MULTI, ["neg", "pos", "unused"], [[0, 1, 0], [1, 1, 0]]),
    ],
)
def test_the_type_of_a_column_tells_classes_and_problem_type(labels, feature, kind, classes, learned):
    data = data_of(labels, feature)
    template = TEXT.with_label_words(data)
    assert (template.problem_type, template.labels) == (kind, classes)
    assert template.with_label_words(data_of(["x"])) == template
    encoded = head_tokenizer(template, tokenizer_with_cls()).encode_dataset(data, "given", require_target=False)
    missing = {SINGLE: -100, REGRESSION: math.nan, MULTI: [math.nan] * len(classes or ())}[kind]
    expected = [missing if value is None else value for value in learned]
    np.testing.assert_array_equal(encoded["labels"][:], expected)  # NaN equals NaN
    with refused("row 1 of the training data: the row has no label .column 'label' holds None"):
        head_tokenizer(template, tokenizer_with_cls()).encode_dataset(
            data_of([None, *labels[:1]], feature), "training"
        )


def test_numbers_are_regression_only_if_they_have_a_fraction_or_it_is_said():
    whole = ClassTemplate("{text}", "label", problem_type=REGRESSION)
    assert whole.with_label_words(data_of([1, 2])).value({"label": 2}) == 2.0
    assert whole.value({"label": "2.5"}) == 2.5  # of a csv file
    with refused("the label 'good' .column 'label'. is no number"):
        whole.value({"label": "good"})
    with refused("is inf, which no head learns"):
        whole.value({"label": math.inf})


def test_labels_that_are_refused():
    template = TEXT.with_label_words(data_of(["a", "b"]))
    with refused("the label 'c' .column 'label'. is none of the classes 'a', 'b'"):
        template.value({"label": "c"})
    with refused("is a list; give one label"):
        template.value({"label": ["a"]})
    several = TEXT.with_label_words(data_of([["0", "1"]]))
    with refused("hold '0' twice; a list names each label of the row once, and is no row of zeros and ones"):
        several.value({"label": [0, 1, 0]})
    with refused("hold a missing one"):
        several.value({"label": ["1", None]})
    with refused("is a str, and the problem type is multi_label"):
        several.value({"label": "1"})
    for labels, message in (
        ([[0.5, 1.0]], "holds lists of numbers with a fraction"),
        ([{"a": 1}], "label_column 'label' holds .*; a row has a text, a number"),
        ([None, None], "no row of the data has a label"),
    ):
        with refused(message):
            TEXT.with_label_words(data_of(labels))
    with refused("label_column 'label' is no column of the data, which has 'text'"):
        TEXT.with_label_words(data_of(["a"]).remove_columns("label"))
    stream = data_of(["a"]).to_iterable_dataset()
    with refused("the training data is a stream, whose classes are not known before; give the template its labels"):
        TEXT.with_label_words(stream)


def test_templates_that_are_refused():
    for values, message in (
        ({"source": "{a"}, "stray"),
        ({"source": ""}, "source is ''; give a text"),
        ({"label_column": None}, "label_column is None"),
        ({"labels": "ab"}, "labels is 'ab'; give a list of different names"),
        ({"labels": ["a", "a"]}, "give a list of different names"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'; give one of regression"),
        ({"labels": ["a"], "problem_type": REGRESSION}, "labels are given, and the problem type is regression"),
    ):
        with refused(message):
            ClassTemplate(**{"source": "{text}", "label_column": "label"} | values)
    with refused("problem_type is 'regression', and a word has one tag"):
        TagTemplate("words", "tags", problem_type=REGRESSION)


@pytest.mark.parametrize(
    ("labels", "named", "count", "classes"),
    [
        (["b", "a"], None, 2, ["a", "b"]),
        (["neg", "pos"], ["pos", "neg"], 2, ["pos", "neg"]),
        (["pos"], ["pos", "neg"], 2, ["pos", "neg"]),
        ([1, 0], ["pos", "neg"], 2, ["pos", "neg"]),
        ([2, 0], None, 3, ["0", "1", "2"]),
        ([1, 2], None, 2, ["1", "2"]),
    ],
)
def test_classes_are_in_the_order_of_the_backbones_logits(labels, named, count, classes):
    names = {} if named is None else {"id2label": dict(enumerate(named))}
    config = tiny_classifier("bert", num_labels=count, **names).config
    template = for_backbone(TEXT.with_label_words(data_of(labels)), config)
    assert template.labels == classes
    if named and isinstance(labels[0], int):
        assert [template.value({"label": label}) for label in labels] == labels


RAFT = ClassLabel(names=["Unlabeled", "complaint", "no complaint"])
"""Its first name is in no row, so its numbers are not the indices of the classes in use."""


@pytest.mark.parametrize("order", [["complaint", "no complaint"], ["no complaint", "complaint"]])
@pytest.mark.parametrize("text", [False, True])
def test_numbers_without_names_are_those_of_the_training_datas_class_label(order, text):
    config = tiny_classifier("bert", num_labels=2, id2label=dict(enumerate(order))).config
    template = for_backbone(TEXT.with_label_words(data_of([2, 1], RAFT)), config)
    assert template.labels == order
    rows = data_of(["2", "1", "-1"] if text else [2, 1, -1])
    encoded = head_tokenizer(template, tokenizer_with_cls()).encode_dataset(rows, "test", require_target=False)
    assert encoded["labels"][:] == [order.index("no complaint"), order.index("complaint"), -100]
    for unknown, named in ((0, "'Unlabeled'"), (3, "'3'")):
        with refused(f"row 1 of the test data: the label {named} .* is none of the classes"):
            head_tokenizer(template, tokenizer_with_cls()).encode_dataset(data_of([unknown]), "test")


def test_tags_in_numbers_without_names_are_those_of_the_training_datas_class_label():
    feature = Features({"words": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X"]))})
    train = Dataset.from_dict({"words": [["a", "b"]], "tags": [[0, 1]]}, features=feature)
    config = tiny_classifier("bert", num_labels=2, id2label={0: "B-X", 1: "O"}).config
    template = for_backbone(WORDS.with_label_words(train), config)
    assert template.labels == ["B-X", "O"]
    assert template.tags({"words": ["a", "b"], "tags": [0, 1]}) == [1, 0]


def test_a_prompt_records_the_numbers_of_its_classes_only_if_they_are_no_indices(tmp_path):
    for labels, names in (([1, 0], None), ([2, 1], RAFT.names)):
        data = data_of(labels, RAFT if names else ClassLabel(names=["no", "yes"]))
        config = tiny_classifier("bert", num_labels=2).config
        info = PromptInfo(template=for_backbone(TEXT.with_label_words(data), config))
        info.write(tmp_path)
        values = json.loads((tmp_path / INFO_FILE).read_text(encoding="utf-8"))
        assert values["template"].get("label_names") == names
        assert PromptInfo.from_json(values).template == info.template


def test_classes_that_are_not_the_backbones():
    for labels, changes, message in (
        (["a", "b"], {"num_labels": 3}, "has the 2 classes 'a', 'b', and the backbone's head has 3 labels; load it"),
        (["a"], {"num_labels": 2, "id2label": {0: "b", 1: "c"}}, "the label 'a' .* is none of the backbone's classes"),
        (["a", "b"], {"num_labels": 1}, "is single_label_classification, and the backbone's head has num_labels=1"),
        (
            [0.5],
            {"num_labels": 2},
            "is regression, and the backbone's head has num_labels=2; load it with num_labels=1",
        ),
        (
            [0.5],
            {"num_labels": 3, "problem_type": REGRESSION},
            "is regression, and the backbone's head has num_labels=3",
        ),
        (["a", "b"], {"num_labels": 2, "problem_type": MULTI}, "the backbone's config.problem_type is multi_label"),
    ):
        config = tiny_classifier("bert", **changes).config
        with refused(message):
            for_backbone(TEXT.with_label_words(data_of(labels)), config)


def tags_of(rows, name="given", require_target=True):
    data = Dataset.from_list(rows)
    template = WORDS.with_label_words(data)
    return head_tokenizer(template, tokenizer_with_cls()).encode_dataset(data, name, require_target)


def test_tags_stand_on_the_first_token_of_each_word():
    rows = [{"words": ["thank", "zzz", "you"], "tags": ["O", "B-X", None]}]
    (row,) = tags_of(rows)
    ids = [tokenizer_with_cls()(word, add_special_tokens=False)["input_ids"] for word in ("thank", " zzz", " you")]
    assert len(ids[1]) > 1
    assert row["input_ids"] == [1, *(token for word in ids for token in word)]
    expected = [-100]
    for tag, word in zip((1, 0, -100), ids, strict=True):
        expected += [tag] + [-100] * (len(word) - 1)
    assert row["labels"] == expected and row["length"] == len(expected)


def test_rows_of_words_that_are_refused():
    whole = {"words": ["a"], "tags": ["O"]}
    for row, message in (
        ({"words": ["a", "b"], "tags": ["O"]}, "row 2 of the given data: 'tags' holds 1 tags for 2 words"),
        ({"words": [], "tags": []}, "'words' holds ..; give a list of words"),
        ({"words": ["a", ""], "tags": ["O", "O"]}, "the word '' tokenizes to nothing"),
        ({"words": ["a"], "tags": [None]}, "the row has no label"),
    ):
        with refused(message):
            tags_of([whole, row])
    with refused("label_column 'tags' holds .*; a row has a list with a tag for each word"):
        tags_of([{"words": ["a"], "tags": "O"}])


def test_a_number_is_told_to_people_as_it_was_given():
    template = ClassTemplate("{text}", "label", problem_type=REGRESSION)
    coder = head_tokenizer(template, tokenizer_with_cls())
    assert [coder.label_of(np.float32(value)) for value in (3.38, -2.0, math.nan)] == [3.38, -2.0, None]


@pytest.mark.parametrize("rows", [[[0, 1], [1, 0]], [[True, False], None, [False, True]], [[0, 1, 0], [1, 0, 0]]])
def test_rows_of_zeros_and_ones_are_no_lists_of_labels(rows):
    """With two classes each row would name both."""
    classes = [str(index) for index in range(len(rows[0]))]
    for template in (
        ClassTemplate("{text}", "label", labels=["a", "b", "c"][: len(classes)], problem_type=MULTI),
        ClassTemplate("{text}", "label", labels=classes, problem_type=MULTI),
    ):
        coder = head_tokenizer(template, tokenizer_with_cls())
        with refused("the given data: every list in the column 'label' holds 0 or 1 for each of the . classes"):
            coder.encode_dataset(data_of(rows), "given", require_target=False)


def test_lists_of_numbers_that_are_no_rows_of_zeros_and_ones():
    two, three = (ClassTemplate("{text}", "label", labels=list("abc")[:n], problem_type=MULTI) for n in (2, 3))
    for template, rows, learned in (
        (two, [[0, 1], [1]], [[1, 1], [0, 1]]),
        (two, [[1], [0]], [[0, 1], [1, 0]]),
        (two, [[0, 1], []], [[1, 1], [0, 0]]),
        (three, [[0, 1], [1, 0]], [[1, 1, 0], [1, 1, 0]]),
    ):
        coder = head_tokenizer(template, tokenizer_with_cls())
        assert coder.encode_dataset(data_of(rows), "given")["labels"][:] == learned
    named = head_tokenizer(two, tokenizer_with_cls())
    of_names = data_of([[0, 1], [1, 0]], List(ClassLabel(names=["b", "a"])))
    assert named.encode_dataset(of_names, "given")["labels"][:] == [[1, 1], [1, 1]]


def test_a_label_of_minus_100_is_none():
    """As everywhere in transformers. Of numbers to predict, it is a number."""
    data = data_of([1, 0, -100])
    template = TEXT.with_label_words(data)
    assert template.labels == ["0", "1"]
    coder = head_tokenizer(template, tokenizer_with_cls())
    assert coder.encode_dataset(data, "given", require_target=False)["labels"][:] == [1, 0, -100]
    with refused("row 3 of the training data: the row has no label .column 'label' holds -100"):
        coder.encode_dataset(data, "training")
    rows = [{"words": ["a", "b", "c"], "tags": [0, 1, -100]}]
    assert WORDS.with_label_words(Dataset.from_list(rows)).labels == ["0", "1"]
    (tagged,) = tags_of(rows)["labels"]
    assert [tag for tag in tagged if tag != -100] == [0, 1] and tagged[-1] == -100

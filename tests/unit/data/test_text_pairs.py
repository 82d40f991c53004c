"""Pairs of texts become one row of token ids, exactly as the tokenizer itself joins them; what is refused."""

import logging

import pytest
from datasets import Dataset
from transformers import BertTokenizer

from hf_prompt_tuning import ClassTemplate, PromptTuningError
from hf_prompt_tuning.data.head_tokenization import head_tokenizer
from tests.shared.text_pairs import JOINS, LABELS, PAIR, PAIRS, ids_by_hand, pair_rows, pair_tokenizer

KNOWN = ClassTemplate("{premise}", "label", ["maybe", "no", "yes"], "single_label_classification", pair="{hypothesis}")
LONG = {"premise": "the parcel never came and nobody answers", "hypothesis": "great film", "label": "no"}


def refused(message):
    return pytest.raises(PromptTuningError, match=message)


def with_limit(limit, kind="bert", token_types=2):
    template = ClassTemplate(KNOWN.source, "label", KNOWN.labels, KNOWN.problem_type, limit, KNOWN.pair)
    return head_tokenizer(template, pair_tokenizer(kind), token_types)


@pytest.mark.parametrize("kind", [kind for kind in JOINS if kind != "glued"])
def test_rows_are_those_of_the_tokenizer_and_by_hand(kind):
    encoder = head_tokenizer(KNOWN, pair_tokenizer(kind), 2)
    encoded = encoder.encode_dataset(Dataset.from_list(pair_rows()), "training")
    assert encoded["labels"][:] == [KNOWN.labels.index(label) for label in LABELS]
    for row, (text, pair) in zip(encoded, PAIRS, strict=True):
        ids, types = ids_by_hand(kind, text, pair)
        assert row["input_ids"] == ids and row["length"] == len(ids)
        assert row.get("token_type_ids", []) == types
        theirs = pair_tokenizer(kind)(text, pair)
        assert row["input_ids"] == theirs["input_ids"] and (types or None) == theirs.get("token_type_ids")


def test_a_real_tokenizer_of_bert():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "never", "came", "thank", "you"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    encoder = head_tokenizer(KNOWN, tokenizer, 2)
    row = encoder.encode({"premise": "never came", "hypothesis": "Thank", "label": "no"})
    assert row["input_ids"] == [2, 5, 6, 3, 7, 3] and row["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert encoder.readable(row) == {"source": "[CLS] never came [SEP] thank [SEP]", "target": "no"}
    # A backbone without token types, as DistilBERT, reads the ids alone.
    row = {"premise": "never", "hypothesis": "came", "label": "no"}
    assert {*head_tokenizer(KNOWN, tokenizer, 0).encode(row)} == {"input_ids", "labels", "length", "was_cut"}


def test_the_longer_text_is_cut_first(caplog):
    """At its end, or at its start, as the tokenizer cuts; a row that fits stays."""
    whole = [1, 46, 186, 190, 162, 67, 210, 206, 2, 197, 211, 2]
    for limit, side, ids in (
        (None, "right", whole),
        (12, "right", whole),
        (9, "right", [1, 46, 186, 190, 162, 2, 197, 211, 2]),
        (9, "left", [1, 162, 67, 210, 206, 2, 197, 211, 2]),
        (6, "right", [1, 46, 186, 2, 197, 2]),
        (5, "right", [1, 46, 2, 197, 2]),
    ):
        encoder = with_limit(limit)
        encoder.tokenizer.truncation_side = side
        row = encoder.encode(LONG)
        pair_begins = ids.index(2) + 1
        types = [0] * pair_begins + [1] * (len(ids) - pair_begins)
        assert (row["input_ids"], row["token_type_ids"], row["length"]) == (ids, types, len(ids)), (limit, side)
        assert row["was_cut"] is (len(ids) < len(whole))
        if limit is not None:
            cut = dict(truncation="longest_first", max_length=limit)
            assert encoder.tokenizer(LONG["premise"], LONG["hypothesis"], **cut)["input_ids"] == ids
    turned = with_limit(9).encode({"premise": LONG["hypothesis"], "hypothesis": LONG["premise"], "label": "no"})
    assert turned["input_ids"] == [1, 197, 211, 2, 46, 186, 190, 162, 2]
    with caplog.at_level(logging.WARNING):
        with_limit(9).encode_dataset(Dataset.from_list([LONG, LONG, pair_rows()[3]]), "training")
    assert "2 of 3 training rows were cut to max_source_length=9 tokens" in caplog.text
    # What was cut leaves no limit behind in the tokenizer.
    assert with_limit(9).tokenizer(LONG["premise"], LONG["hypothesis"])["input_ids"] == whole
    with refused("max_source_length is 4, and a pair has 3 special tokens and a token of each text; give 5 or more"):
        with_limit(4)


def test_rows_without_one_of_the_texts_are_refused():
    encoder = head_tokenizer(KNOWN, pair_tokenizer(), 2)
    for changes, message in (
        (
            {"hypothesis": None},
            "row 2 of the training data: {hypothesis} is missing; give the row a text",
        ),
        ({"premise": None}, "{premise} is missing"),
        ({"hypothesis": "  "}, "the pair '{hypothesis}' is empty here; remove the row or fill it"),
        ({"premise": ""}, "the source '{premise}' is empty here"),
    ):
        rows = pair_rows()
        with refused(message):
            encoder.encode_dataset(Dataset.from_list([rows[0], rows[1] | changes]), "training")
    with refused("the template's column 'hypothesis' is no column of the training data, which has 'premise', 'label'"):
        encoder.encode_dataset(Dataset.from_list(pair_rows()).remove_columns("hypothesis"), "training")
    with refused(r"\{hypothesis\} is a list"):
        encoder.encode({"premise": "a", "hypothesis": ["b"], "label": "no"})
    # A field among others may be missing, as in a single text; numbers are texts.
    template = ClassTemplate("{a} {b}", "label", KNOWN.labels, KNOWN.problem_type, pair="{c}")
    encoder = head_tokenizer(template, pair_tokenizer(), 2)
    row = encoder.encode({"a": "great", "b": None, "c": 5, "label": None}, require_target=False)
    assert row["input_ids"] == pair_tokenizer()("great ", "5")["input_ids"] and row["labels"] == -100
    assert template.columns == ["a", "b", "c", "label"]


def test_what_tells_the_texts_apart():
    """A special token between them, or token types that the backbone reads; with neither the pair is refused."""
    for kind, token_types in (("glued", 2), ("glued", 0), ("types alone", 0), ("types alone", 1)):
        message = "writes nothing between the two texts of a pair" if token_types != 1 else "the token type 1, and the"
        with refused(message):
            head_tokenizer(KNOWN, pair_tokenizer(kind), token_types)
    with refused("gives the second text of a pair the token type 1, and the backbone knows types below 1"):
        head_tokenizer(KNOWN, pair_tokenizer("bert"), 1)
    assert head_tokenizer(KNOWN, pair_tokenizer("bert"), 0).columns_beside == ()

    class OneText(type(pair_tokenizer())):
        def __call__(self, text, **options):
            return super().__call__(text, **options)

    alone = OneText(tokenizer_object=pair_tokenizer().backend_tokenizer, pad_token="<pad>")
    with refused("the OneText joins no pair of texts: .* Leave the pair out, and write both texts into the source"):
        head_tokenizer(KNOWN, alone, 2)


def test_templates_that_are_refused():
    for pair, message in (
        ("", "pair is ''; give a text"),
        (3, "pair is 3; give a text"),
        (["{a}"], r"pair is \['{a}'\]; give a text"),
        ("{a} {", "has a stray '{'"),
        ("{a.b[0]}", "a field is a column's name, nothing else"),
    ):
        with refused(message):
            ClassTemplate("{a}", "label", pair=pair)
    assert ClassTemplate("{a}", "label").pair is None


def test_a_row_as_a_caller_holds_it():
    encoder = head_tokenizer(KNOWN, pair_tokenizer(), 2)
    row = {"premise": "great", "hypothesis": "awful film", "more": 1}
    ids, types = ids_by_hand("bert", "great", "awful film")
    assert encoder.content_inputs(row) == {"input_ids": ids, "token_type_ids": types}
    with refused("tells apart by token_type_ids, and ids alone do not have them; call content_inputs"):
        encoder.content_ids(row)
    with refused("got a text, and the template has the columns 'premise', 'hypothesis'; give a dict of them"):
        encoder.content_inputs("great")
    with refused(r"the template's field \{hypothesis\} is not in the row, which has 'premise'"):
        encoder.content_inputs({"premise": "great"})
    without_types = head_tokenizer(KNOWN, pair_tokenizer("roberta"), 1)
    expected = ids_by_hand("roberta", "great", "awful film")[0]
    assert without_types.content_ids(row) == expected == without_types.source_ids(row)[0]
    assert without_types.content_inputs(row) == {"input_ids": expected}
    single = head_tokenizer(ClassTemplate("{m}", "label", KNOWN.labels, KNOWN.problem_type), pair_tokenizer(), 2)
    assert single.content_inputs("great") == {"input_ids": single.content_ids({"m": "great"})}


def test_what_people_are_shown():
    row = pair_rows()[1]
    assert PAIR.shown(row) == {"text": PAIRS[1][0], "text_pair": PAIRS[1][1]}
    encoder = head_tokenizer(KNOWN, pair_tokenizer(), 2)
    assert encoder.readable(encoder.encode(row)) == {
        "source": "<s> great film</s> a small dog and a big cat in the old town of night and day</s>",
        "target": "no",
    }

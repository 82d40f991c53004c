"""Questions and contexts in windows: ids, types, offsets and the columns of answers, by hand; batches; refusals."""

import random

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_prompt_tuning import AnswerTemplate, AnswerTokenizer, DataCollatorForAnswers, PromptTuningError
from hf_prompt_tuning.data.encoded_rows import count_rows
from tests.shared.answer_rows import answer_tokenizer
from tests.shared.tiny_models import make_tokenizer

WORDS = ["[PAD]", "[CLS]", "[SEP]", *"abcdefgh", "what", "who"]
A, B, C, D, E = range(3, 8)
WHAT, WHO = WORDS.index("what"), WORDS.index("who")
CONTEXT = "a b c d e"


def word_tokenizer():
    """A token for each word, between BERT's special tokens."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    core.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=special)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    special = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=names, **special)


def coder(max_length=7, stride=1, with_types=False, tokenizer=None, **values):
    template = AnswerTemplate(max_length=max_length, stride=stride, no_answers=True, **values)
    return AnswerTokenizer(template, tokenizer or word_tokenizer(), with_types)


def row(text=None, start=None, context=CONTEXT, question="what who"):
    answers = {"text": [], "answer_start": []} if text is None else {"text": [text], "answer_start": [start]}
    return {"question": question, "context": context, "answers": answers}


def refused(message):
    return pytest.raises(PromptTuningError, match=message)


def test_a_long_context_is_cut_into_windows_that_overlap():
    windows = coder(with_types=True).encode(row("b c", 2), number=4)
    head = [1, WHAT, WHO, 2]
    assert [window["input_ids"] for window in windows] == [
        [*head, A, B, 2],
        [*head, B, C, 2],
        [*head, C, D, 2],
        [*head, D, E, 2],
    ]
    assert [window["labels"] for window in windows] == [[0, 0], [4, 5], [0, 0], [0, 0]]
    assert all(window["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1] for window in windows)
    assert [window["token_starts"] for window in windows[:2]] == [[0, 0, 0, 0, 0, 2, 0], [0, 0, 0, 0, 2, 4, 0]]
    assert [window["token_ends"] for window in windows[:2]] == [[0, 0, 0, 0, 1, 3, 0], [0, 0, 0, 0, 3, 5, 0]]
    assert [window["window_row"] for window in windows] == [4] * 4
    assert [window["row_context"] for window in windows] == [CONTEXT, None, None, None]
    assert [window["row_answers"] for window in windows] == [["b c"], None, None, None]
    assert not any(window["was_cut"] for window in windows)


def test_a_tokenizer_that_cuts_at_the_left_has_the_same_windows():
    """In another order; the answer is found in the one that has it."""
    tokenizer = word_tokenizer()
    tokenizer.truncation_side = "left"
    windows = coder(tokenizer=tokenizer).encode(row("b c", 2))
    assert sorted(window["input_ids"][4:6] for window in windows) == [[A, B], [B, C], [C, D], [D, E]]
    assert [window["labels"] for window in windows if window["input_ids"][4:6] == [B, C]] == [[4, 5]]


def test_a_line_break_ends_a_question_if_the_tokenizer_puts_nothing_behind_it():
    tokenizer = make_tokenizer("gpt2")
    (window,) = coder(40, tokenizer=tokenizer).encode(row("dog", 6, context="a big dog", question="what"))
    expected = [tokenizer(text)["input_ids"] for text in ("what\n", "a big dog")]
    assert window["input_ids"] == [*expected[0], *expected[1]]
    answer = slice(window["labels"][0], window["labels"][1] + 1)
    assert tokenizer.decode(window["input_ids"][answer]).strip() == "dog"
    assert coder(tokenizer=answer_tokenizer("gpt2")).ends_question == ""
    words = word_tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    assert coder(with_types=True, tokenizer=words).ends_question == ""  # the types tell
    with refused("writes nothing between a question and a context, and has no token for a line break"):
        coder(tokenizer=words)


@pytest.mark.parametrize(
    ("answer", "labels", "was_cut"),
    [
        (("a", 0), [[4, 4], [0, 0]], False),
        (("c", 4), [[6, 6], [4, 4]], False),  # whole in both
        (("e", 8), [[0, 0], [6, 6]], False),
        (("c d e", 4), [[0, 0], [4, 6]], False),
        (("b c d", 2), [[0, 0], [0, 0]], True),  # whole in none
        (("b c ", 2), [[5, 6], [0, 0]], False),  # white space is part of no token
        ((" d", 5), [[0, 0], [5, 5]], False),
    ],
)
def test_the_columns_of_an_answer(answer, labels, was_cut):
    windows = coder(max_length=8).encode(row(*answer))
    assert [window["labels"] for window in windows] == labels
    assert {window["was_cut"] for window in windows} == {was_cut}


def test_a_transform_of_the_callers_makes_rows_before_they_are_cut():
    data = Dataset.from_list([row("b c", 2, question="WHAT WHO")])
    small = data.with_transform(lambda rows: {**rows, "question": [text.lower() for text in rows["question"]]})
    found = coder().encode_dataset(small, "training")
    assert found["input_ids"] == [window["input_ids"] for window in coder().encode(row("b c", 2))]


def test_a_part_of_a_word_is_its_whole_token():
    windows = coder(max_length=20).encode(row("bc", 3, context="a abcd e"))
    (window,) = windows  # a context that fits is one window
    assert window["labels"] == [5, 5]


def test_answers_in_the_forms_that_files_have(caplog):
    structs = row() | {"answers": [{"text": "b", "answer_start": 2}, {"text": "e", "answer_start": 8}]}
    assert [window["labels"] for window in coder(max_length=20).encode(structs)] == [[5, 5]]  # the first one
    assert coder(max_length=20).encode(structs)[0]["row_answers"] == ["b", "e"]
    floats = row() | {"answers": {"text": ["b"], "answer_start": [2.0]}}  # as pandas writes them beside missing ones
    assert AnswerTemplate().answers(floats) == [("b", 2)]
    for nothing in ([], {"text": [], "answer_start": []}):
        (window,) = coder(max_length=20).encode(row() | {"answers": nothing})
        assert window["labels"] == [0, 0] and window["row_answers"] == [] and not window["was_cut"]
    (window,) = coder(max_length=20).encode({"question": "who", "context": "a"}, require_target=False)
    assert window["labels"] == [-100, -100] and window["row_answers"] is None
    with refused("the row has no answers .column 'answers' holds None.; training rows need them"):
        coder(max_length=20).encode({"question": "who", "context": "a", "answers": None})


def test_a_data_set_has_a_row_for_each_window(caplog):
    rows = [row("a", 0), row("b c d", 2), row(None)]
    for data in (Dataset.from_list(rows), Dataset.from_list(rows).with_format("torch")):
        encoded = coder(max_length=8).encode_dataset(data, "training")
        assert encoded["window_row"] == [0, 0, 1, 1, 2, 2] and count_rows(encoded) == 3
        assert encoded["row_context"] == [CONTEXT, None] * 3
        assert "are of rows whose answer is whole in none of its windows of max_length=8" in caplog.text
        assert caplog.text.count("2 of 6 windows of the training data are of rows") == 1
        caplog.clear()
    stream = coder(max_length=8).encode_dataset(Dataset.from_list(rows).to_iterable_dataset(), "training")
    assert [[window["window_row"] for window in stream] for _ in range(2)] == [[0, 0, 1, 1, 2, 2]] * 2
    (told,) = caplog.messages
    assert told.startswith("Row 2 is the first of the training stream whose answer is whole in none of its windows of")
    with refused("row 2 of the test data: 'context' holds ' '; give a text"):
        coder().encode_dataset(Dataset.from_list([rows[0], rows[1] | {"context": " "}]), "test")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["b"], "answer_start": [4]}, "'b' with answer_start 4, where the context has 'c'; it stands at 2"),
        ({"text": ["x"], "answer_start": [4]}, "where the context has 'c'; the context has no such text"),
        ({"text": ["b"], "answer_start": [-1]}, "answer_start -1, where the context has 'a'; it stands at 2"),
        ({"text": ["b"], "answer_start": [2.5]}, "the answer 'b' with answer_start 2.5; give a text"),
        ({"text": [" "], "answer_start": [1]}, "the answer ' ' with answer_start 1; give a text that is not empty"),
        ({"text": ["b"], "answer_start": []}, r"'answers' holds .*; give {'text': \[...\], 'answer_start'"),
        ("b", r"'answers' holds 'b'; give {'text': \[...\]"),
        (["b"], r"'answers' holds \['b'\]; give"),
        ({"text": "b", "answer_start": 2}, "'answers' holds .*; give"),
    ],
)
def test_answers_that_are_refused(answers, message):
    with refused(message):
        coder().encode(row() | {"answers": answers})


def test_a_question_that_fills_a_window_is_refused():
    long = " ".join(["what"] * 4)
    with refused("takes 7 of the 8 tokens of a window, .* and two windows share 1 tokens"):
        coder(max_length=8).encode(row("a", 0, question=long))
    assert len(coder(max_length=8, stride=0).encode(row("a", 0, question=long))) == 5
    assert len(coder(max_length=12).encode(row("a", 0, question=long))) == 1  # all of it fits
    for column in ("question", "context"):
        with refused(f"'{column}' holds None; give a text"):
            coder().encode(row("a", 0) | {column: None})


def test_arguments_that_are_refused():
    for values, message in (
        ({"question_column": ""}, "question_column is ''; give a text"),
        ({"context_column": "question"}, "are in the columns 'question', 'question', 'answers'; give three"),
        ({"max_length": 0}, "max_length is 0; give a whole number, 1 or more"),
        ({"stride": -1}, "stride is -1; give a whole number, 0 or more"),
        ({"stride": 1.5}, "stride is 1.5; give a whole number"),
        ({"longest_answer": None}, "longest_answer is None; give a whole number, 1 or more"),
        ({"no_answers": "yes"}, "no_answers is 'yes'; give True or False"),
    ):
        with refused(message):
            AnswerTemplate(**values)
    assert AnswerTokenizer(AnswerTemplate(), word_tokenizer()).template == AnswerTemplate().behind_prompt(None)
    with refused("template is a str, and AnswerTokenizer takes a AnswerTemplate"):
        AnswerTokenizer("{question}", word_tokenizer())
    slow = word_tokenizer()
    with (
        refused("does not tell which tokens are of which characters; load it with use_fast=True"),
        pytest.MonkeyPatch().context() as patch,
    ):
        patch.setattr(type(slow), "is_fast", False)
        coder(tokenizer=slow)


@pytest.mark.parametrize(
    ("values", "room", "window"),
    [
        ({}, None, (384, 128)),
        ({}, 1000, (384, 128)),
        ({}, 60, (60, 20)),
        ({"max_length": 90}, 100, (90, 30)),
        ({"stride": 5}, 60, (60, 5)),
        ({"max_length": 600}, None, (600, 128)),
    ],
)
def test_a_window_fits_behind_the_prompt(values, room, window):
    template = AnswerTemplate(**values).behind_prompt(room)
    assert (template.max_length, template.stride) == window and template.is_complete
    assert template.behind_prompt(room) == template
    with refused("max_length is 600, and behind the prompt the backbone has positions for 60; lower"):
        AnswerTemplate(max_length=600).behind_prompt(60)


def test_training_rows_tell_whether_there_may_be_no_answer(caplog):
    with_all, with_none = Dataset.from_list([row("a", 0)]), Dataset.from_list([row("a", 0), row()])
    template = AnswerTemplate()
    assert template.with_label_words(with_all).no_answers is False
    assert template.with_label_words(with_none, with_all).no_answers is True
    assert template.with_label_words(with_all, with_none).no_answers is False
    assert template.with_label_words(None, with_none).no_answers is True
    assert template.with_label_words(None) == template
    always = AnswerTemplate(no_answers=False)
    assert always.with_label_words(None, with_none) == always and not caplog.text
    assert always.with_label_words(with_none) == always
    assert "1 of 2 training rows have no answer, and the template's no_answers is False" in caplog.text
    with refused("the training data is a stream, which does not tell .* give the template no_answers"):
        template.with_label_words(with_none.to_iterable_dataset())
    assert always.with_label_words(with_all.to_iterable_dataset()) == always
    with refused("'replies'"):
        AnswerTemplate(answers_column="replies").with_label_words(with_all)


PIECES = ["[UNK]", "[CLS]", "[SEP]", "the", "cat", ".", ",", "日", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
CHARACTERS = "abcdefghijäé日語😀-.,'\u0301\u200b"
SPACES = [" ", "  ", "\n", "\u00a0"]


def piece_tokenizer():
    """BERT's: lower case without accents, pieces of words, and some characters that no token has."""
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    core.post_processor = TemplateProcessing(pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[UNK]")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_tokens_of_white_space_are_as_those_outside_the_context(kind):
    context = "a \n\n  dog\u00a0 "
    (window,) = coder(60, tokenizer=answer_tokenizer(kind)).encode(row("dog", 6, context, "a cat"))
    places = [place for place in zip(window["token_starts"], window["token_ends"], strict=True) if place != (0, 0)]
    assert places and all(context[here:there].strip() for here, there in places)
    assert "".join(context[here:there] for here, there in places).split() == context.split()


@pytest.mark.parametrize("kind", ["word pieces", "gpt2", "llama", "t5"])
def test_the_tokens_of_any_answer_have_its_characters(kind):
    """Contexts and answers are drawn; an answer may begin within a word, with a space, or with what no token has."""
    tokenizer, draw = piece_tokenizer() if kind == "word pieces" else answer_tokenizer(kind), random.Random(0)
    whole = 0
    for _ in range(80):
        words = ["".join(draw.choices(CHARACTERS, k=draw.randint(1, 6))) for _ in range(draw.randint(1, 25))]
        context = "".join(word + draw.choice(SPACES) for word in words)
        start = draw.randrange(len(context))
        text = context[start : start + draw.randint(1, 9)]
        if not text.strip():
            continue
        tokenizer.truncation_side = draw.choice(["left", "right"])
        windows = coder(24, draw.choice([0, 3, 8]), tokenizer=tokenizer).encode(row(text, start, context, "a cat"))
        pairs = [list(zip(window["token_starts"], window["token_ends"], strict=True)) for window in windows]
        of_tokens = {i for window in pairs for here, there in window for i in range(here, there)}
        answer = {i for i in range(start, start + len(text)) if not context[i].isspace()} & of_tokens
        for window, places in zip(windows, pairs, strict=True):
            first, last = window["labels"]
            if (first, last) != (0, 0):
                whole += 1
                assert answer <= set(range(places[first][0], places[last][1]))
                assert answer & set(range(*places[first])) and answer & set(range(*places[last]))
    assert whole > 40


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_has_the_columns_of_its_answers(side):
    tokenizer = word_tokenizer()
    tokenizer.padding_side = side
    encode = coder(max_length=20, with_types=True).encode
    rows = [row("e", 8), row("a", 0, context="a b"), row(context="a b c")]
    windows = [window for each in rows for window in encode(each)]
    windows += encode({"question": "who", "context": "a"}, require_target=False)
    batch = DataCollatorForAnswers(tokenizer)(windows)
    pads = torch.tensor([0, 3, 2, 5]) if side == "left" else torch.zeros(4, dtype=torch.long)
    expected = torch.tensor([[8, 8], [4, 4], [0, 0]]) + pads[:3, None]
    assert batch["labels"].tolist() == [*expected.tolist(), [-100, -100]]
    assert batch["input_ids"].shape == (4, 10) and batch["in_context"].dtype == torch.bool
    for i, window in enumerate(windows):
        real = slice(int(pads[i]), int(pads[i]) + window["length"])
        assert batch["input_ids"][i, real].tolist() == window["input_ids"]
        assert batch["token_type_ids"][i, real].tolist() == window["token_type_ids"]
        in_context = [end > 0 for end in window["token_ends"]]
        assert batch["in_context"][i, real].tolist() == in_context
        assert int(batch["in_context"][i].sum()) == sum(in_context)
        assert int(batch["attention_mask"][i].sum()) == window["length"]

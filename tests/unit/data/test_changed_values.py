"""A column has one type: what that changes in a row is told, and JSON text keeps it."""

import json

import pytest

from hf_prompt_tuning import ChatTemplate, ChatTokenizer, PromptTuningError
from hf_prompt_tuning.data.encoding import from_list
from hf_prompt_tuning.data.files import CHUNK, read_file
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.conversations import TURNS


def called(arguments):
    call = {"type": "function", "function": {"name": "lines", "arguments": arguments}}
    return {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}


def as_text(row):
    call = row["messages"][1]["tool_calls"][0]["function"]
    return {"messages": [TURNS[0], {"from": "function_call", "value": json.dumps(call)}]}


def readers(folder, rows):
    file = folder / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return [(read_file, file), (lambda rows: from_list(rows, "training", tells=True), rows)]


PART = {"type": "text", "text": "Hi"}
TURNED = dict(reversed(PART.items()))
ORDERS = [called({"town": "old", "unit": "c"}), called({"unit": "c", "town": "old"})]
SIZES = [called({"size": 3}), called({"size": 2.5})]


@pytest.mark.parametrize(
    ("rows", "column", "row", "read", "written"),
    [
        (ORDERS, "messages", 2, '"town": "old", "unit": "c"', '"unit": "c", "town": "old"'),
        (SIZES, "messages", 1, '"size": 3.0', '"size": 3}'),
        ([{"n": 4}, {"n": 4.5}], "n", 1, "4.0", "4"),
        ([{"n": 4}] * CHUNK + [{"n": 4.5}], "n", 1, "4.0", "4"),
        ([*ORDERS[:1] * CHUNK, ORDERS[1]], "messages", CHUNK + 1, '"town": "old"', '"unit": "c"'),
    ],
    ids=["orders", "sizes", "numbers", "numbers of two chunks", "orders of two chunks"],
)
def test_a_change_is_told_once_with_its_column_and_row(rows, column, row, read, written, tmp_path, caplog):
    for reader, data in readers(tmp_path, rows):
        caplog.clear()
        assert len(reader(data)) == len(rows)
        (told,) = caplog.messages
        assert told.startswith(f"The column {column!r} of the ") and f"row {row} is the first, with " in told
        before, _, after = told.partition(" in place of ")
        assert read in before and written in after


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": TURNS}, {"messages": [dict(reversed(turn.items())) for turn in TURNS]}],
        [{"messages": [{"role": "user", "content": [PART]}]}, {"messages": [{"role": "user", "content": [TURNED]}]}],
        [{"messages": [{"role": "user", "content": [TURNED]}, {"role": "assistant", "content": "a text"}]}],
        [called({"town": "old"}), called({"unit": "c"}), {"messages": TURNS}],
        [{"n": 4}, {"n": None}, {}],
        [{"n": 4.0}, {"n": 4.5}],
        [{"label": [1, 2]}, {"label": []}],
    ],
    ids=["names of messages", "names of parts", "parts and a text", "other names", "missing", "fractions", "lists"],
)
def test_what_stays_as_it_is_is_not_told(rows, tmp_path, caplog):
    for reader, data in readers(tmp_path, rows):
        reader(data)
    assert not caplog.messages


def test_calls_as_json_text_are_trained_on_as_they_are_written(tmp_path, caplog):
    coder, tokenizer = ChatTokenizer(ChatTemplate(), chat_tokenizer("tools"), False), chat_tokenizer("tools")
    rows = [*ORDERS, *SIZES, called({"size": "big"}), called({"size": [{"of": 1}]})]
    for reader, data in readers(tmp_path, [as_text(row) for row in rows]):
        for row, written in zip(reader(data), rows, strict=True):
            expected = tokenizer.apply_chat_template(written["messages"])["input_ids"]
            assert coder.encode(row)["input_ids"] == expected
    assert not caplog.messages


def test_arguments_of_two_types_are_refused_with_what_can_be_done(tmp_path):
    for reader, data in readers(tmp_path, [called({"size": 3}), called({"size": "big"})]):
        with pytest.raises(PromptTuningError, match=r"do not agree .* or as JSON text: .* 'function_call'"):
            reader(data)

"""What a chat template leaves out of a row is told, once for a data set; what it reformats or drops rightly is not."""

import logging

import pytest
from datasets import Dataset

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    ChatTokenizer,
    PromptTemplate,
    PromptTokenizer,
    PromptTuningError,
)
from tests.shared.chat_templates import FAMILIES, MARKED, chat_tokenizer
from tests.shared.chat_templates import TOOLS as WITH_CALLS
from tests.shared.conversations import SYSTEM, TURNS

CALL = {"type": "function", "function": {"name": "lines", "arguments": {"town": "old"}}}
TOOLS = [{"type": "function", "function": {"name": "lines", "description": "Lines that are down"}}]
RESULT = {"role": "tool", "content": "7"}
SEVEN = {"role": "assistant", "content": "it is 7"}
CALLED = [TURNS[0], {"role": "assistant", "tool_calls": [CALL]}, RESULT, SEVEN]
DROPS = (  # as Phi 3's: other roles are skipped, and so is a system turn that is not the first
    "{% for m in messages %}{% if m.role in ['user', 'assistant'] or (m.role == 'system' and loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ESCAPES = DROPS.replace("in ['user', 'assistant']", "!= 'system'").replace(
    "m.content | trim", "(m.content | tojson if m.role == 'tool' else m.content)"
)
WITH_ANOTHER_TAG = DROPS.replace(
    "m.content | trim", "m.content.replace('<think>', 'First: ').replace('</think>', ' Then: ') | trim"
)
WITHOUT_REASONING = DROPS.replace("m.content | trim", "m.content.split('</think>')[-1] | trim")

MARKS_CONTENT = MARKED["chatml"].replace(
    "message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n'",
    "message['content'] }}{% endgeneration %}{{ '<|im_end|>\n'",
)
MARKS_TEXTS = MARKED["chatml"].replace(
    "{% if message['role'] == 'assistant' %}",
    "{% if message['role'] == 'assistant' and not message['content'].strip() %}"
    "{% elif message['role'] == 'assistant' %}",
)
MARKS_CALLS = WITH_CALLS.replace(
    "{% for call in message.tool_calls or [] %}", "{% for call in message.tool_calls or [] %}{% generation %}"
).replace("</tool_call>' }}{% endfor %}", "</tool_call>' }}{% endgeneration %}{% endfor %}")


def coder(name="chatml", template=None, which="last"):
    return ChatTokenizer(
        ChatTemplate(chat=ChatFormat(chat_template=template, assistant_loss=which)), chat_tokenizer(name), False
    )


def left_out(row, name="chatml", template=None):
    return coder(name, template).encode(row)["unwritten"]


@pytest.mark.parametrize(
    ("row", "name", "template", "what"),
    [
        ({"messages": [TURNS[0], TURNS[1], RESULT, SEVEN]}, "chatml", DROPS, "the text of message 3, the tool's"),
        ({"messages": [SYSTEM, SYSTEM, *TURNS]}, "chatml", DROPS, "the text of message 1, the system's"),
        (
            {"messages": [*TURNS[:2], {"role": "system", "content": "Be rude."}, *TURNS[2:]]},
            "chatml",
            DROPS,
            "the text of message 3, the system's",
        ),
        ({"messages": TURNS, "tools": TOOLS}, "chatml", None, "the tools"),
        (
            {"messages": [TURNS[0], TURNS[1] | {"tool_calls": [CALL]}, RESULT, SEVEN]},
            "chatml",
            None,
            "the tool calls of message 2, the assistant's",
        ),
        (
            {"messages": [TURNS[0], TURNS[1] | {"reasoning_content": "so kind"}]},
            "chatml",
            None,
            "'reasoning_content' of message 2, the assistant's",
        ),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": "<think>so kind</think>great"}]},
            "chatml",
            WITHOUT_REASONING,
            "the text of message 2, the assistant's",
        ),
    ],
)
def test_what_is_left_out_is_named(row, name, template, what):
    assert left_out(row, name, template) == what


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_leaves_out_a_conversation(name):
    first = [SYSTEM] if FAMILIES[name].has_system else []
    spaced = [{**turn, "content": f"\n  {turn['content']} \n"} for turn in TURNS]
    for messages in ([*first, *TURNS], [*first, *spaced], [*first, *TURNS[:2]]):
        assert left_out({"messages": messages}, name) is None
    asked = coder(name).encode({"messages": [*first, *TURNS[:3]]}, require_target=False)
    assert asked["unwritten"] is None and set(asked["labels"]) == {-100}


@pytest.mark.parametrize(
    ("row", "name", "template"),
    [
        ({"messages": CALLED, "tools": TOOLS}, "qwen3", None),
        ({"messages": CALLED, "tools": TOOLS}, "tools", None),
        ({"messages": [TURNS[0], TURNS[1] | {"reasoning_content": "so"}, *TURNS[2:]]}, "qwen3", None),
        ({"messages": [TURNS[0], TURNS[1] | {"reasoning_content": "so kind"}]}, "qwen3", None),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": "<think>\nso\n</think>\n\nok"}, *TURNS[2:]]},
            "chatml",
            WITHOUT_REASONING,
        ),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "<think>\nso</think>\n\n\nok"}]}, "qwen3", None),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": "<think>so</think>ok"}]},
            "chatml",
            WITH_ANOTHER_TAG,
        ),
        ({"messages": [*TURNS[:2], {"role": "tool", "content": 'the "line" é\nis'}, SEVEN]}, "chatml", ESCAPES),
    ],
)
def test_what_a_template_writes_in_its_own_form_is_not_left_out(row, name, template):
    assert left_out(row, name, template) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "llama3",
            "message 2, the assistant's, is calls of tools, which the chat template does not write; give",
        ),
        ("chatml", r"cannot render a conversation of .*: .* \(message 2 has no content\)"),
    ],
)
def test_calls_that_a_template_without_tools_cannot_write_are_refused(name, words):
    with pytest.raises(PromptTuningError, match=words):
        coder(name, which="all").encode({"messages": CALLED})


@pytest.mark.parametrize("name", ["chatml", "gemma", "content alone", "texts alone"])
def test_a_marked_turn_that_holds_nothing_is_refused_as_one_without_markers(name):
    """It would teach to end at once."""
    template = MARKED.get(name, MARKS_CONTENT if name == "content alone" else MARKS_TEXTS)
    family = name if name in MARKED else "chatml"
    empty, silent = TURNS[1] | {"content": " "}, TURNS[1] | {"content": "", "tool_calls": CALLED[1]["tool_calls"]}
    reasons = (empty, "is empty; give it a text"), (silent, "is calls of tools, which the chat template does")
    for turn, words in reasons:
        early, late = [TURNS[0], turn, *TURNS[2:]], [*TURNS[:3], turn]
        refused = (early, 2, "all"), (late, 4, "all"), (late, 4, "last"), (early[:2], 2, "all")
        for messages, number, which in refused:
            with pytest.raises(PromptTuningError, match=f"message {number}, the assistant's, {words}"):
                coder(family, template, which).encode({"messages": messages})
        of_last = coder(family, template, "last").encode({"messages": early})
        said = chat_tokenizer(family).decode([label for label in of_last["labels"] if label != -100])
        assert said.startswith("quick help") and "thank" not in said


def test_marked_calls_of_tools_that_are_written_are_targets():
    encoded = coder("tools", MARKS_CALLS, which="all").encode({"messages": CALLED})
    said = chat_tokenizer("tools").decode([label for label in encoded["labels"] if label != -100])
    assert said == '<tool_call>\n{"name": "lines", "arguments": {"town": "old"}}\n</tool_call>'


def test_messages_are_counted_as_the_row_has_them():
    later = {"messages": [*TURNS, *TURNS[:2], RESULT, SEVEN]}
    for system in (None, "Be kind."):
        chat = ChatFormat(chat_template=DROPS, assistant_loss="last", system_message=system)
        cut = ChatTokenizer(ChatTemplate(chat=chat, max_source_length=60), chat_tokenizer("chatml"), False)
        encoded = cut.encode(later)
        assert encoded["was_cut"] and encoded["unwritten"] == "the text of message 7, the tool's"
    no_system = ChatFormat(chat_template=DROPS.replace("m.role == 'system'", "false"), system_message="Be kind.")
    encoded = ChatTokenizer(ChatTemplate(chat=no_system), chat_tokenizer("chatml"), False).encode({"messages": TURNS})
    assert encoded["unwritten"] == "the text of the message in front of the row's own, the system's"


def test_rows_of_columns_that_are_told_as_chats_are_checked_too(caplog):
    chat = ChatFormat(chat_template=DROPS.replace("m.role == 'system'", "false"), system_message="Be kind.")
    template = PromptTemplate("{message}", target="{answer}", chat=chat)
    coder = PromptTokenizer(template, chat_tokenizer("chatml"), False)
    rows = Dataset.from_list([{"message": "never came", "answer": "no"}] * 3)
    with caplog.at_level(logging.WARNING):
        assert coder.encode_dataset(rows, "training").column_names == ["input_ids", "labels", "length"]
    (message,) = caplog.messages
    assert message.startswith("3 of 3 training rows hold what the chat template does not write")
    assert ": first row 1, the text of the message in front of the row's own, the system's." in message


def test_one_warning_counts_the_rows_of_a_data_set(caplog):
    rows = [{"messages": TURNS}, {"messages": [*TURNS[:2], RESULT, SEVEN]}, {"messages": [SYSTEM, *TURNS[:2]]}]
    rows = Dataset.from_list([*rows, rows[1]])
    with caplog.at_level(logging.WARNING):
        encoded = coder(template=DROPS).encode_dataset(rows, "training")
    assert encoded.column_names == ["input_ids", "labels", "length"]
    assert caplog.messages == [
        "2 of 4 training rows hold what the chat template does not write, so that the model never sees it: first row "
        "2, the text of message 3, the tool's. Give a chat_template that writes it, or remove it from the rows."
    ]
    caplog.clear()
    stream = coder(template=DROPS).encode_dataset(rows.to_iterable_dataset(), "training")
    for _ in range(2):
        assert [set(row) for row in stream] == [{"input_ids", "labels", "length"}] * 4
    assert [text[:57] for text in caplog.messages] == ["the training data hold what the chat template does not wr"]
    caplog.clear()
    coder().encode_dataset(rows, "training")
    assert not caplog.messages

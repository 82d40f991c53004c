"""What data sets write beside their messages: a system column, weights of turns, and other names of roles."""

import json

import pytest
from datasets import Dataset

from hf_prompt_tuning import ChatFormat, ChatTemplate, ChatTokenizer, PromptTuningError
from hf_prompt_tuning.serving.pipelines import answered
from tests.shared.chat_templates import MARKED, chat_tokenizer
from tests.shared.conversations import SYSTEM, TURNS

SHAREGPT = [{"from": "human", "value": "never came"}, {"from": "gpt", "value": "thank you"}]


def coder(template=None, name="chatml"):
    return ChatTokenizer(template or ChatTemplate(), chat_tokenizer(name), False)


def said(tokenizer, encoded):
    """The labelled tokens of a row, as a text."""
    return tokenizer.decode([label for label in encoded["labels"] if label != -100])


def test_a_system_column_is_the_system_message_of_a_sharegpt_row():
    tokenizer = chat_tokenizer("chatml")
    template = ChatTemplate("conversations")
    row = {"conversations": SHAREGPT, "system": "Be kind."}
    expected = tokenizer.apply_chat_template([SYSTEM, *TURNS[:2]])["input_ids"]
    assert coder(template).encode(row)["input_ids"] == expected
    asked = tokenizer.apply_chat_template([SYSTEM, TURNS[0]], add_generation_prompt=True)["input_ids"]
    assert coder(template).source_ids(row)[0] == asked == coder(template).content_ids(row)
    assert template.shown(row) == [SYSTEM, TURNS[0]]
    data = Dataset.from_list([row, row | {"system": None}, row | {"system": " "}])
    plain = tokenizer.apply_chat_template(TURNS[:2])["input_ids"]
    assert coder(template).encode_dataset(data, "training")["input_ids"] == [expected, plain, plain]
    # a system turn of the row, and the format's message, count before it
    turn = {"conversations": [{"from": "system", "value": "Be kind."}, *SHAREGPT], "system": "Be rude."}
    assert coder(template).encode(turn)["input_ids"] == expected
    named = ChatTemplate("conversations", chat=ChatFormat(system_message="Be kind."))
    assert coder(named).encode(row | {"system": "Be rude."})["input_ids"] == expected
    assert coder().encode({"messages": TURNS[:2], "system": "gpt-4"})["input_ids"] == plain


def test_a_turn_with_the_weight_0_is_no_target():
    tokenizer = chat_tokenizer("chatml")
    first, last = ({**TURNS[i], "weight": weight} for i, weight in ((1, 0), (3, 1)))
    encoded = coder().encode({"messages": [TURNS[0], first, TURNS[2], last]})
    assert encoded["input_ids"] == tokenizer.apply_chat_template(TURNS)["input_ids"]
    assert said(tokenizer, encoded) == "quick help<|im_end|>"
    later = [TURNS[0], TURNS[1], TURNS[2], {**TURNS[3], "weight": 0}]
    assert said(tokenizer, coder().encode({"messages": later})) == "thank you<|im_end|>"
    with pytest.raises(PromptTuningError, match=r"message 2 of \{messages\} has the weight 0.5; give 0"):
        coder().encode({"messages": [TURNS[0], {**TURNS[1], "weight": 0.5}]})
    marked = coder(ChatTemplate(chat=ChatFormat(chat_template=MARKED["chatml"])))
    assert said(tokenizer, marked.encode({"messages": [TURNS[0], first, TURNS[2], last]})) == "quick help<|im_end|>"
    with pytest.raises(PromptTuningError, match="message 4, the assistant's, has the weight 0 behind a target"):
        marked.encode({"messages": later})


def test_a_row_whose_turns_all_have_the_weight_0_is_refused_in_training_and_evaluation():
    weightless = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in TURNS]
    rows = Dataset.from_list([{"messages": TURNS}, {"messages": weightless}])
    for needs in (True, False):
        with pytest.raises(PromptTuningError, match="row 2 of the some data: all turns of the assistant have"):
            coder().encode_dataset(rows, "some", require_target=needs)
    with pytest.raises(PromptTuningError, match="all turns of the assistant have the weight 0"):
        coder().content_ids({"messages": weightless})
    # one that ends with a question is answered there, whatever the turns before it weigh
    asked = [*weightless, {"role": "user", "content": "why"}]
    encoded = coder().encode({"messages": asked}, require_target=False)
    assert encoded["input_ids"] == coder().content_ids(asked) == coder().content_ids({"messages": asked})
    assert set(encoded["labels"]) == {-100}
    with pytest.raises(PromptTuningError, match="all turns of the assistant have the weight 0"):
        coder().encode({"messages": asked})
    # of a prompt and its completion, only the completion's turns count
    apart = coder(ChatTemplate("prompt", "completion"))
    encoded = apart.encode({"prompt": weightless, "completion": "great"})
    assert said(chat_tokenizer("chatml"), encoded) == "great<|im_end|>"
    assert apart.encode({"prompt": asked}, require_target=False)["input_ids"] == coder().content_ids(asked)


@pytest.mark.parametrize(
    ("role", "meant"),
    [("User", "user"), ("Assistant", "assistant"), ("bot", "assistant"), ("model", "assistant"), ("bing", None)],
)
def test_other_roles_are_refused(role, meant):
    chat = [TURNS[0], {"role": role, "content": "well"}, TURNS[2], TURNS[3]]
    match = f"message 2 has the role '{role}', which the chat template does not name; give one of system, developer, "
    advice = rf" \('{meant}', if that is meant\)" if meant else ""
    match += f"user, assistant, tool{advice}, or"
    for name in ("chatml", "gemma"):
        with pytest.raises(PromptTuningError, match=match):
            coder(name=name).content_ids(chat)
        for needs in (True, False):
            with pytest.raises(PromptTuningError, match=f"row 2 of the some data: {match}"):
                rows = Dataset.from_list([{"messages": TURNS}, {"messages": chat}])
                coder(name=name).encode_dataset(rows, "some", require_target=needs)


def test_messages_are_counted_as_the_row_has_them():
    """Whatever system message stands in front, and however many turns are left out."""
    chat = [*TURNS[:2], {"role": "bing", "content": "well"}]
    named = ChatTemplate(chat=ChatFormat(system_message="Be kind."))
    for row in ({"messages": chat}, {"messages": chat[:1] + chat[2:] + TURNS}):
        number = [message["role"] for message in row["messages"]].index("bing") + 1
        with pytest.raises(PromptTuningError, match=f"^message {number} has the role 'bing'"):
            coder(named).encode(row)
    own = [{"role": "system", "content": "Be kind."}, *TURNS, TURNS[0], {"role": "assistant", "content": ""}]
    for system, messages in ((None, own), ("Be kind.", own[1:])):
        cut = ChatTemplate(chat=ChatFormat(system_message=system, assistant_loss="last"), max_source_length=45)
        assert coder(cut).source_ids({"messages": messages})[1]
        with pytest.raises(PromptTuningError, match=f"^message {len(messages)}, the assistant's, is empty"):
            coder(cut).encode({"messages": messages})


@pytest.mark.parametrize("test", ["m.role == 'bing'", "'bing' == m.role", 'm["role"] in ["user", "bing"]'])
def test_a_role_that_the_chat_template_names_is_taken(test):
    tokenizer = chat_tokenizer("chatml")
    template = tokenizer.chat_template.replace("{% if add", "{% for m in messages %}{% if " + test, 1)
    template = template.replace(test, test + " %}{% endif %}{% endfor %}{% if add", 1)
    chat = [TURNS[0], {"role": "bing", "content": "well"}, TURNS[1]]
    named = coder(ChatTemplate(chat=ChatFormat(chat_template=template)))
    assert said(tokenizer, named.encode({"messages": chat})) == "thank you<|im_end|>"


def test_sharegpts_calls_and_observations_are_those_of_transformers():
    call = {"name": "lines", "arguments": {"town": "old"}}
    asked = {"from": "human", "value": "never came"}
    told = [{"from": "observation", "value": "down"}, {"from": "chatgpt", "value": "line down"}]
    for value in (call, [call]):
        row = [asked, {"from": "function_call", "value": json.dumps(value)}, *told]
        assert ChatTemplate().conversation({"messages": row}).messages == [
            TURNS[0],
            {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": "down"},
            {"role": "assistant", "content": "line down"},
        ]
    assert coder(name="tools").encode({"messages": row})["unwritten"] is None
    assert answered(row[:3], "day")[-1] == {"from": "gpt", "value": "day"}
    for value in ("lines()", '{"name": "lines"}', "[]", json.dumps([call, 3])):
        row = [asked, {"from": "function_call", "value": value}]
        with pytest.raises(PromptTuningError, match=r"message 2 of \{messages\} is a function_call of .*; give JSON"):
            coder(name="tools").encode({"messages": row})

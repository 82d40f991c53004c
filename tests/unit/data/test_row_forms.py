"""What data sets write beside their messages: a system column, weights of turns, and other names of roles."""

import pytest
from datasets import Dataset

from hf_prompt_tuning import ChatFormat, ChatTemplate, ChatTokenizer, PromptTuningError
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
    with pytest.raises(PromptTuningError, match="no turn of the assistant"):
        coder().encode({"messages": [TURNS[0], first]})
    marked = coder(ChatTemplate(chat=ChatFormat(chat_template=MARKED["chatml"])))
    assert said(tokenizer, marked.encode({"messages": [TURNS[0], first, TURNS[2], last]})) == "quick help<|im_end|>"
    with pytest.raises(PromptTuningError, match="has the weight 0 behind a target"):
        marked.encode({"messages": later})

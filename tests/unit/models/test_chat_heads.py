"""The head of a chat where the template or the tokenizer does not write it: what is said, and which rows may."""

import pytest
import torch
from tokenizers import AddedToken

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
)
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import make

USER = {"role": "user", "content": "why"}
ANSWER = {"role": "assistant", "content": "so"}
LEAVES_OUT_EMPTY = (  # as Phi 3.5's own
    "{% for m in messages %}{% if m.role != 'system' or m.content %}"
    "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def system(text):
    return {"role": "system", "content": text}


def merging(name):
    """A tokenizer with a token of two line breaks, as Qwen's and Llama's have one."""
    tokenizer = chat_tokenizer(name)
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    return tokenizer


def in_system_turn(tokenizer):
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM", prompt_position="system")
    return get_prompt_tuning_model(tiny_model("llama", vocab_size=len(tokenizer)), config, tokenizer).eval()


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("chatml", {"messages": [system("\nBe kind."), USER, ANSWER]}),
        ("qwen3", {"messages": [USER, ANSWER], "tools": [{"type": "function", "function": {"name": "f"}}]}),
    ],
)
def test_a_row_whose_text_merges_with_the_head_is_refused_with_the_token(name, row, tmp_path):
    tokenizer = merging(name)
    model, merged = in_system_turn(tokenizer), tokenizer.convert_tokens_to_ids("\n\n")
    match = rf"row 1 of the training data: .* the token {merged} \('\\n\\n'\) holds the head's end together with what "
    with pytest.raises(PromptTuningError, match=match + "follows it, so.* Remove the line break .* give one"):
        make(tmp_path, tokenizer, [row], template=ChatTemplate(), model=model)
    whole = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), return_dict=True)
    with pytest.raises(PromptTuningError, match=f"row 0 begins .* the token {merged} holds the head's end .*perhaps"):
        model.generate(input_ids=torch.tensor([whole["input_ids"]]), max_new_tokens=2) if name == "chatml" else (
            model(input_ids=torch.tensor([[*model.peft_config["default"].head[:-1], merged, 5]]))
        )


def test_a_system_message_that_merges_with_the_head_is_refused_with_the_token():
    tokenizer = merging("chatml")
    model, merged = in_system_turn(tokenizer), tokenizer.convert_tokens_to_ids("\n\n")
    match = rf"a chat with the system_message '\\nBe kind.': the token {merged} \('\\n\\n'\) holds the head's end"
    with pytest.raises(PromptTuningError, match=match):
        model.row_encoder(tokenizer, ChatTemplate(chat=ChatFormat(system_message="\nBe kind.")))
    coder = model.row_encoder(tokenizer, ChatTemplate(chat=ChatFormat(system_message="Be kind.")))
    head = model.peft_config["default"].head
    assert tuple(coder.content_ids([USER])[: len(head)]) == head


def test_a_row_that_begins_with_another_turn_is_no_merged_one():
    tokenizer = merging("chatml")
    model = in_system_turn(tokenizer)
    ids = tokenizer.apply_chat_template([USER], return_dict=True, return_tensors="pt")["input_ids"]
    with pytest.raises(
        PromptTuningError, match=r"a chat without a system turn, perhaps\. Give it one, with a text if"
    ):
        model(input_ids=ids)


def test_a_template_that_leaves_out_an_empty_system_turn_takes_rows_with_their_own(tmp_path):
    tokenizer = chat_tokenizer("phi")
    tokenizer.chat_template = LEAVES_OUT_EMPTY
    model = in_system_turn(tokenizer)
    head = model.peft_config["default"].head
    coder = model.row_encoder(tokenizer, ChatTemplate())
    rows = [{"messages": [system(text), USER, ANSWER]} for text in ("Be kind.", "Be brief.")]
    for row in rows:
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        assert coder.encode(row)["input_ids"] == ids and tuple(ids[: len(head)]) == head
    asked = tokenizer.apply_chat_template(rows[0]["messages"][:2], add_generation_prompt=True, return_dict=True)
    assert coder.content_ids(rows[0]["messages"][:2]) == asked["input_ids"]
    make(tmp_path, tokenizer, rows, template=ChatTemplate(), model=model)
    match = "the chat has no system text, and the prompt stands in the system turn.*or all chats a system_message"
    for messages in ([USER, ANSWER], [system(""), USER, ANSWER]):
        with pytest.raises(PromptTuningError, match=match):
            coder.encode({"messages": messages})
        with pytest.raises(PromptTuningError, match=match):
            coder.content_ids(messages[:-1])
    with pytest.raises(PromptTuningError, match=r"row 2 of the training data: the chat has no system text"):
        make(tmp_path, tokenizer, [rows[0], {"messages": [USER, ANSWER]}], template=ChatTemplate(), model=model)
    labels = PromptTemplate("{message}", label_words={"a": "yes", "b": "no"}, label_column="label", chat=ChatFormat())
    with pytest.raises(PromptTuningError, match=match):
        model.row_encoder(tokenizer, labels)


@pytest.mark.parametrize(
    ("name", "values", "warned"),
    [("chatml", {}, True), ("chatml", {"sink_token": "<pad>"}, False), ("llama3", {}, False), ("mistral", {}, False)],
)
def test_a_first_token_that_begins_each_turn_is_warned_of(name, values, warned, caplog):
    tokenizer = chat_tokenizer(name)
    config = PromptTuningConfig(
        num_virtual_tokens=2, prompt_tuning_init="RANDOM", prompt_position="after_bos", **values
    )
    model = get_prompt_tuning_model(tiny_model("llama", vocab_size=len(tokenizer)), config, tokenizer)
    assert len(model.peft_config["default"].head) == 1
    match = "'<|im_start|>' is also the mark with which the chat template begins each turn"
    assert [match in message for message in caplog.messages] == [True] * warned

"""Messages whose content is a text or a list of text parts, for templates that read one of them or both."""

import json

import pytest

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    ChatTokenizer,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.data.chat_targets import answer_ids
from hf_prompt_tuning.data.encoding import encode_data, from_list
from hf_prompt_tuning.data.files import CHUNK, read_file
from hf_prompt_tuning.data.heads import chat_head_ids
from tests.shared.chat_templates import CHATML, FAMILIES, chat_tokenizer
from tests.shared.conversations import SYSTEM, TURNS
from tests.shared.tiny_models import tiny_model

PARTS = (  # in the format of SmolVLM's and Idefics', with ChatML's tokens
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>Assistant: ' }}{% endif %}"
)
LLAVA = (  # in the format of LLaVA-NeXT's: a space behind each part, and markers
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BOTH = (  # texts or parts in user's turns, each part on a line; texts alone in the others, as Pixtral's system turn
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}"
    "{% for part in message['content'] %}{{ part['text'] + '\n' }}{% endfor %}"
    "{% else %}{{ message['content'] + '' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def part(text):
    return {"type": "text", "text": text}


def as_parts(messages):
    return [message | {"content": [part(message["content"])]} for message in messages]


def encoder(template, **values):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = template
    return ChatTokenizer(ChatTemplate(chat=ChatFormat(**values)), tokenizer, False)


@pytest.mark.parametrize("template", [PARTS, LLAVA])
@pytest.mark.parametrize("which", ["all", "last"])
def test_a_template_that_reads_parts_alone_gets_parts(template, which):
    """A text becomes one part, as a processor's caller writes it; rows of parts give the same."""
    coder = encoder(template, assistant_loss=which)
    tokenizer, messages = coder.tokenizer, [SYSTEM, *TURNS]
    expected = tokenizer.apply_chat_template(as_parts(messages))["input_ids"]
    found = coder.encode({"messages": messages})
    assert found["input_ids"] == expected == coder.encode({"messages": as_parts(messages)})["input_ids"]
    labelled = tokenizer.decode([label for label in found["labels"] if label != -100])
    assert labelled.split("<|im_end|>")[-2].strip() == "quick help" and ("thank you" in labelled) == (which == "all")
    asked = tokenizer.apply_chat_template(as_parts(messages[:-1]), add_generation_prompt=True)["input_ids"]
    assert coder.source_ids({"messages": messages})[0] == asked == coder.content_ids(messages[:-1])
    begun = coder.content_ids([*TURNS[:1], {"role": "assistant", "content": "thank"}])
    assert tokenizer.decode(begun).endswith("thank")


def test_a_system_message_and_columns_are_parts_too():
    coder = encoder(PARTS, system_message="Be kind.")
    head = "<|im_start|>System: Be kind.<|im_end|>\n<|im_start|>User: "
    assert coder.tokenizer.decode(coder.encode({"messages": TURNS})["input_ids"]).startswith(head)
    assert answer_ids(coder.chats, "yes") == coder.tokenizer.encode("yes<|im_end|>")


def test_parts_stay_parts_where_the_template_reads_both():
    user = {"role": "user", "content": [part("why is"), part("my line down")]}
    messages = [SYSTEM | {"content": [part("Be "), part("kind.")]}, user, TURNS[1]]
    coder = encoder(BOTH)
    text = coder.tokenizer.decode(coder.encode({"messages": messages})["input_ids"])
    assert text.startswith(
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nwhy is\nmy line down\n<|im_end|>"
    )
    joined = encoder(CHATML).encode({"messages": messages})["input_ids"]
    assert "user\nwhy ismy line down<|im_end|>" in coder.tokenizer.decode(joined)
    texts = coder.encode({"messages": [SYSTEM, *TURNS]})["input_ids"]
    assert texts == coder.tokenizer.apply_chat_template([SYSTEM, *TURNS])["input_ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_part_is_its_text(name):
    messages = TURNS[:2]
    coder = ChatTokenizer(ChatTemplate(), chat_tokenizer(name), False)
    assert coder.encode({"messages": as_parts(messages)}) == coder.encode({"messages": messages})


def test_a_prompt_in_the_system_turn_of_such_a_template():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = PARTS
    assert tokenizer.decode(chat_head_ids(tokenizer)) == "<|im_start|>System:"
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM", prompt_position="system")
    coder = get_prompt_tuning_model(tiny_model("llama"), config, tokenizer, ChatTemplate()).row_encoder(tokenizer)
    text = tokenizer.decode(coder.source_ids({"messages": TURNS})[0])
    assert text.startswith("<|im_start|>System: <|im_end|>\n<|im_start|>User: ")


@pytest.mark.parametrize("mixed_at", [1, CHUNK + 1])
def test_a_file_may_mix_texts_and_lists(mixed_at, tmp_path):
    rows = [{"messages": TURNS[:2]}] * mixed_at
    rows += [{"messages": [TURNS[0] | {"content": [part("why "), part("now")]}, TURNS[1]]}, rows[0]]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    coder = encoder(CHATML)
    expected = [coder.encode(rows[0]), coder.encode(rows[mixed_at])]
    for data in (read_file(tmp_path / "rows.jsonl"), from_list(rows, "training")):
        assert len(data) == len(rows)
        assert [coder.encode(data[i]) for i in (0, mixed_at, mixed_at + 1)] == [*expected, expected[0]]
    mixed = encode_data(rows[-3:], "training", coder, None, True)
    assert mixed["input_ids"][1] == expected[1]["input_ids"]


def test_variables_of_the_template_as_json():
    tokenizer = chat_tokenizer("qwen3")
    coder = ChatTokenizer(ChatTemplate(), tokenizer, False)
    row = {"messages": TURNS[:2], "chat_template_kwargs": {"enable_thinking": False}}
    written = row | {"chat_template_kwargs": '{"enable_thinking": false}'}
    assert coder.encode(written) == coder.encode(row) != coder.encode({"messages": TURNS[:2]})
    for blank in (" ", "null", None):
        assert coder.encode(row | {"chat_template_kwargs": blank}) == coder.encode({"messages": TURNS[:2]})
    for wrong, match in (
        (
            "enable_thinking=False",
            r"\{chat_template_kwargs\} is 'enable_thinking=False', not JSON: .* Write \{\"enable",
        ),
        ("[1]", r"chat_template_kwargs is \[1\]; give variables by name"),
        ('{"messages": 1}', "chat_template_kwargs has 'messages', which is set by this package"),
    ):
        with pytest.raises(PromptTuningError, match=match):
            coder.encode(row | {"chat_template_kwargs": wrong})

"""Templates for conversations in `prompt_tuning.json`: written, read again, and refused where they are damaged."""

import json

import pytest

from hf_prompt_tuning import ChatFormat, ChatTemplate, PromptTemplate, PromptTuningError
from hf_prompt_tuning.prompts.info import PromptInfo

CHAT = ChatFormat("{{ messages }}", "Be kind.", {"enable_thinking": False}, "last")


@pytest.mark.parametrize(
    "template",
    [
        ChatTemplate(),
        ChatTemplate("prompt", "completion", CHAT, 9, 7),
        PromptTemplate("{text}", "{answer}", chat=CHAT),
        PromptTemplate("{text}", label_column="label", label_words={"1": "a", "2": "b"}, chat=ChatFormat()),
    ],
)
def test_a_template_is_read_as_it_was_written(template, tmp_path):
    PromptInfo(template=template).write(tmp_path)
    values = json.loads((tmp_path / "prompt_tuning.json").read_text(encoding="utf-8"))
    assert PromptInfo.from_json(values).template == template


def test_a_template_of_plain_text_is_written_as_before(tmp_path):
    PromptInfo(template=PromptTemplate("{text}", "{answer}")).write(tmp_path)
    assert "chat" not in json.loads((tmp_path / "prompt_tuning.json").read_text(encoding="utf-8"))["template"]


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ({"messages_column": 3}, "template.messages_column is 3"),
        ({"messages_column": "m", "source": "x"}, "template has an unknown field 'source'"),
        ({"messages_column": "m", "chat": None}, "template.chat is None"),
        ({"messages_column": "m", "chat": {"template": "x"}}, "template.chat has an unknown field 'template'"),
        ({"messages_column": "m", "chat": {"chat_template": 3}}, "template.chat.chat_template is 3"),
        ({"messages_column": "m", "chat": {"assistant_loss": "first"}}, "assistant_loss is 'first'"),
        ({"messages_column": "m", "chat": {"chat_template_kwargs": {"tools": 1}}}, "chat_template_kwargs has 'tools'"),
        ({"messages_column": "m", "max_source_length": 0}, "max_source_length is 0"),
        ({"source": "{a}", "target": "{b}", "chat": []}, r"template.chat is \[\]"),
    ],
)
def test_damaged_templates_are_refused(template, match):
    with pytest.raises(PromptTuningError, match=match):
        PromptInfo.from_json({"format_version": 1, "template": template})

"""The code of the how-to page on chat models runs as it is written."""

import pytest

from hf_prompt_tuning import ChatTemplate
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.doc_pages import run
from tests.shared.repository import ROOT
from tests.shared.tiny_models import tiny_model

# torch's word on a machine without a GPU, for TrainingArguments' defaults
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def test_chat(tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    backbone = tiny_model("llama", max_position_embeddings=2048)
    tokenizer = chat_tokenizer("chatml")
    names = run("how-to/chat.md", {"backbone": backbone, "tokenizer": tokenizer})
    chats = [row["messages"] for rows in names["data"].values() for row in rows]
    answers = [turn["content"] for chat in chats for turn in chat if turn["role"] == "assistant"]
    assert len(chats) == 60 and all(answer.startswith("Likely: ") and "\nTry: " in answer for answer in answers)
    assert names["trainer"].state.global_step == 24
    template = names["trainer"].model.info.template
    assert isinstance(template, ChatTemplate) and template.chat.chat_template == tokenizer.chat_template
    user, answer = names["messages"]
    assert user["role"] == "user" and answer["role"] == "assistant"
    assert answer["content"] + "\n" in capsys.readouterr().out
    assert (tmp_path / "outputs/python_chats/adapter_model.safetensors").exists()

"""The code of the pages on teaching runs as it is written."""

import pytest
from datasets import Dataset

from tests.shared.chat_templates import chat_tokenizer
from tests.shared.doc_pages import run
from tests.shared.repository import ROOT
from tests.shared.tiny_models import make_tokenizer, tiny_model

# torch's word on a machine without a GPU, for TrainingArguments' defaults
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
BASELINES = {"eval_no_context_kl", "eval_no_context_agreement", "eval_first_tokens_kl", "eval_first_tokens_agreement"}


def test_a_system_prompt(tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    backbone = tiny_model("llama", max_position_embeddings=4096)
    names = run("how-to/teach.md", {"backbone": backbone, "tokenizer": chat_tokenizer("chatml")})
    assert names["trainer"].state.global_step == 30
    metrics = names["metrics"]
    assert set(metrics) >= BASELINES
    assert metrics["eval_kl"] > 0 and 0 <= metrics["eval_agreement"] <= 1
    assert names["answer"][0]["generated_text"][-1]["role"] == "assistant"
    folder = tmp_path / "outputs/sailor"
    assert (folder / "teacher_answers.jsonl").is_file()
    # Nothing that a push sends has the text, not even its first words.
    pushed = [folder / name for name in names["trainer"].pushed_files if (folder / name).is_file()]
    assert [file.name for file in pushed if b"Captain" in file.read_bytes()] == []


def test_examples(tmp_path, monkeypatch, messages, capsys):
    monkeypatch.chdir(tmp_path)
    rows = Dataset.from_list([{"message": row["message"], "label": int(row["label"])} for row in messages * 3])
    backbone = tiny_model("llama", max_position_embeddings=2048)
    names = run(
        "tutorials/examples-in-a-prompt.md", {"backbone": backbone, "tokenizer": make_tokenizer("gpt2"), "rows": rows}
    )
    assert set(names["metrics"]) >= BASELINES and "eval_accuracy" not in names["metrics"]
    assert "complaint" in capsys.readouterr().out


def test_an_ensemble(tmp_path, monkeypatch, messages):
    monkeypatch.chdir(tmp_path)
    words = {"1": "complaint", "2": "no complaint"}
    rows = Dataset.from_list([{"message": row["message"], "label": words[str(row["label"])]} for row in messages])
    given = {"backbone": tiny_model("llama"), "tokenizer": make_tokenizer("gpt2"), "train": rows, "validation": rows}
    names = run("tutorials/an-ensemble-in-one-prompt.md", given)
    assert names["metrics"]["eval_kl"] > 0
    assert 0 <= names["metrics"]["eval_accuracy"] <= 1
    assert (tmp_path / "outputs/one_prompt/adapter_model.safetensors").is_file()

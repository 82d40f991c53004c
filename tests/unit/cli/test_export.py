"""The command `hf-prompt-tuning export`."""

import json
import shutil
from pathlib import Path

import pytest

from hf_prompt_tuning import PromptTuningError, VllmPrompt
from hf_prompt_tuning.cli import export
from tests.shared.exports import entries, made, never_refuse


@pytest.fixture
def folders(tmp_path, tokenizer, monkeypatch):
    """A folder with two prompts and their backbone."""
    never_refuse(monkeypatch)
    model = made("llama", tokenizer)
    model.save_pretrained(tmp_path / "prompts")
    model.get_base_model().save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    return tmp_path


def test_tokens(folders, capsys):
    (folders / "texts.txt").write_text("never came\n\nthank you\n")
    named = [f"first={folders}/prompts", f"second={folders}/prompts/other"]
    options = ["--backbone", str(folders / "backbone"), "--texts", str(folders / "texts.txt")]
    export.main([*named, "--to", "tokens", str(folders / "out"), *options])
    assert list(entries(folders / "out")) == ["first", "second"]
    told = capsys.readouterr().out
    assert told == f"{folders}/out: prompt.json in it says how to write the texts of each prompt.\n"
    export.main([f"{folders}/prompts/other", str(folders / "one"), "--to", "tokens", *options[:2]])
    assert json.loads((folders / "one/prompt.json").read_text()).keys() == {"other"}


def test_vllm(folders):
    backbone = ["--backbone", str(folders / "backbone")]
    export.main([f"{folders}/prompts", "--to", "vllm", f"{folders}/one", *backbone])
    assert len(VllmPrompt.load(folders / "one").prompt) == 3
    export.main([f"{folders}/prompts", f"{folders}/prompts/other", "--to", "vllm", f"{folders}/both", *backbone])
    assert len(VllmPrompt.load(folders / "both/other").prompt) == 5
    assert len(VllmPrompt.load(folders / "both/prompts").prompt) == 3
    for folder in ("both/prompts", "both/other"):  # of several, nothing is written if the last one cannot be
        (folders / folder / "embeddings.safetensors").unlink()
    (folders / "both/prompts/prompt_tuning.json").unlink()
    shutil.rmtree(folders / "both/prompts/tokenizer")
    with pytest.raises(PromptTuningError, match=r"both/other' holds other files than an export"):
        export.main([f"{folders}/prompts", f"{folders}/prompts/other", "--to", "vllm", f"{folders}/both", *backbone])
    assert not list((folders / "both/prompts").iterdir())


def test_gguf(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(export, "export_gguf", lambda *args, **options: calls.append((args, options)) or "out")
    export.main(["a=x", "--to", "gguf", "out", "--backbone", "folder", "--gguf_file", "b.gguf"])
    export.main(["x", "--to", "gguf", "out", "--gguf_file", "folder/b.gguf", "--embedding_type", "F16"])
    options = {"ignore_mismatch": False, "texts": []}
    assert calls == [
        (({"a": "x"}, "out", Path("folder/b.gguf")), options),
        (({"x": "x"}, "out", Path("folder/b.gguf")), options | {"embedding_type": "F16"}),
    ]
    assert capsys.readouterr().out.startswith("out: prompt.json in it")


def test_refusals(folders):
    with pytest.raises(PromptTuningError, match=r"'b' has no name, and others do; give NAME=PROMPT for all"):
        export.main(["x=a", "b", "--to", "tokens", "out"])
    with pytest.raises(PromptTuningError, match="two prompts are named 'x', 'a' and 'b'; give names of their own"):
        export.main(["x=a", "x=b", "--to", "tokens", "out"])
    with pytest.raises(PromptTuningError, match="texts is 'none', which could not be read"):
        export.main(["a", "--to", "tokens", "out", "--texts", "none"])
    with pytest.raises(PromptTuningError, match="texts is given, and vllm measures nothing"):
        export.main(["a", "--to", "vllm", "out", "--texts", "none"])
    with pytest.raises(PromptTuningError, match="embedding_type is given for tokens; it is gguf's"):
        export.main(["a", "--to", "tokens", "out", "--embedding_type", "F16"])
    with pytest.raises(PromptTuningError, match="gguf_file is not given, and gguf writes the backbone's own file"):
        export.main(["a", "--to", "gguf", "out"])
    with pytest.raises(SystemExit):
        export.main(["a", "out"])

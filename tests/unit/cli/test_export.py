"""The command `hf-prompt-tuning export`."""

import json

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
    assert told == f"{folders}/out: a checkpoint of 2 prompts; prompt.json in it says how to write each.\n"
    export.main([f"{folders}/prompts/other", str(folders / "one"), "--to", "tokens", *options[:2]])
    assert json.loads((folders / "one/prompt.json").read_text()).keys() == {"other"}


def test_vllm(folders):
    backbone = ["--backbone", str(folders / "backbone")]
    export.main([f"{folders}/prompts", "--to", "vllm", f"{folders}/one", *backbone])
    assert len(VllmPrompt.load(folders / "one").prompt) == 3
    export.main([f"{folders}/prompts", f"{folders}/prompts/other", "--to", "vllm", f"{folders}/both", *backbone])
    assert len(VllmPrompt.load(folders / "both/other").prompt) == 5
    assert len(VllmPrompt.load(folders / "both/prompts").prompt) == 3


def test_refusals(folders):
    with pytest.raises(PromptTuningError, match=r"'b' has no name, and others do; give NAME=PROMPT for all"):
        export.main(["x=a", "b", "--to", "tokens", "out"])
    with pytest.raises(PromptTuningError, match="texts is 'none', which could not be read"):
        export.main(["a", "--to", "tokens", "out", "--texts", "none"])
    with pytest.raises(PromptTuningError, match="texts is given, and vllm measures nothing"):
        export.main(["a", "--to", "vllm", "out", "--texts", "none"])
    with pytest.raises(SystemExit):
        export.main(["a", "out"])

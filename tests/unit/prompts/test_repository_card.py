"""A repository of several prompts has one card at its root, and a person's own card is left alone."""

import errno
import re
import tempfile

import pytest
import torch
import yaml

from hf_prompt_tuning import PromptPushError, load_prompt
from hf_prompt_tuning.models import saving as saved_prompts
from hf_prompt_tuning.prompts import files as prompt_files
from hf_prompt_tuning.prompts.card import MARKER
from hf_prompt_tuning.prompts.pushing import Destination
from tests.shared.pushes import DRAWN, model_of, several, trainer_of
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import make_tokenizer, tiny_model


def card(hub, revision="main"):
    return hub.files("alice/p", revision)["README.md"].decode()


def code(text):
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def test_several_tasks_get_one_card_and_its_code_loads_each(hub, tmp_path, tokenizer, tasks, monkeypatch):
    trainer = several(tmp_path / "run", tokenizer, tasks)
    trainer.train()
    trainer.push_to_hub()
    text = card(hub)
    assert MARKER in text and text.count("# p\n") == 1
    for name in ("complaints", "reviews", "answers"):
        assert f"| [{name}]({name}/README.md) |" in text
        assert f"load_prompt('alice/p', subfolder='{name}', backbone=backbone, tokenizer=tokenizer)" in text
    assert "`hf-prompt-tuning export`" in hub.files("alice/p")["reviews/README.md"].decode()
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "peft"
    loaded = []
    monkeypatch.setattr(
        "hf_prompt_tuning.load_prompt", lambda *a, **k: loaded.append(load_prompt(*a, **k)) or loaded[-1]
    )
    exec(code(text), {"backbone": tiny_model("llama"), "tokenizer": make_tokenizer()})
    for (model, _, template), name in zip(loaded, ("answers", "complaints", "reviews"), strict=True):
        assert torch.equal(model.prompt, trainer.prompts[name])
        assert template == trainer.tasks[name].template
    # The same in the folder of this machine, for people and for `hf upload`.
    assert (tmp_path / "run" / "README.md").read_text() == text


def test_the_list_knows_the_prompts_of_other_runs(hub, tmp_path, tokenizer, tasks):
    """Their backbones too, which this run does not know."""
    for task in tasks[:2]:
        task.config.base_model_name_or_path = f"alice/{task.name}-backbone"
    several(tmp_path / "a", tokenizer, tasks[:1]).push_to_hub()
    several(tmp_path / "b", tokenizer, tasks[1:2]).push_to_hub()
    model = tiny_prompt_model("llama", base_model_name_or_path="alice/third")
    model.push_to_hub("alice/p", subfolder="more/third")
    model.push_to_hub("alice/p", subfolder="third", revision="try")
    text = card(hub)
    assert "| [complaints](complaints/README.md) | `alice/complaints-backbone` |" in text
    assert "load_prompt('alice/p', subfolder='complaints')\n" in text
    assert "load_prompt('alice/p', subfolder='more/third')\n" in text
    bases = ["alice/complaints-backbone", "alice/reviews-backbone", "alice/third"]
    assert yaml.safe_load(text.split("---")[1])["base_model"] == bases
    assert "subfolder='third'" in card(hub, "try") and "subfolder='third'" not in text


@pytest.mark.parametrize("door", ["end", "each save", "model"])
def test_a_persons_own_card_is_left_alone(door, hub, tmp_path, tokenizer, tasks):
    own = b"---\nlicense: mit\n---\n# By hand"
    hub.put("alice/p", {"README.md": own})
    if door == "model":
        tiny_prompt_model("llama").push_to_hub("alice/p", subfolder="complaints")
    else:
        saves = dict(save_strategy="steps", save_steps=2) if door == "each save" else {}
        trainer = several(tmp_path, tokenizer, tasks[:2], **saves)
        (tmp_path / "README.md").write_bytes(own)
        trainer.train()
        if door == "end":
            trainer.push_to_hub()
        assert " README.md" not in trainer.publisher.later_command(Destination("alice/p"))
        assert (tmp_path / "README.md").read_bytes() == own
    files = hub.files("alice/p")
    assert files["README.md"] == own and "complaints/README.md" in files


def test_a_prompt_at_the_root_has_its_own_card(hub, tmp_path, tokenizer, tasks):
    several(tmp_path, tokenizer, tasks[:2]).push_to_hub()
    assert MARKER in card(hub)
    model_of(tokenizer, **DRAWN).push_to_hub("alice/p")
    alone = card(hub)
    assert MARKER not in alone and "load_prompt('alice/p', backbone=backbone" in alone
    several(tmp_path, tokenizer, tasks[1:2]).push_to_hub()
    assert card(hub) == alone


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("write", ["write_start", "save_pictures", "write_card"])
@pytest.mark.parametrize("what", [full, interrupted])
def test_no_temporary_folder_is_left(write, what, hub, temporary, tokenizer, monkeypatch):
    model = model_of(tokenizer, **DRAWN)
    monkeypatch.setattr(saved_prompts, write, what)
    with pytest.raises((KeyboardInterrupt, PromptPushError)) as ended:
        model.push_to_hub("alice/p")
    assert what is interrupted or "No space left on device. Correct" in str(ended.value)
    assert list(temporary.iterdir()) == []


def test_a_full_disk_during_training(hub, temporary, tmp_path, tokenizer, messages, monkeypatch, caplog):
    """The temporary folder's: checkpoints are elsewhere, training goes on, and nothing is left."""
    trainer = trainer_of(tmp_path / "run", tokenizer, messages, DRAWN, hub_strategy="checkpoint")
    monkeypatch.setattr(prompt_files, "save_file", full)  # of the vectors that a prompt started from
    trainer.train()
    assert "A push during training failed, and training goes on: [Errno 28] No space left on device" in caplog.text
    monkeypatch.undo()
    assert list(temporary.iterdir()) == [] and trainer.state.global_step == 4

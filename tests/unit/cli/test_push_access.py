"""Before training: whether a run may push. At its end: the command that pushes later, which is run here."""

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_prompt_tuning import PromptPushError, PromptTuningError, load_prompt
from hf_prompt_tuning.cli import tasks, train
from hf_prompt_tuning.cli.main import run
from hf_prompt_tuning.training import push_arguments
from tests.shared.hub_client import pulled
from tests.shared.pushes import DRAWN, SPOKEN, ensemble, several, trainer_of
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import tiny_model


class Loaded(Exception):
    """The backbone would be loaded now."""


def command(monkeypatch, capsys, *words, loads=True):
    """The command with these words: its exit code, and its lines of errors and logs."""

    def load(*_):
        raise Loaded

    if not loads:
        monkeypatch.setattr(train, "load_backbone", load)
        monkeypatch.setattr(tasks, "load_backbone", load)
    monkeypatch.setattr(sys, "argv", ["run_prompt_tuning.py", *map(str, words)])
    try:
        run(train.main)
        code = 0
    except SystemExit as ended:
        code = ended.code
    return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]


REFUSED = {
    "bad token": (["--hub_model_id=p", "--hub_token=hf_wrong"], "the Hub answers 401 (.*). Log in with a token"),
    "another's": (["--hub_model_id=bob/p"], r"answers 403 \(You may not create a repository here\).* write to 'bob'"),
    "read only": (["--hub_model_id=p"], "the token of 'alice' may only read"),
    "no name": (["--hub_model_id=a/b/c"], "the repository is to be called 'a/b/c'"),
    "a commit": (["--hub_model_id=p", f"--hub_revision={'0' * 40}"], "is a commit, and a push goes to a branch"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("config", ["one", "tasks"])
def test_what_cannot_be_pushed_is_refused_before_the_backbone_is_loaded(
    case,
    config,
    hub,
    files,
    monkeypatch,
    capsys,
):
    flags, said = REFUSED[case]
    if case == "read only":
        hub.roles["alice"] = "read"
    text = (files / "config.yaml").read_text()
    (files / "tasks.yaml").write_text(f"{text}\ntasks:\n- name: complaints\n")
    name = "config.yaml" if config == "one" else "tasks.yaml"
    code, lines = command(monkeypatch, capsys, files / name, "--push_to_hub", *flags, loads=False)
    assert code == 2 and len(lines) == 1 and re.search(said, lines[0])
    assert not hub.repositories and not (files / "out").exists()


@pytest.mark.parametrize("case", ["own", "organization", "no push", "down", "hangs", "too many"])
def test_what_may_be_pushed_or_later_goes_on(case, hub, files, monkeypatch, capsys):
    hub.organizations["lab"] = {"alice"}
    flags = ["--push_to_hub", f"--hub_model_id={'lab/p' if case == 'organization' else 'p'}"]
    if case == "no push":
        flags = ["--hub_model_id=bob/p"]
    if case == "down":
        hub.down = True
    if case == "too many":
        hub.fail("/api/*", status=429)
    if case == "hangs":
        hub.fail("/api/*", delay=60)
        monkeypatch.setattr(push_arguments, "CHECK_SECONDS", 0.3)
    with pytest.raises(Loaded):
        command(monkeypatch, capsys, files / "config.yaml", *flags, loads=False)


def test_a_prompt_that_is_to_be_private_goes_into_no_public_repository(hub, tmp_path, tokenizer, messages):
    hub.put("alice/p", {})
    said = "the prompt is to be private, and 'alice/p' is public"
    with pytest.raises(PromptTuningError, match=f"push_to_hub is on, and {said}"):
        trainer_of(tmp_path, tokenizer, messages, DRAWN, hub_private_repo=True)
    trainer = trainer_of(tmp_path, tokenizer, messages, DRAWN)
    with pytest.raises(PromptTuningError, match=said):
        trainer.push_to_hub(private=True)
    with pytest.raises(PromptTuningError, match=said):
        trainer.model.push_to_hub("alice/p", private=True)
    assert set(hub.files("alice/p")) == {".gitattributes"}


@pytest.mark.parametrize("private", [None, True, False])
def test_a_push_changes_no_visibility(private, hub, tmp_path, tokenizer, messages):
    model = tiny_prompt_model("llama")
    model.push_to_hub("alice/p", private=True)
    before = len(hub.commits("alice/p"))
    model.push_to_hub("alice/p", private=private, revision="new")
    trainer_of(tmp_path, tokenizer, messages, DRAWN, hub_private_repo=private).push_to_hub()
    assert hub.repositories["alice/p"].private
    assert len(hub.commits("alice/p")) == before + 1
    with pytest.raises(PromptPushError, match=r"answers 40[34]"):
        model.push_to_hub("alice/p", token="hf_bob")


def test_the_hub_comes_back_during_training(hub, tmp_path, tokenizer, messages, caplog):
    """The repository is made by the first push that goes through, as it was asked for."""
    hub.down = True
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(tmp_path, tokenizer, messages, DRAWN, hub_model_id="p", hub_private_repo=True)
    assert "Training goes on, and the run says at its end how to push later: the push to 'p' failed: " in caplog.text
    hub.down = False
    trainer.train()
    trainer.push_to_hub()
    assert hub.repositories["alice/p"].private
    assert b"load_prompt('alice/p'" in hub.files("alice/p")["README.md"]
    assert [title for _, title in hub.commits("alice/p")][-1] == "Training in progress, step 4"


KINDS = {
    "one": lambda folder, tokenizer, messages, tasks, **v: trainer_of(folder, tokenizer, messages, SPOKEN, **v),
    "tasks": lambda folder, tokenizer, messages, tasks, **v: several(folder, tokenizer, tasks[:2], **v),
    "ensemble": lambda folder, tokenizer, messages, tasks, **v: ensemble(folder, messages, **v),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", ["public", "private, new branch"])
def test_the_command_that_pushes_later(
    kind,
    asked,
    hub,
    tmp_path,
    tokenizer,
    messages,
    tasks,
    caplog,
):
    """Run as it is printed, it does what the push would have done: visibility, branch, files, and none left over."""
    where = {} if asked == "public" else {"hub_private_repo": True, "hub_revision": "tries/two"}
    branch = where.get("hub_revision", "main")
    hub.down = True
    folder = tmp_path / "a run's folder"
    trainer = KINDS[kind](folder, tokenizer, messages, tasks, hub_strategy="end", max_steps=2, **where)
    trainer.train()
    (folder / "predictions.jsonl").write_text("{}")
    for name in getattr(trainer, "tasks", {}):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "predictions.jsonl").write_text("{}")
    with caplog.at_level(logging.WARNING):
        trainer.push_to_hub()
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("The prompt could not be pushed")]
    hub.down = False
    stale = {"initial_prompt.safetensors": b"old", "complaints/confusion_matrix.png": b"old"}
    if asked == "public":
        hub.put("alice/p", stale | {"mine.png": b"mine"})
    words = shlex.split(line.split("push it later: ")[1])
    assert words[:2] == ["hf", "upload"]
    environment = hub.environment(tmp_path / "home", token="hf_alice")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hf")), *words[1:]], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert hub.repositories["alice/p"].private == (asked != "public")
    later = hub.files("alice/p", branch)
    card = later["complaints/README.md" if kind == "tasks" else "README.md"]
    assert (b"load_ensemble('alice/p'" if kind == "ensemble" else b"load_prompt('alice/p'") in card
    trainer.args.hub_model_id, trainer.hub_model_id = "alice/q", None
    trainer.push_to_hub()
    at_once = set(hub.files("alice/q", branch)) - ({"README.md"} if kind == "tasks" else set())
    # Another prompt's, at the root or in a folder, is not this run's to take away.
    others = {"one": [1], "tasks": [0], "ensemble": [1]}[kind] if asked == "public" else []
    mine = {"mine.png"} if asked == "public" else set()
    mine |= {list(stale)[i] for i in others}
    assert set(later) == at_once | mine
    if branch != "main":
        assert set(hub.files("alice/p")) == {".gitattributes"}
    sub = {} if kind != "tasks" else {"subfolder": "reviews"}
    loaded = load_prompt(pulled(hub, tmp_path / "pulled", "alice/p", branch), backbone=tiny_model("llama"), **sub)[0]
    expected = trainer.model.prompt if kind == "one" else None
    if kind == "tasks":
        expected = trainer.prompts["reviews"]
    assert expected is None or torch.equal(loaded.prompt, expected)
    assert "hf_" not in line.replace("hf upload", "") and os.environ["HF_TOKEN"] not in line

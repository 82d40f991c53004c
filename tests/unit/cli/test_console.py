"""The command `hf-prompt-tuning` and its two words."""

import configparser
import sys
from importlib import import_module

import pytest

from hf_prompt_tuning.cli import command, inspect, train
from tests.shared.repository import ROOT


@pytest.mark.parametrize(
    ("words", "called", "left"),
    [
        (["train", "config.yaml", "--seed", "1"], "train", ["config.yaml", "--seed", "1"]),
        (["config.yaml"], "train", ["config.yaml"]),
        (["--model_name_or_path", "inspect"], "train", ["--model_name_or_path", "inspect"]),
        (["inspect", "prompt", "--words", "3"], "inspect", ["prompt", "--words", "3"]),
    ],
)
def test_the_first_word_chooses(monkeypatch, words, called, left):
    calls = []
    for module in (train, inspect):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "main", lambda name=name: calls.append((name, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["hf-prompt-tuning", *words])
    command.main()
    assert calls == [(called, left)]


@pytest.mark.parametrize("words", [["-h"], ["--help"]])
def test_help_tells_both(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["hf-prompt-tuning", *words])
    command.main()
    told = capsys.readouterr().out
    assert "hf-prompt-tuning train CONFIG.yaml" in told and "hf-prompt-tuning inspect PROMPT" in told


def test_no_word_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-prompt-tuning"])
    with pytest.raises(SystemExit, match="usage: hf-prompt-tuning train"):
        command.main()


def test_refused_input_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf-prompt-tuning", "train", "none.yaml"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: the config 'none.yaml' cannot be read")


def test_the_package_alone_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "py_modules" not in setup["options"]
    name, _, place = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = place.partition(":")
    assert name == "hf-prompt-tuning" and getattr(import_module(module), function) is command.main

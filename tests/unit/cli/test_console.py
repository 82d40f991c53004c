"""The command `hf-prompt-tuning` and its words."""

import configparser
import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_prompt_tuning.cli import command, export, inspect, teach, train
from hf_prompt_tuning.cli.main import set_up_logging
from tests.shared.repository import ROOT

LOGGING = {
    "get_process_log_level": lambda: logging.WARNING,
    "device": torch.device("cpu"),
    "recipe": None,
    "average_last": 0.0,
    "log_level": "passive",
    "should_log": True,
}
"""The arguments that say what is logged."""


@pytest.mark.parametrize(
    ("words", "called", "left"),
    [
        (["train", "config.yaml", "--seed", "1"], "train", ["config.yaml", "--seed", "1"]),
        (["config.yaml"], "train", ["config.yaml"]),
        (["--model_name_or_path", "inspect"], "train", ["--model_name_or_path", "inspect"]),
        (["teach", "--teacher_text", "Be kind."], "teach", ["--teacher_text", "Be kind."]),
        (["inspect", "prompt", "--words", "3"], "inspect", ["prompt", "--words", "3"]),
        (["export", "prompt", "--to", "vllm", "out"], "export", ["prompt", "--to", "vllm", "out"]),
    ],
)
def test_the_first_word_chooses(monkeypatch, words, called, left):
    calls = []
    for module in (train, teach, inspect, export):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "main", lambda name=name: calls.append((name, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["hf-prompt-tuning", *words])
    command.main()
    assert calls == [(called, left)]


@pytest.mark.parametrize("words", [["-h"], ["--help"]])
def test_help_tells_all(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["hf-prompt-tuning", *words])
    command.main()
    told = capsys.readouterr().out
    for line in (
        "train CONFIG.yaml",
        "teach --teacher_file",
        "inspect PROMPT",
        "export PROMPT [PROMPT ...] --to KIND",
    ):
        assert f"hf-prompt-tuning {line}" in told


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


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OMP_NUM_THREADS": "1"}, "Training uses 1 of 8 CPU cores, because OMP_NUM_THREADS is 1. To use all, set"),
        (
            {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"},
            "is 1 (accelerate launch sets it if you do not)",
        ),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "4"}, "Training uses 1 of 2 CPU cores"),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "8"}, None),
        ({"OMP_NUM_THREADS": "2"}, None),
        ({}, None),
    ],
)
def test_idle_cores_are_a_warning(monkeypatch, caplog, variables, message):
    for name in [*os.environ]:
        if name.startswith("ACCELERATE_") or name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    set_up_logging(SimpleNamespace(**LOGGING))
    assert message in caplog.text if message else not caplog.records


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({}, logging.WARNING),
        ({"recipe": "few_shot"}, logging.INFO),
        ({"average_last": 0.5}, logging.INFO),
        ({"average_last": 0.5, "log_level": "error"}, logging.WARNING),
        ({"average_last": 0.5, "should_log": False}, logging.WARNING),
    ],
)
def test_recipes_and_means_are_told(given, level):
    logger = logging.getLogger("hf_prompt_tuning")
    before = logger.level
    set_up_logging(SimpleNamespace(**LOGGING | given))
    assert logger.level == level
    logger.setLevel(before)


def test_the_script_to_copy_is_what_the_command_runs():
    """The same file twice; `make style` copies the first over the second."""
    assert (ROOT / "run_prompt_tuning.py").read_text() == Path(train.__file__).read_text()


def test_the_package_alone_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "py_modules" not in setup["options"]
    name, _, place = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = place.partition(":")
    assert name == "hf-prompt-tuning" and getattr(import_module(module), function) is command.main

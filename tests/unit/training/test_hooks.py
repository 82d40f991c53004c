"""The private hooks of Trainer that we rely on are in a table, and a hook that is gone is an error at import."""

import ast
import importlib
from pathlib import Path

import pytest
from transformers import Trainer

import hf_prompt_tuning
from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.training import trainer as module
from hf_prompt_tuning.training.hooks import ATTRIBUTES, METHODS, check_hooks

PACKAGE = Path(hf_prompt_tuning.__file__).parent
TRAINER = next(Path(importlib.import_module(Trainer.__module__).__file__).parent.glob("trainer.py"))


def private_names(tree: ast.AST) -> set[str]:
    """Private methods that are defined, and private attributes of a trainer that are used."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.func if isinstance(node.value, ast.Call) else node.value
            if isinstance(owner, ast.Name) and owner.id in ("self", "super", "trainer", "reader"):
                names.add(node.attr)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_the_table_is_complete():
    """What our trainers define or use and Trainer has, too, is meant, and is in the table."""
    files = [
        *(PACKAGE / "compat").glob("*.py"),
        *(PACKAGE / "training").glob("*.py"),
        *(PACKAGE / "several").glob("*.py"),
    ]
    ours = set().union(*(private_names(ast.parse(file.read_text())) for file in files))
    theirs = private_names(ast.parse(TRAINER.read_text()))
    listed = METHODS.keys() | ATTRIBUTES.keys()
    assert ours & theirs - listed == set()
    unused = {name for name in listed if name.startswith("_")} - ours
    assert unused == set()


def test_the_trainer_has_three_levels_and_two_mixins():
    ours = [c for c in hf_prompt_tuning.EnsembleTrainer.__mro__ if c.__module__.startswith("hf_prompt_tuning")]
    levels = [c for c in ours if issubclass(c, Trainer)]
    assert [c.__name__ for c in levels] == ["EnsembleTrainer", "MultiPromptTrainer", "PromptTuningTrainer"]
    mixins = [c for c in ours if c not in levels]
    assert len(mixins) <= 2 and all(c.__bases__ == (object,) for c in mixins)


@pytest.mark.parametrize("name", ["_run_epoch", "create_accelerator_and_postprocess"])
def test_a_renamed_method_is_an_error_at_import(name, monkeypatch):
    monkeypatch.delattr(Trainer, name)
    with pytest.raises(PromptTuningError, match=f"has no {name}, which .* Install the version of transformers"):
        importlib.reload(module)


def test_a_renamed_attribute_is_an_error():
    class Renamed(Trainer):
        pass

    with pytest.raises(PromptTuningError, match="_signature_columns, which keeps only the columns"):
        check_hooks(Renamed)

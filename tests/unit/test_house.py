"""The shape of the package, measured: wings, files, functions, levels of the trainer, and two walks through the files.

That no import goes to a wing above, or in a circle, is for import-linter (`make quality`).
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import grimp
import torch
from transformers import AutoModelForCausalLM, Trainer

import hf_prompt_tuning
from hf_prompt_tuning import EnsembleTrainer, PromptTuningConfig, get_prompt_tuning_model, load_prompt
from tests.shared.repository import ROOT
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import FREE, make

PACKAGE = ROOT / "hf_prompt_tuning"
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Each `from module import name` of a file, the module as an absolute name."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def functions() -> dict[str, int]:
    """The lines of each function, by where it stands."""
    return {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_files_are_few_in_the_root_and_short_everywhere():
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 375} == {}


def test_functions_are_short():
    assert {name: lines for name, lines in functions().items() if lines > 50} == {}
    assert statistics.median(functions().values()) <= 10


def test_wings_stand_on_at_most_10_floors():
    graph = grimp.build_graph("hf_prompt_tuning", cache_dir=None)
    for wing in graph.find_children("hf_prompt_tuning"):
        graph.squash_module(wing)

    @cache
    def floor(module: str) -> int:
        below = graph.find_modules_directly_imported_by(module) - {"hf_prompt_tuning", module}
        return 1 + max(map(floor, below), default=0)

    assert max(map(floor, graph.modules - {"hf_prompt_tuning"})) <= 10


def test_private_names_do_not_cross_wings():
    def wing(module: str) -> str:
        return module.removeprefix("hf_prompt_tuning.").partition(".")[0]

    crossing = [
        f"{file.relative_to(ROOT)} imports {module}.{name}"
        for file in FILES
        for module, name in imports(file)
        if module.startswith("hf_prompt_tuning") and name.startswith("_") and not name.startswith("__")
        if wing(module) != file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    ]
    assert crossing == []


def test_no_test_file_imports_another():
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert len(tests) > 90
    importing = [
        f"{file.relative_to(ROOT)} imports {module}.{name}"
        for file in tests
        for module, name in imports(file)
        if "test_" in f"{module}.{name}" and module.startswith("tests")
    ]
    assert importing == []


def test_the_trainer_has_three_levels_of_our_own_and_two_mixins():
    own = [kind for kind in EnsembleTrainer.__mro__ if kind.__module__.startswith("hf_prompt_tuning")]
    assert len([kind for kind in own if issubclass(kind, Trainer)]) <= 3
    mixins = [kind for kind in own if not issubclass(kind, Trainer)]
    assert len(mixins) <= 2 and all(kind.__bases__ == (object,) for kind in mixins)


@contextmanager
def entered() -> Iterator[list[str]]:
    """The files of the package in which a function is called within the context, in the order of their first calls.

    Left out is what evens out versions of the libraries: it takes and returns what the library does.
    """
    files: dict[str, None] = {}

    def watch(frame, event: str, argument: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(hf_prompt_tuning.__path__[0]) and file.parent.name != "compat":
            files[str(file.relative_to(hf_prompt_tuning.__path__[0]))] = None

    found: list[str] = []
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(before)
        found.extend(files)


def require_walk(files: list[str], most: int) -> None:
    """Assert that a walk enters few files, and that CONTRIBUTING.md tells of each."""
    assert len(files) <= most, "\n".join(files)
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [file for file in files if f"`{file}`" not in told] == []


def test_a_batch_walks_through_at_most_10_files_from_the_collator_to_the_loss(tmp_path, tokenizer, messages):
    trainer = make(tmp_path, tokenizer, messages, max_steps=1)
    trainer.train()  # the layout is chosen and checked
    rows = [trainer.train_dataset[i] for i in range(4)]
    with entered() as files:
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    assert loss.requires_grad
    require_walk(files, 10)


def test_a_prompt_walks_through_at_most_19_files_from_its_folder_to_a_text(tmp_path, tokenizer):
    tiny_model("llama").save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM")
    get_prompt_tuning_model(backbone, config, tokenizer, FREE).save_pretrained(tmp_path / "prompt")
    batch = tokenizer(["never came"], return_tensors="pt")

    def text() -> torch.Tensor:
        model = load_prompt(tmp_path / "prompt", backbone=backbone).model
        return model.generate(**batch, max_new_tokens=4, do_sample=False, pad_token_id=0)

    expected = text()  # the modules are imported, and the backbone's hash is kept
    with entered() as files:
        assert torch.equal(text(), expected)
    require_walk(files, 19)

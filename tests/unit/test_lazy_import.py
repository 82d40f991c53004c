"""`import hf_prompt_tuning` imports next to nothing, and all of its names are there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_prompt_tuning

PACKAGE = Path(hf_prompt_tuning.__file__).parent


def python(code: str) -> str:
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_what_type_checkers_read_is_what_runs():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    read = {name.name: f".{node.module}" for node in guarded.body for name in node.names}
    assert read == hf_prompt_tuning._HOME
    assert sorted(read) == sorted(hf_prompt_tuning.__all__)


def test_every_name_is_that_of_its_module():
    for name in hf_prompt_tuning.__all__:
        value = getattr(hf_prompt_tuning, name)
        module = sys.modules[f"hf_prompt_tuning{hf_prompt_tuning._HOME[name]}"]
        assert value is getattr(module, name)
    assert set(hf_prompt_tuning.__all__) <= set(dir(hf_prompt_tuning))


def test_importing_the_package_imports_no_other():
    heavy = ("torch", "transformers", "peft", "datasets", "numpy")
    assert python(f"import sys, hf_prompt_tuning; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_a_module_that_the_registration_needs_may_be_imported_first():
    first = "import hf_prompt_tuning.serving.pipeline_loading, transformers.pipelines as pipelines"
    assert python(f"{first}; print('prompt-generation' in pipelines.PIPELINE_REGISTRY.supported_tasks)") == "True"


def test_wings_and_names_are_had_as_attributes():
    assert python("import hf_prompt_tuning as h; print(h.errors.PromptLoadError is h.PromptLoadError)") == "True"
    assert python("import hf_prompt_tuning as h; print(h.models.__name__)") == "hf_prompt_tuning.models"
    with pytest.raises(AttributeError, match="module 'hf_prompt_tuning' has no attribute 'load_promt'"):
        hf_prompt_tuning.load_promt  # noqa: B018
    with pytest.raises(ImportError, match="load_promt"):
        from hf_prompt_tuning import load_promt  # noqa: F401


def test_a_star_imports_every_public_name():
    names = python("from hf_prompt_tuning import *; print(*sorted(n for n in globals() if n[0] != '_'))")
    assert names.split() == sorted(hf_prompt_tuning.__all__)


@pytest.mark.parametrize(
    "first",
    ["import hf_prompt_tuning, transformers", "from transformers import pipeline, pipelines; import hf_prompt_tuning"],
)
def test_the_pipelines_are_known_whichever_comes_first(first):
    told = python(
        f"{first}\nimport sys, transformers.pipelines\n"
        "from transformers.pipelines import PIPELINE_REGISTRY, check_task\n"
        "assert not any(m.startswith(('hf_prompt_tuning.models', 'peft')) for m in sys.modules)\n"
        "for task in ('prompt-classification', 'prompt-generation'):\n"
        "    assert task in PIPELINE_REGISTRY.get_supported_tasks()\n"
        "    try: transformers.pipeline(task, model='no/such-prompt', tokenizer='gpt2')\n"
        "    except Exception as error: print(type(error).__module__)\n"
        "import inspect; assert 'def pipeline' in inspect.getsource(transformers.pipelines)"
    )
    assert told.split() == ["hf_prompt_tuning.errors"] * 2


def test_every_module_can_be_the_first_that_is_imported():
    """Importing transformers' pipelines imports some of ours: a module that imports them may meet itself half made."""
    code = """
import os, pkgutil
import transformers, torch, peft, accelerate, datasets  # what takes long
import hf_prompt_tuning

failed = []
for module in pkgutil.walk_packages(hf_prompt_tuning.__path__, "hf_prompt_tuning."):
    if module.name.endswith("__main__"):
        continue
    if not (child := os.fork()):
        try:
            __import__(module.name)
        except BaseException as error:
            print(module.name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    failed += [module.name] * (os.waitpid(child, 0)[1] != 0)
print(failed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout

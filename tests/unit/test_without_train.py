"""Using a prompt needs no library that draws or computes metrics; training says which it misses."""

import subprocess
import sys

import pytest

from hf_prompt_tuning import PromptTemplate, PromptTuningConfig, get_prompt_tuning_model
from tests.shared.tiny_models import make_tokenizer, tiny_model

TEMPLATE = PromptTemplate(source="{message} :", label_column="label", label_words={"0": "good", "1": "bad"})
HIDE = """
import sys
from importlib.machinery import PathFinder
hidden, find = ("matplotlib", "sklearn", "rouge_score", "evaluate", "scipy"), PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *rest: None if name.split(".")[0] in hidden else find(name, *rest))
import torch, transformers
import hf_prompt_tuning
from hf_prompt_tuning import *
model, tokenizer, template = load_prompt(sys.argv[1], backbone=sys.argv[2])
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of a prompt and its backbone."""
    folder = tmp_path_factory.mktemp("without_train")
    tiny_model("llama").save_pretrained(folder / "backbone")
    make_tokenizer().save_pretrained(folder / "backbone")
    backbone = tiny_model("llama")
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM")
    get_prompt_tuning_model(backbone, config, template=TEMPLATE).save_pretrained(folder / "prompt")
    return folder


def without_libraries(folder, code: str) -> str:
    """What `code` prints in a process that has none of the extra's libraries."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code, folder / "prompt", folder / "backbone", folder / "out"],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_prompt_loads_generates_and_saves(saved):
    told = without_libraries(
        saved,
        "ids = model.generate(**tokenizer('one two', return_tensors='pt'), max_new_tokens=3, min_new_tokens=3)\n"
        "pipe = transformers.pipeline('prompt-classification', model=model, tokenizer=tokenizer)\n"
        "label = pipe('one two')['label']\n"
        "model.save_pretrained(sys.argv[3])\n"
        "again = load_prompt(sys.argv[3], backbone=sys.argv[2])[0]\n"
        "same = torch.equal(again.prompt, model.prompt)\n"
        "print(ids.shape[1] >= 5, label in ('good', 'bad'), same, [m for m in hidden if m in sys.modules])",
    )
    assert told == "True True True []"


def test_training_says_what_is_missing(saved):
    told = without_libraries(
        saved,
        "try: PromptTuningTrainer(model, template=template)\nexcept PromptTuningError as error: print(error)",
    )
    assert told == (
        "training needs evaluate, matplotlib, rouge_score, scipy, sklearn, not installed here. "
        "Run pip install 'hf_prompt_tuning[train]'."
    )


def test_a_trained_prompt_is_not_saved_in_part(saved):
    told = without_libraries(
        saved,
        "from pathlib import Path\n"
        "model.info.history = {'loss': [[1, 2.0]]}\n"
        "folder = Path(sys.argv[3]) / 'trained'\n"
        "try: model.save_pretrained(folder)\n"
        "except PromptTuningError as error: print(folder.exists(), error)",
    )
    assert told == (
        "False saving a trained prompt (its card has pictures) needs matplotlib, not installed here. "
        "Run pip install 'hf_prompt_tuning[train]'."
    )

"""The page on recipes, with a tiny backbone; its tables, beside the code."""

import re

import pytest

from hf_prompt_tuning.training.learned import nothing_learned
from hf_prompt_tuning.training.recipes import RECIPES
from tests.shared.doc_pages import run
from tests.shared.repository import ROOT
from tests.shared.resumed_runs import ROWS
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import TEMPLATE, make


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"backbone": tiny_model("llama"), "tokenizer": make_tokenizer("gpt2"), "template": TEMPLATE}
    trainer = run("how-to/recipe.md", names | {"train_rows": ROWS})["trainer"]
    assert trainer.end is not None and (tmp_path / "outputs/field/adapter_model.safetensors").exists()


def test_the_page_on_few_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "backbone": tiny_model("llama", max_position_embeddings=256),
        "tokenizer": make_tokenizer("gpt2"),
        "template": TEMPLATE,
    }
    trainer = run("how-to/few-rows.md", names | {"train_rows": ROWS})["trainer"]
    assert trainer.model.info.initialization["prompt_tuning_init"] == "EXAMPLES"
    assert (trainer.args.learning_rate, len(trainer.model.prompt)) == (1e-2, 160)
    assert (tmp_path / "outputs/examples/adapter_model.safetensors").exists()


def test_the_table_has_every_recipe():
    page = (ROOT / "docs/how-to/recipe.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(RECIPES)


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        (1e-6, "it ends where it started. Raise learning_rate"),
        (100.0, "it is far from anything that the backbone was trained on. Lower learning_rate"),
    ],
)
def test_the_lines_by_which_a_fault_is_found(rate, line, tmp_path, tokenizer, caplog):
    page = (ROOT / "docs/how-to/does-not-learn.md").read_text(encoding="utf-8")
    make(tmp_path, tokenizer, ROWS, learning_rate=rate).train()
    assert line in caplog.text and f"| `{line}`" in page
    untuned = {"untuned_accuracy": 0.5, "untuned_loss": 6.304}
    assert nothing_learned(untuned, {"eval_accuracy": 0.5, "eval_loss": 5.738}) in page
    assert nothing_learned(untuned, {"eval_accuracy": 0.5, "eval_loss": 6.309}).partition(";")[0] in page

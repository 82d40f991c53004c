"""`--recipe auto` from the command: one prompt in the output folder, and one line for each round."""

import json

import pytest
import yaml

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.cli.arguments import parse_arguments
from hf_prompt_tuning.cli.tasks import read_tasks
from hf_prompt_tuning.training.learned import nothing_learned
from tests.shared.command import command


@pytest.fixture
def config(files):
    values = yaml.safe_load((files / "config.yaml").read_text())
    del values["learning_rate"]
    values |= {"recipe": "auto", "num_train_epochs": 6, "do_predict": True, "test_file": str(files / "test.jsonl")}
    (files / "auto.yaml").write_text(yaml.safe_dump(values))
    return files / "auto.yaml"


def test_a_field_ends_as_one_prompt(config, files):
    done = command("run_prompt_tuning.py", config, "--save_strategy", "no")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "several.field_" in line]
    assert [line.split(":")[2].split()[0] for line in lines][:5] == ["The", "Round", "Round", "Round", "The"]
    out = files / "out"
    assert {"adapter_model.safetensors", "field.png", "README.md"} <= {file.name for file in out.iterdir()}
    assert not [file for file in out.iterdir() if file.is_dir()]
    results = json.loads((out / "all_results.json").read_text())
    assert results["recipe_cost"] <= 4.0 and {"eval_accuracy", "test_accuracy"} <= set(results)
    assert set(json.loads((out / "predictions.jsonl").read_text().splitlines()[0])["scores"]) == {
        *("complaint", "no complaint")
    }
    assert "| field_cost | 4 |" in (out / "README.md").read_text()


def test_lists_of_an_ensemble_and_tasks_do_not_go_with_it(config, files):
    with pytest.raises(PromptTuningError, match="prompt_lengths is given, and recipe auto makes the prompts"):
        parse_arguments([str(config), "--prompt_lengths", "5", "20"])
    values = yaml.safe_load(config.read_text()) | {"tasks": [{"name": "one"}]}
    (files / "tasks.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(PromptTuningError, match="recipe is auto, which is for one task; leave it out beside tasks"):
        read_tasks([str(files / "tasks.yaml")])


class TestNothingLearned:
    def test_accuracy_decides_where_there_is_one(self):
        untuned, tuned = {"untuned_accuracy": 0.5, "untuned_loss": 3.0}, {"eval_accuracy": 0.5, "eval_loss": 3.5}
        found = "its accuracy is 0.5, and without it 0.5, its loss is {}, and without it 3. Try "
        assert nothing_learned(untuned, tuned).startswith(
            "Nothing was learned: the prompt is no better than none; " + found.format(3.5)
        )
        assert nothing_learned(untuned, tuned | {"eval_loss": 1.0}).startswith(
            "Little was learned: the prompt is no more accurate than none; " + found.format(1)
        )
        assert nothing_learned(untuned, tuned | {"eval_accuracy": 0.51}) is None

    def test_else_the_loss(self):
        assert nothing_learned({"untuned_loss": 3.0}, {"eval_loss": 2.9}) is None
        assert "its loss is 3.1, and without it 3." in nothing_learned({"untuned_loss": 3.0}, {"eval_loss": 3.1})
        assert "its loss is nan" in nothing_learned({"untuned_loss": 3.0}, {"eval_loss": float("nan")})

    def test_of_several_prompts(self):
        untuned, tuned = {"untuned_a_accuracy": 0.5}, {"eval_a_accuracy": 0.4}
        assert nothing_learned(untuned, tuned, "a").startswith("Nothing was learned: the prompt 'a' is no better")
        assert nothing_learned(untuned, tuned, "b") is nothing_learned({}, {}) is None

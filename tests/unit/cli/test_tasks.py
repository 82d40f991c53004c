"""The command with several prompts: a config with `tasks`, and an ensemble's lists."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_prompt_tuning import PromptMismatchError, PromptTuningError
from hf_prompt_tuning.cli import tasks
from hf_prompt_tuning.cli.arguments import PromptArguments, parse_arguments
from hf_prompt_tuning.cli.tasks import ensemble_members, read_tasks, train_tasks
from hf_prompt_tuning.several.ensemble import load_ensemble
from tests.shared.command import command
from tests.shared.tiny_models import make_tokenizer, tiny_model


@pytest.fixture
def config(files, messages):
    """Two tasks; what they share stands beside them."""
    (files / "lengths.jsonl").write_text(
        "\n".join(
            json.dumps({"text": m["message"], "size": "small" if len(m["message"]) < 11 else "big"}) for m in messages
        )
    )
    shared = yaml.safe_load((files / "config.yaml").read_text())
    complaints = {key: shared.pop(key) for key in ("train_file", "validation_file", "source_template", "label_words")}
    shared["label_column"] = "label"
    lengths = {
        "name": "lengths",
        "train_file": str(files / "lengths.jsonl"),
        "source_template": "{text} story",
        "label_column": "size",
        "num_virtual_tokens": 6,
        "learning_rate": 0.1,
        "per_device_train_batch_size": 5,
        "max_steps": 4,
    }
    shared["tasks"] = [lengths, {"name": "complaints"} | complaints]
    return shared


def written(folder, config):
    file = folder / "tasks.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def test_prompts_are_evaluated_without_training_and_stay(config, files, tmp_path):
    """Nothing is saved, nothing can be pushed, and a prompt of another backbone is refused, as for one prompt."""
    out = files / "out"
    train_tasks(read_tasks([written(tmp_path, config), "--max_steps=1", "--use_cpu=true", "--report_to=none"]))
    del config["prompt_tuning_init_text"]
    for task in config["tasks"]:
        task["init_prompt"] = str(out / task["name"])
    config["output_dir"] = str(tmp_path / "again")
    flags = [written(tmp_path, config), "--do_train=false", "--use_cpu=true", "--report_to=none"]
    train_tasks(read_tasks(flags))
    results = [json.loads((each / "eval_results.json").read_text()) for each in (out, tmp_path / "again")]
    assert results[0]["eval_complaints_loss"] == pytest.approx(results[1]["eval_complaints_loss"], rel=1e-5)
    assert not list((tmp_path / "again").rglob("adapter_config.json"))
    with pytest.raises(PromptTuningError, match="push_to_hub is on, and do_train is off"):
        train_tasks(read_tasks([*flags, "--push_to_hub=true"]))
    other = tiny_model("llama")
    other.get_input_embeddings().weight.data.add_(0.1)
    other.save_pretrained(tmp_path / "other")
    make_tokenizer("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(PromptMismatchError, match="is evaluated, and is not a prompt of this backbone"):
        train_tasks(read_tasks([*flags, f"--model_name_or_path={tmp_path / 'other'}"]))


def test_what_stands_beside_tasks_goes_for_each(config, tmp_path):
    found = read_tasks([written(tmp_path, config), "--num_train_epochs", "3"])
    assert list(found.tasks) == ["lengths", "complaints"]
    (_, data, _, prompt, training), (_, other_data, _, other_prompt, other_training) = found.tasks.values()
    assert (data.label_column, other_data.label_column) == ("size", "label")
    assert (prompt.num_virtual_tokens, other_prompt.num_virtual_tokens) == (6, 4)
    assert (training.learning_rate, other_training.learning_rate) == (0.1, 3e-2)
    assert (training.max_steps, other_training.max_steps) == (4, -1)
    assert training.num_train_epochs == other_training.num_train_epochs == 3
    # only the second has validation data, and that makes the run evaluate
    assert not training.do_eval and found.training.do_eval and found.training.do_train
    assert read_tasks(["--tasks"]) is None and read_tasks([]) is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": {}}, "`tasks` is no list of mappings"),
        ({"tasks": []}, "`tasks` is no list of mappings"),
        ({"tasks": ["complaints"]}, "`tasks` is no list of mappings"),
        ({"tasks": [{"train_file": "x.csv"}]}, "the name is None"),
        ({"tasks": [{"name": "a"}, {"name": "a"}]}, "two tasks are called 'a'"),
        ({"tasks": [{"name": "a", "weight_decay": 1}]}, "the task 'a' has the key 'weight_decay'; .* beside `tasks`"),
        ({"tasks": [{"name": "a", "num_prompts": 2}]}, "has the key 'num_prompts'"),
        ({"num_prompts": 2}, "are for one task"),
        ({"lerning_rate": 1}, "did you mean 'learning_rate'"),
    ],
)
def test_refusals(config, change, message, tmp_path):
    with pytest.raises(PromptTuningError, match=message):
        read_tasks([written(tmp_path, config | change)])


@pytest.mark.parametrize(("flags", "steps"), [([], [4, 0]), (["--max_steps", "0"], [0, 0])])
def test_tasks_of_no_step(flags, steps, config, tmp_path):
    config = config | {"max_steps": 0, "output_dir": str(tmp_path / "out"), "logging_steps": 1}
    train_tasks(read_tasks([written(tmp_path, config), *flags]))
    found = [
        json.loads((tmp_path / f"out/{name}/prompt_tuning.json").read_text()) for name in ("lengths", "complaints")
    ]
    assert [len(info["history"].get("loss", [])) for info in found] == steps


def test_two_tasks_from_one_config(config, files):
    done = command("run_prompt_tuning.py", written(files, config), "--do_predict", "true", "--save_strategy", "no")
    assert done.returncode == 0, done.stderr
    out = files / "out"
    assert {f.name for f in out.iterdir()} == {
        "complaints",
        "lengths",
        "README.md",
        "losses.png",
        "all_results.json",
        "eval_results.json",
        "test_results.json",
        "train_results.json",
        "trainer_state.json",
        "untuned_results.json",
    }
    results = json.loads((out / "all_results.json").read_text())
    assert {"eval_complaints_accuracy", "eval_complaints_loss", "eval_loss", "test_complaints_accuracy"} <= set(
        results
    )
    predictions = [json.loads(line) for line in (out / "complaints/predictions.jsonl").read_text().splitlines()]
    right = sum(p["prediction"] == p["reference"] for p in predictions)
    assert len(predictions) == 6 and results["test_complaints_accuracy"] == pytest.approx(right / 6)
    info = json.loads((out / "lengths/prompt_tuning.json").read_text())
    assert info["template"]["label_words"] == {"big": "big", "small": "small"}
    assert info["data"] == {"train_file": "lengths.jsonl", "training_rows": 12}
    assert info["training"]["max_steps"] == 4 and len(info["history"]["loss"]) == 4
    assert load_file(out / "lengths/adapter_model.safetensors")["prompt_embeddings"].shape == (6, 32)
    assert "| learning_rate | 0.1 |" in (out / "lengths/README.md").read_text()


def run(config, folder, **values):
    """Train the tasks of a config in this process."""
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    train_tasks(read_tasks([written(folder, config | quiet | values)]))


def test_transfer_of_one_task(config, files):
    """A task's own other data are read by its template, under the names that the run of one prompt gives them."""
    (files / "mails.jsonl").write_text('{"mail": "the parcel never came", "kind": "small"}\n{"mail": "a"}')
    config["tasks"][0] |= {"transfer_file": [f"mails={files / 'mails.jsonl'}"]}
    config["tasks"][0] |= {"transfer_columns": ["mails.mail=text", "mails.kind=size"]}
    run(config, files, max_steps=1)
    out = files / "out"
    results = json.loads((out / "transfer_results.json").read_text())
    assert {"transfer_mails_lengths_accuracy", "transfer_mails_lengths_loss"} <= set(results)
    assert not [name for name in results if "complaints" in name]
    kept = {task: json.loads((out / task / "prompt_tuning.json").read_text()) for task in ("lengths", "complaints")}
    assert kept["complaints"]["transfer"] == {} and kept["lengths"]["transfer"]["mails"]["rows"] == 2
    assert kept["lengths"]["transfer"]["mails"]["loss"] == results["transfer_mails_lengths_loss"]
    assert (
        results["transfer_mails_lengths_loss"]
        == json.loads((out / "all_results.json").read_text())["transfer_mails_lengths_loss"]
    )
    assert "| mails | rows | 2 |" in (out / "lengths/README.md").read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"transfer_file": ["other=/does/not/exist.jsonl"]}, "the data file '/does/not/exist.jsonl' "),
        ({"transfer_file": ["other={files}/test.jsonl"]}, r"\{text\} is no column of the transfer \(other\) data"),
        ({"transfer_columns": ["other.a=b"]}, "transfer_columns has 'other.a=b'; give NAME.COLUMN=FIELD"),
        ({"train_file": None}, "the task 'lengths' has no training data"),
        ({"train_file": None, "validation_file": "{files}/lengths.jsonl"}, "the task 'lengths' has no training data"),
    ],
)
def test_what_would_fail_after_training_fails_before(config, change, message, files, monkeypatch):
    monkeypatch.setattr(tasks, "load_backbone", lambda *_, **__: pytest.fail("the backbone is loaded"))
    text = json.dumps(change).replace("{files}", str(files))
    config["tasks"][0] |= json.loads(text) | {"test_file": str(files / "lengths.jsonl")}
    with pytest.raises(PromptTuningError, match=message):
        run(config, files)
    assert not (files / "out").exists()


def test_predictions_without_rows_are_refused_before_training(config, files, monkeypatch):
    monkeypatch.setattr(tasks, "load_backbone", lambda *_, **__: pytest.fail("the backbone is loaded"))
    del config["tasks"][1]["validation_file"]
    with pytest.raises(PromptTuningError, match="do_predict is true, and there are neither test nor validation rows"):
        run(config, files, do_predict=True)


def test_an_evaluation_without_rows_is_refused_before_training(config, files, monkeypatch):
    monkeypatch.setattr(tasks, "load_backbone", lambda *_, **__: pytest.fail("the backbone is loaded"))
    del config["tasks"][1]["validation_file"]
    with pytest.raises(PromptTuningError, match="do_eval is true, and there are no validation rows"):
        run(config, files, do_eval=True)


def test_an_ensemble_from_the_command_line(files, messages):
    done = command(
        "run_prompt_tuning.py", files / "config.yaml", "--prompt_tuning_inits", "SAMPLE_VOCAB", "TEXT", "RANDOM",
        "--learning_rates", "0.03", "0.1", "0.3", "--prompt_lengths", "3", "4", "5", "--save_strategy", "no",
        "--do_predict", "true", "--test_file", files / "test.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = files / "out"
    results = json.loads((out / "all_results.json").read_text())
    assert {"eval_accuracy", "eval_prompt_1_accuracy", "eval_prompt_3_loss", "test_accuracy"} <= set(results)
    ensemble = load_ensemble(out, backbone=tiny_model("llama"), tokenizer=make_tokenizer("gpt2"))
    assert ensemble.members == ["prompt_1", "prompt_2", "prompt_3"]
    lengths = [len(ensemble.model.prompt_encoder[name].embedding.weight) for name in ensemble.members]
    assert lengths == [3, 4, 5]
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 7 and predictions[-1]["reference"] is None
    for record, found in zip(predictions, ensemble.predict([*messages[6:], {"message": "x"}]), strict=True):
        assert (record["prediction"], record["votes"]) == (found["prediction"], found["votes"])
        assert record["scores"] == pytest.approx(found["scores"], rel=1e-4)


class TestMembers:
    @staticmethod
    def members(*flags):
        *_, prompt, _ = parse_arguments(["--model_name_or_path", "m", "--output_dir", "o", *flags])
        return ensemble_members(prompt, 5)

    def test_one_prompt_is_no_ensemble(self):
        assert self.members() == self.members("--num_prompts", "1") == []

    def test_seeds_count_on(self):
        found = self.members("--num_prompts", "3")
        assert [(m.name, m.seed, m.learning_rate) for m in found] == [
            ("prompt_1", 5, None),
            ("prompt_2", 6, None),
            ("prompt_3", 7, None),
        ]

    def test_the_ith_of_each_list(self):
        found = self.members(
            "--prompt_seeds", "3", "9", "--learning_rates", "0.1", "3e-2", "--prompt_lengths", "4", "8",
            "--prompt_tuning_inits", "RANDOM", "FIRST_VOCAB",
        )  # fmt: skip
        assert [(m.seed, m.learning_rate) for m in found] == [(3, 0.1), (9, 0.03)]
        assert [m.config.initialization()["prompt_tuning_init"] for m in found] == ["RANDOM", "FIRST_VOCAB"]
        assert [m.config.num_virtual_tokens for m in found] == [4, 8]

    def test_a_prompt_to_start_from_is_of_those_that_start_from_one(self):
        found = self.members("--init_prompt", "p", "--prompt_tuning_inits", "PROMPT", "RANDOM")
        assert [m.config.init_prompt for m in found] == ["p", None]

    def test_orders_of_their_own(self):
        found = self.members("--data_seeds", "0", "1", "7", "--prompt_tuning_init_text", "yes or no")
        assert [(m.data_seed, m.seed) for m in found] == [(0, 5), (1, 6), (7, 7)]

    @pytest.mark.parametrize(
        "flags, message",
        [
            (("--num_prompts", "3", "--learning_rates", "0.1", "0.2"), "learning_rates has 2 values for 3 prompts"),
            (("--learning_rates", "0.1"), "there are to be 1 prompts"),
            (("--num_prompts", "0"), "there are to be 0 prompts"),
            (
                ("--num_prompts", "2", "--learning_rates", "0.1", "-1"),
                "learning_rate of 'prompt_2' is -1.0; give a number above 0",
            ),
        ],
    )
    def test_refusals(self, flags, message):
        with pytest.raises(PromptTuningError, match=message):
            self.members(*flags)


def test_a_prompt_starts_as_it_does_alone():
    """Same seed, same vectors, whatever else the run trains."""
    from hf_prompt_tuning import get_prompt_tuning_model
    from hf_prompt_tuning.several.task import model_with_prompts

    found = ensemble_members(PromptArguments(num_prompts=3, num_virtual_tokens=6), 11)
    model = model_with_prompts(tiny_model("llama"), found, make_tokenizer("gpt2"), 0)
    single = tiny_model("llama")
    torch.manual_seed(12)
    alone = get_prompt_tuning_model(single, found[1].config, make_tokenizer("gpt2"))
    assert torch.equal(alone.prompt, model.prompt_encoder["prompt_2"].embedding.weight)

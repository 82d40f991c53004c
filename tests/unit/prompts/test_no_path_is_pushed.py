"""Everything from folders of this machine, by every door: not one of them is named on the Hub."""

import getpass
import json
import sys

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import ExportableState

import run_prompt_tuning
from hf_prompt_tuning import PromptHubCallback, PromptTuningConfig, PromptTuningTrainer, get_prompt_tuning_model
from hf_prompt_tuning.cli.main import run
from tests.shared.reference import tiny_prompt_model
from tests.shared.several_prompts import arguments
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import TEMPLATE

PLACE = "jane_doe_home"


@pytest.fixture
def place(tmp_path, messages, monkeypatch):
    """A folder with a backbone, its tokenizer, data and a prompt, which is also the one that this process works in."""
    folder = tmp_path / PLACE
    tiny_model("llama").save_pretrained(folder / "models" / "backbone")
    make_tokenizer().save_pretrained(folder / "models" / "backbone")
    tiny_prompt_model("llama", num_virtual_tokens=4).save_pretrained(folder / "start")
    (folder / "data").mkdir()
    for name in ("train", "validation"):
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, messages)))
    monkeypatch.chdir(folder)
    return folder


def told(hub):
    """What names the place, of all that was ever pushed: files of every commit, their names, its title."""
    found = set()
    for repo_id, repository in hub.repositories.items():
        for branch, last in repository.branches.items():
            for commit in (*last.before, last):
                names = {f"name {name}": name.encode() for name in commit.files}
                texts = {"title": commit.title.encode()} | commit.files | names
                user = f"/{getpass.getuser()}/".encode()
                words = (PLACE.encode(), str(sys.prefix).encode(), b"/tmp/", b"hf_alice", b"models/backbone", user)
                found |= {(repo_id, branch, n, word) for n, text in texts.items() for word in words if word in text}
    return found


COMMON = {
    "model_name_or_path": "{place}/models/backbone",
    "source_template": "Message : {message} Label :",
    "label_column": "label",
    "label_words": {"1": "complaint", "2": "no complaint"},
    "num_train_epochs": 1,
    "save_strategy": "epoch",
    "output_dir": "{place}/out",
    "push_to_hub": True,
    "hub_strategy": "checkpoint",
    "hub_always_push": True,
    "report_to": "none",
    "run_name": "{place}/run",
}
FILES = {"train_file": "{place}/data/train.jsonl", "validation_file": "{place}/data/validation.jsonl"}
CONFIGS = {
    "a folder of data": {"dataset_name": "{place}/data", "dataset_revision": "main"},
    "a folder beside": {"dataset_name": "data", "model_name_or_path": "models/backbone", "init_prompt": "start"},
    "the folder itself": {"dataset_name": "{place}"},
    "dots": {"dataset_name": "../{name}/data", "output_dir": "./out", "base_model_id": "{place}/models/backbone"},
    "files": FILES | {"init_prompt": "{place}/start", "transfer_file": ["other={place}/data/validation.jsonl"]},
    "an ensemble": FILES | {"num_prompts": 2},
    "tasks": {"tasks": [{"name": "a", "dataset_name": "{place}/data"}, FILES | {"name": "b"}]},
}


def filled(value, place):
    if isinstance(value, dict):
        return {name: filled(one, place) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, place) for one in value]
    if not isinstance(value, str):
        return value
    return value.replace("{place}", str(place)).replace("{name}", place.name)


@pytest.mark.parametrize("case", CONFIGS)
def test_the_command(case, hub, place, monkeypatch):
    if case == "the folder itself":
        for file in (place / "data").iterdir():
            file.rename(place / file.name)
    (place / "config.yaml").write_text(yaml.safe_dump(filled(COMMON | CONFIGS[case], place)))
    flags = ["--hub_model_id=alice/p"] if case != "dots" else []
    monkeypatch.setattr(sys, "argv", ["run_prompt_tuning.py", str(place / "config.yaml"), *flags])
    run(run_prompt_tuning.main)
    (repo_id,) = hub.repositories
    files = hub.files(repo_id)
    where = {"tasks": "b/"}.get(case, "")
    checkpoint = "prompt_1/" if case == "an ensemble" else where
    expected = {f"{where}prompt_tuning.json", "README.md", f"last-checkpoint/{checkpoint}adapter_config.json"}
    assert expected <= files.keys()
    assert told(hub) == set()
    data = json.loads(files[f"{where}prompt_tuning.json"])["data"]
    assert "dataset" not in data and data["training_rows"] == 12
    if "files" in case:
        assert data["train_file"] == "train.jsonl"
    assert b"datasets:" not in files[f"{where}README.md"].split(b"---")[1]


class Noted(TrainerCallback, ExportableState):
    """A callback with a state that names a folder, as people's own do."""

    def __init__(self, folder):
        self.folder = folder

    def state(self):
        return {"args": {"folder": str(self.folder)}, "attributes": {}}


def test_the_python_api(hub, place, messages):
    """Model, trainer, checkpoints, callback; with the tokenizer, and data that a user describes by its folder."""
    backbone = AutoModelForCausalLM.from_pretrained(place / "models/backbone")
    tokenizer = AutoTokenizer.from_pretrained(place / "models/backbone")
    config = PromptTuningConfig(
        init_prompt=str(place / "start"), base_model_name_or_path=str(place / "models/backbone")
    )
    config.tokenizer_name_or_path = str(place / "models/backbone")
    model = get_prompt_tuning_model(backbone, config, tokenizer, TEMPLATE)
    model.info.data = {
        "dataset": str(place / "data"),
        "note": "~/data/x",
        "files": ["./data/a.csv", "C:\\\\Users\\\\a.csv"],
    }
    trainer = PromptTuningTrainer(
        model,
        arguments(
            place / "run",
            push_to_hub=True,
            hub_model_id="alice/trainer",
            hub_strategy="all_checkpoints",
            hub_always_push=True,
            save_strategy="epoch",
            eval_strategy="epoch",
            metric_for_best_model="loss",
            load_best_model_at_end=True,
            report_to="none",
        ),
        train_dataset=messages,
        eval_dataset=messages,
        processing_class=tokenizer,
        callbacks=[PromptHubCallback("alice/callback"), Noted(place / "notes")],
    )
    trainer.train()
    trainer.push_to_hub(tokenizer=True)
    model.push_to_hub("alice/model", tokenizer=tokenizer)
    assert sorted(hub.repositories) == ["alice/callback", "alice/model", "alice/trainer"]
    assert told(hub) == set()
    data = json.loads(hub.files("alice/model")["prompt_tuning.json"])["data"]
    state = json.loads(hub.files("alice/trainer")["checkpoint-3/trainer_state.json"])
    assert state["stateful_callbacks"]["Noted"]["args"] == {"folder": "notes"}
    assert data["files"] == ["a.csv", "a.csv"] and data["note"] == "x"

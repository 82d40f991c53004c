"""What a Hub gets and gives, with the real client against a Hub on this machine (`hub_session.py` is what happens)."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

PROMPT = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "confusion_matrix.png",
    "initial_prompt.safetensors",
    "loss.png",
    "prompt_tuning.json",
    "results.json",
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-m", "tests.sessions.hub_session", str(tmp_path_factory.mktemp("hub"))],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_only_the_prompts_own_files_are_pushed(facts):
    pushed = {name for name in facts["trainer"]["files"] if "/" not in name} - {".gitattributes"}
    assert pushed == PROMPT
    assert facts["trainer"]["secrets"] == []
    endings = (".bin", ".pt", ".pth", ".pkl")
    assert not [name for name in facts["trainer"]["files"] + facts["model"]["files"] if name.endswith(endings)]


def test_a_checkpoint_is_pushed_for_resuming_without_a_pickle(facts):
    checkpoint = {name.split("/")[1] for name in facts["trainer"]["files"] if name.startswith("last-checkpoint/")}
    resuming = {"optimizer.pt.json", "optimizer.pt.safetensors", "scheduler.pt.json", "rng_state.pth.json"}
    assert checkpoint >= resuming | {"trainer_state.json", "adapter_model.safetensors"}
    assert facts["trainer"]["resumed, against never interrupted"] == 0.0


def test_every_save_and_the_end_are_commits(facts):
    titles = [title for title in facts["trainer"]["commits"] if "checkpoint" not in title]
    assert titles[-3:] == ["Training in progress, step 3", "Training in progress, step 6", "End of training"]
    assert facts["trainer"]["a revision is its own"]


def test_the_card_is_true_and_complete(facts):
    _, head, body = facts["trainer"]["card"].split("---\n", 2)
    data = yaml.safe_load(head)
    assert (data["base_model"], data["base_model_relation"], data["library_name"]) == (
        "alice/backbone",
        "adapter",
        "peft",
    )
    assert "prompt-tuning" in data["tags"]
    results = {m["type"]: m["value"] for r in data["model-index"][0]["results"] for m in r["metrics"]}
    assert results.keys() == {"loss", "perplexity", "accuracy", "f1"}
    assert f"| accuracy | {results['accuracy']:.4f} | 0." in body  # the untuned one beside it
    headings = re.findall(r"^## (.*)", body, re.MULTILINE)
    assert headings == ["Format", "Results", "What the vectors are nearest to", "Use", "Training"]
    for section in re.split(r"^## .*", body, flags=re.MULTILINE):
        assert section.strip()
    assert "load_prompt('alice/prompt')" in body and "PeftModel.from_pretrained(backbone, 'alice/prompt')" in body
    assert "TODO" not in body and "[More Information Needed]" not in body
    assert len(re.findall(r"^\| \d+ \| `'", body, re.MULTILINE)) == 4  # nearest words of each position


def test_a_stranger_gets_the_same_predictions(facts):
    stranger = facts["stranger"]
    assert isinstance(stranger, dict), stranger
    for got, expected in zip(stranger["scores"], facts["trainer"]["scores"], strict=True):
        assert got == pytest.approx(expected, rel=1e-4)
    assert stranger["distance from PEFT"] < 1e-5


def test_the_cards_code_runs_as_pasted(facts):
    ours, peft = facts["stranger"]["card"]
    assert ours in ("PromptTuningModelForCausalLM complaint", "PromptTuningModelForCausalLM no complaint")
    assert peft == "PeftModelForCausalLM"


def test_a_hub_that_is_down_loses_nothing(facts):
    trainer = facts["trainer"]
    assert trainer["pushed while down"] is None and trainer["saved while down"]
    assert len(trainer["said while down"]) == 1
    assert re.search(r"It is saved in \S+/run; push it later: hf upload alice/prompt", trainer["said while down"][0])


def test_a_push_that_is_cut_off_leaves_the_old_revision(facts):
    assert facts["trainer"]["pushed while cut"] is None and facts["trainer"]["commits while cut"]
    assert facts["trainer"]["mended"] == ["mended", True]


def test_a_model_pushes_by_itself(facts):
    model = facts["model"]
    assert model["trainable"]
    assert PROMPT | {"tokenizer.json"} <= set(model["files"])


def test_a_private_prompt_is_for_those_who_may(facts):
    model = facts["model"]
    assert model["alice"] == "loaded"
    for who in ("bob", "nobody"):
        assert "the prompt 'alice/private' could not be loaded" in model[who]


def test_nothing_that_a_prompt_names_is_run(facts):
    found = facts["malicious"]
    assert found.pop("code was run") is False
    assert found["alice/evil-backbone"].startswith("the backbone 'alice/evil-backbone' could not be loaded")
    for name in ("FOLDER/backbone", "../backbone"):
        assert "which is not a Hub id" in found[name]

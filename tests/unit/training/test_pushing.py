"""A push leaves nothing of an earlier prompt, and touches nothing of anybody else's."""

import pytest
import torch

from hf_prompt_tuning import (
    PromptHubCallback,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
    load_ensemble,
    load_prompt,
)
from tests.shared import ensembles
from tests.shared.hub_client import pulled
from tests.shared.pushes import DRAWN, SPOKEN, ensemble, model_of, several, trainer_of
from tests.shared.tiny_models import tiny_model

THEIRS = {"notes.md": b"mine", "plot.png": b"mine", "tokenizer.json": b"{}", "other/adapter_config.json": b"{}"}
THEIRS |= {"other/initial_prompt.safetensors": b"another prompt's", "last-checkpoint/diary.txt": b"mine"}


def by_model(folder, tokenizer, messages, config, **where):
    model = model_of(tokenizer, **config)
    model.push_to_hub("alice/p", **where)
    return model


def by_trainer(folder, tokenizer, messages, config, **where):
    where = {f"hub_{name}": value for name, value in where.items()}
    trainer = trainer_of(folder, tokenizer, messages, config, hub_strategy="end", **where)
    trainer.train()
    if config is DRAWN:
        trainer.evaluate()  # for a picture of it
    trainer.push_to_hub()
    return trainer.model


def by_each_save(folder, tokenizer, messages, config, **where):
    where = {f"hub_{name}": value for name, value in where.items()}
    trainer = trainer_of(folder, tokenizer, messages, config, hub_strategy="checkpoint", **where)
    trainer.train()
    return trainer.model


def by_callback(folder, tokenizer, messages, config, **where):
    trainer = trainer_of(
        folder, tokenizer, messages, config, push_to_hub=False, eval_strategy="steps", save_strategy="no", eval_steps=4
    )
    trainer.add_callback(PromptHubCallback("alice/p", **where))
    trainer.train()
    return trainer.model


DOORS = [by_model, by_trainer, by_each_save, by_callback]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("where", [{}, {"revision": "tries/two"}])
def test_a_prompt_over_another_is_that_prompt_alone(door, where, hub, tmp_path, tokenizer, messages):
    branch = where.get("revision", "main")
    by_trainer(tmp_path / "first", tokenizer, messages, DRAWN, **where)
    assert {"initial_prompt.safetensors", "confusion_matrix.png", "results.json"} < set(hub.files("alice/p", branch))
    hub.put("alice/p", THEIRS, branch)
    commits = len(hub.commits("alice/p", branch))
    model = door(tmp_path / "second", tokenizer, messages, SPOKEN, **where)
    files = hub.files("alice/p", branch)
    assert {name: files.get(name) for name in THEIRS} == THEIRS
    assert "initial_prompt.safetensors" not in files
    loaded = load_prompt(pulled(hub, tmp_path / "pulled", "alice/p", branch), backbone=tiny_model("llama"))[0]
    assert torch.equal(loaded.prompt, model.prompt)
    if door is by_model:
        assert len(hub.commits("alice/p", branch)) == commits + 1
        assert not {"results.json", "loss.png"} & set(files)  # it was never trained
    if door is not by_callback:
        assert "confusion_matrix.png" not in files  # nor evaluated
    assert branch == "main" or set(hub.files("alice/p")) == {".gitattributes"}


def test_a_push_of_the_same_is_no_commit(hub, tmp_path, tokenizer):
    model = model_of(tokenizer, **SPOKEN)
    model.push_to_hub("alice/p")
    before = hub.commits("alice/p")
    model.push_to_hub("p")
    assert hub.commits("alice/p") == before and len(before) == 2


@pytest.mark.parametrize("when", ["each save", "end"])
def test_several_tasks_leave_the_others_alone(when, hub, tmp_path, tokenizer, tasks):
    """A task's own leftovers go; a task that this run does not train, and the prompt at the root, stay."""
    saves = dict(save_strategy="steps", save_steps=2, hub_strategy="checkpoint") if when == "each save" else {}
    several(tmp_path / "a", tokenizer, tasks[:2], **saves).train()
    if when == "end":
        several(tmp_path / "a", tokenizer, tasks[:2]).push_to_hub()
    left = {"complaints/initial_prompt.safetensors": b"old", "complaints/confusion_matrix.png": b"old"}
    ours = {"complaints/notes.txt": b"mine", "mood/adapter_config.json": b"{}", "mood/loss.png": b"theirs"}
    hub.put("alice/p", left | ours)
    before = hub.files("alice/p")
    tasks[0].config.prompt_tuning_init, tasks[0].config.prompt_tuning_init_text = "TEXT", "complaint"
    tasks[0].config.tokenizer = tokenizer
    one = several(tmp_path / "b", tokenizer, tasks[:1], **saves)
    one.train()
    if when == "end":
        one.push_to_hub()
    files = hub.files("alice/p")
    assert not set(left) & set(files)
    assert {name: files.get(name) for name in ours} == ours
    reviews = {name: content for name, content in before.items() if name.startswith("reviews/")}
    assert reviews and reviews.items() <= files.items()
    folder = pulled(hub, tmp_path / "pulled", "alice/p")
    loaded = load_prompt(folder, subfolder="complaints", backbone=tiny_model("llama"))[0]
    assert torch.equal(loaded.prompt, one.prompts["complaints"])
    if when == "each save":
        assert not (folder / "last-checkpoint/reviews").exists()
        again = several(tmp_path / "c", tokenizer, tasks[:1], push_to_hub=False)
        again.train(resume_from_checkpoint=str(folder / "last-checkpoint"))
        assert torch.equal(again.prompts["complaints"], one.prompts["complaints"])


@pytest.mark.parametrize("when", ["each save", "end"])
def test_an_ensemble_over_an_ensemble(when, hub, tmp_path, messages):
    saves = dict(save_strategy="steps", save_steps=2) if when == "each save" else {}
    for size in (3, 2):
        trainer = ensemble(tmp_path / str(size), messages, ensembles.MEMBERS[:size], **saves)
        trainer.train()
        if when == "end":
            trainer.push_to_hub()
        hub.put("alice/p", {"three/notes.txt": b"mine"})
    assert sorted(name for name in hub.files("alice/p") if name.startswith("three/")) == ["three/notes.txt"]
    found = load_ensemble(
        pulled(hub, tmp_path / "pulled", "alice/p"), backbone=tiny_model("llama"), tokenizer=trainer.processing_class
    )
    assert found.members == ["one", "two"]
    for name in found.members:
        vectors = found.model.prompt_encoder[name].embedding.weight
        assert torch.equal(vectors, trainer.prompts[name])


def test_a_prompt_over_an_ensemble(hub, tmp_path, tokenizer, messages):
    """`load_ensemble` must not find the old members behind the new prompt."""
    trainer = ensemble(tmp_path / "a", messages)
    trainer.train()
    trainer.push_to_hub()
    assert {"ensemble.json", "losses.png", "one/adapter_config.json"} < set(hub.files("alice/p"))
    hub.put("alice/p", {"task/adapter_config.json": b"{}"})
    model_of(tokenizer, **SPOKEN).push_to_hub("alice/p")
    ours = {"README.md", "adapter_config.json", "adapter_model.safetensors", "prompt_tuning.json"}
    assert set(hub.files("alice/p")) == ours | {".gitattributes", "task/adapter_config.json"}


def test_an_ensemble_json_of_somebody_elses_stays(hub, tokenizer):
    model_of(tokenizer, **DRAWN).push_to_hub("alice/p")
    hub.put("alice/p", {"ensemble.json": b"[1, 2]"})
    model_of(tokenizer, **SPOKEN).push_to_hub("alice/p")
    assert hub.files("alice/p")["ensemble.json"] == b"[1, 2]"


def test_every_checkpoint_is_a_folder_of_its_own(hub, tmp_path, tokenizer, messages):
    """Of an earlier run with another number of processes, and pickles of a plain Trainer, nothing is left."""
    stale = ("optimizer.pt", "rng_state_3.pth.json", "training_args.bin", "reviews/adapter_config.json", "scaler.pt")
    client_repository = {f"checkpoint-2/{name}": b"old" for name in stale}
    hub.put("alice/p", client_repository | {"checkpoint-7/optimizer.pt": b"old", "checkpoint-2/x.txt": b"mine"})
    trainer_of(tmp_path, tokenizer, messages, DRAWN, hub_strategy="all_checkpoints").train()
    files = hub.files("alice/p")
    assert not set(client_repository) & set(files)
    assert {"checkpoint-7/optimizer.pt", "checkpoint-2/x.txt", "checkpoint-4/trainer_state.json"} < set(files)


def test_one_of_several_prompts_goes_into_a_folder(hub, tmp_path, tokenizer):
    """Only the one that is named, whichever is active."""
    model = model_of(tokenizer, **DRAWN)
    model.add_adapter("reviews", PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"))
    model.push_to_hub("alice/p", adapter_name="reviews", subfolder="/mood/")
    files = set(hub.files("alice/p")) - {".gitattributes"}
    assert {name.split("/")[0] for name in files} == {"mood", "README.md"}
    assert b"load_prompt('alice/p', subfolder='mood'" in hub.files("alice/p")["mood/README.md"]
    folder = pulled(hub, tmp_path, "alice/p")
    loaded = load_prompt(folder, subfolder="mood", backbone=tiny_model("llama"))[0]
    assert torch.equal(loaded.prompt, model.prompt_encoder["reviews"].embedding.weight)
    assert model.active_adapter == "default"
    with pytest.raises(PromptTuningError, match="adapter_name is 'x'; the model has 'default', 'reviews'"):
        model.push_to_hub("alice/q", adapter_name="x")
    for wrong in ("../x", "last-checkpoint", "checkpoint-3", "a\\b", "."):
        with pytest.raises(PromptTuningError, match=r"subfolder is .*; give a folder of the repository"):
            model.push_to_hub("alice/q", subfolder=wrong)
    assert "alice/q" not in hub.repositories


def test_a_pull_request_changes_no_branch(hub, tokenizer):
    """What is obsolete goes in it, too; somebody else may ask for it."""
    model_of(tokenizer, **DRAWN).push_to_hub("alice/p")
    before = hub.files("alice/p")
    model = model_of(tokenizer, **SPOKEN)
    made = model.push_to_hub("alice/p", create_pr=True, commit_message="Six", commit_description="Words")
    assert made.pr_num == 1 and hub.files("alice/p") == before
    asked = hub.files("alice/p", "refs/pr/1")
    assert "initial_prompt.safetensors" not in asked and asked["adapter_model.safetensors"]
    assert hub.commits("alice/p", "refs/pr/1")[-1][1] == "Six"
    model.push_to_hub("alice/p", revision="refs/pr/1", commit_message="Again", tokenizer=tokenizer)
    assert "tokenizer.json" in hub.files("alice/p", "refs/pr/1") and hub.files("alice/p") == before


def test_a_prompt_of_training_rows_is_pushed_with_a_warning(hub, tokenizer, messages, caplog):
    """Its words can be read in its vectors, so a public repository shows the rows. It is said once."""
    template = PromptTemplate("{message} =>", label_column="label", label_words={"1": "sad", "2": "glad"})
    config = PromptTuningConfig(prompt_tuning_init="EXAMPLES", num_virtual_tokens=30)
    model = get_prompt_tuning_model(tiny_model("llama"), config, tokenizer, template, train_dataset=messages)
    model.push_to_hub("alice/secret", private=True)
    assert "training rows" not in caplog.text
    model.push_to_hub("alice/rows")
    model.push_to_hub("alice/rows")
    assert caplog.text.count("pushed to 'alice/rows' started from training rows (EXAMPLES)") == 1
    again = get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(init_prompt="alice/rows"), tokenizer)
    again.push_to_hub("alice/later")
    assert caplog.text.count("pushed to 'alice/later' started from training rows (EXAMPLES)") == 1

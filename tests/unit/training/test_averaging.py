"""A run ends with the mean of its last prompts, in any Trainer, and also if it is resumed."""

import base64
import json

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_prompt_tuning import (
    PromptAveragingCallback,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.training.checkpoint_folder import seal
from hf_prompt_tuning.training.pickle_free import without_pickles
from tests.shared.classifiers import tiny_classifier
from tests.shared.ensembles import make as make_ensemble
from tests.shared.resumed_runs import make
from tests.shared.vanilla_trainer import vanilla


class Watch(TrainerCallback):
    """The prompts after each step."""

    def __init__(self):
        self.prompts = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.prompts.append({name: p.detach().clone() for name, p in model.prompt_encoder.named_parameters()})

    def mean(self, name, steps):
        return torch.stack([prompts[name] for prompts in self.prompts[-steps:]]).double().mean(0).float()


@pytest.mark.parametrize(("share", "steps"), [(1.0, 6), (0.5, 3), (0.34, 2), (0.01, 1)])
def test_the_mean_of_the_last_steps(share, steps, tmp_path, tokenizer):
    watch = Watch()
    trainer = vanilla(tmp_path, tokenizer, callbacks=[watch, PromptAveragingCallback(share)])
    trainer.train()
    (name,) = watch.prompts[0]
    assert len(watch.prompts) == 6
    torch.testing.assert_close(trainer.model.prompt.detach(), watch.mean(name, steps), rtol=1e-6, atol=1e-7)
    assert torch.equal(trainer.model.prompt, watch.prompts[-1][name]) == (steps == 1)


def test_by_the_argument(tmp_path, tokenizer):
    watch = Watch()
    trainer = make(tmp_path, tokenizer, callbacks=[watch], average_last=0.5)
    trainer.train()
    (name,) = watch.prompts[0]
    torch.testing.assert_close(trainer.model.prompt.detach(), watch.mean(name, 6), rtol=1e-6, atol=1e-7)
    trainer.save_model()
    loaded = load_prompt(tmp_path, backbone=trainer.model.get_base_model(), tokenizer=tokenizer)
    assert torch.equal(loaded.model.prompt, trainer.model.prompt)
    assert loaded.model.info.training["average_last"] == 0.5


@pytest.mark.parametrize("step", [4, 6, 7, 11, 12])
def test_a_resumed_run_ends_the_same(step, tmp_path, tokenizer):
    whole = make(tmp_path / "whole", tokenizer, average_last=0.5)
    whole.train()
    resumed = make(tmp_path / "resumed", tokenizer, average_last=0.5)
    resumed.train(resume_from_checkpoint=f"{tmp_path}/whole/checkpoint-{step}")
    assert torch.equal(resumed.model.prompt, whole.model.prompt)


def test_each_of_several_prompts(tmp_path, messages):
    trainer, watch = make_ensemble(tmp_path, messages, average_last=0.5), Watch()
    trainer.add_callback(watch)
    trainer.train()
    assert len(watch.prompts[0]) == 3
    for name, parameter in trainer.model.prompt_encoder.named_parameters():
        expected = watch.mean(name, round(len(watch.prompts) / 2))
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)


def test_a_head_with_its_prompt(tmp_path):
    """A collator of token ids and class numbers, and transformers' Trainer."""
    model, watch = get_prompt_tuning_model(tiny_classifier("bert"), PromptTuningConfig(num_virtual_tokens=4)), Watch()
    rows = [{"input_ids": [5 + i, 6, 7], "labels": i % 3} for i in range(6)]
    args = TrainingArguments(str(tmp_path), num_train_epochs=2, per_device_train_batch_size=2, use_cpu=True)
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[watch, PromptAveragingCallback(0.5)])
    trainer.train()
    means = {name: watch.mean(name, 3) for name in watch.prompts[0]}
    assert len(means) > 1
    for name, parameter in model.prompt_encoder.named_parameters():
        torch.testing.assert_close(parameter.detach(), means[name], rtol=1e-6, atol=1e-7)


def test_a_second_run_begins_a_new_mean(tmp_path, tokenizer):
    trainer, watch = make(tmp_path, tokenizer, average_last=0.5), Watch()
    trainer.train()
    trainer.add_callback(watch)
    trainer.train()
    (name,) = watch.prompts[0]
    torch.testing.assert_close(trainer.model.prompt.detach(), watch.mean(name, 6), rtol=1e-6, atol=1e-7)


def test_a_run_of_no_step_has_no_mean(tmp_path, tokenizer, caplog):
    trainer = make(tmp_path, tokenizer, average_last=0.5, max_steps=0)
    before = trainer.model.prompt.detach().clone()
    trainer.train()
    assert torch.equal(trainer.model.prompt, before)
    assert "The run ended at step 0, before a step of 'default' to average." in caplog.messages


def test_metrics_of_another_prompt_are_forgotten(tmp_path, tokenizer):
    trainer = make(tmp_path, tokenizer, average_last=0.5, eval_strategy="epoch")
    trainer.train()
    info = trainer.model.info
    assert (info.metrics, info.confusion_matrix, info.calibration) == ({}, {}, {})
    metrics = trainer.evaluate()
    trainer.save_model()
    saved = json.loads((tmp_path / "prompt_tuning.json").read_text())
    assert saved["metrics"]["eval_loss"] == metrics["eval_loss"]


def test_metrics_of_a_prompt_that_did_not_train_stay(tmp_path, tokenizer):
    trainer = make(tmp_path, tokenizer, average_last=0.5)
    model = trainer.model
    info = model.info
    info.metrics, info.calibration = {"eval_accuracy": 0.75}, {"temperature": 1.5}
    info.confusion_matrix = {"labels": ["a"], "counts": [[1]]}
    model.add_adapter("second", PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM"))
    model.set_adapter("second")
    model.prompt_info["second"].metrics = {"eval_accuracy": 0.25}
    before = model.prompt_encoder["default"].embedding.weight.detach().clone()
    trainer.train()
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, before)
    assert (info.metrics, info.calibration) == ({"eval_accuracy": 0.75}, {"temperature": 1.5})
    assert info.confusion_matrix == {"labels": ["a"], "counts": [[1]]}
    assert model.prompt_info["second"].metrics == {}


def test_refusals(tmp_path, tokenizer):
    with pytest.raises(PromptTuningError, match=r"the share of steps to average is 0; give a number above 0, up to 1"):
        PromptAveragingCallback(0)
    with pytest.raises(PromptTuningError, match=r"average_last is 1\.5; give a share of the run, 0 to 1"):
        PromptTuningArguments(str(tmp_path), average_last=1.5)
    with pytest.raises(PromptTuningError, match=r"average_last is 0\.5, and load_best_model_at_end .* leave"):
        PromptTuningArguments(str(tmp_path), average_last=0.5, early_stopping_patience=2)
    best = vanilla(tmp_path, tokenizer, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    best.add_callback(PromptAveragingCallback())
    with pytest.raises(PromptTuningError, match=r"load_best_model_at_end .* keeps the prompt of one step"):
        best.train()


def test_a_checkpoint_without_the_mean(tmp_path, tokenizer):
    make(tmp_path / "whole", tokenizer).train()
    resumed = make(tmp_path / "resumed", tokenizer, average_last=0.5)
    with pytest.raises(PromptTuningError, match=r"resumed at step 8, .* mean of 0 steps of 'default' in place of 2"):
        resumed.train(resume_from_checkpoint=f"{tmp_path}/whole/checkpoint-8")


def changed(checkpoint, change):
    """A checkpoint's states, in which `change` has replaced the means."""
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    attributes = state["stateful_callbacks"]["PromptAveragingCallback"]["attributes"]
    attributes["means"] = change(attributes["means"])
    file.write_text(json.dumps(state))
    seal(checkpoint)


def of_slashes(means):
    """Means whose bytes are those that base64 writes as slashes."""
    vectors = torch.tensor(0x3FFFFFFF, dtype=torch.int32).view(torch.float32).expand(4, 32)
    callback = PromptAveragingCallback()
    callback.means = dict.fromkeys(means, vectors.contiguous())
    return callback.state()["attributes"]["means"]


def test_a_pushed_checkpoint_keeps_the_mean(tmp_path, tokenizer):
    """Whatever its bytes, it does not look like a path, and the run goes on as from the checkpoint on this disk."""
    make(tmp_path / "whole", tokenizer, average_last=0.5).train()
    checkpoint, pushed = tmp_path / "whole/checkpoint-8", tmp_path / "pushed"
    changed(checkpoint, of_slashes)
    pushed.mkdir()
    ends = []
    for folder in (checkpoint, without_pickles(checkpoint, pushed)):
        resumed = make(tmp_path / "resumed", tokenizer, average_last=0.5)
        resumed.train(resume_from_checkpoint=str(folder))
        ends.append(resumed.model.prompt.detach())
    assert torch.equal(*ends)


def test_a_mean_in_the_former_alphabet_is_read(tmp_path, tokenizer):
    make(tmp_path / "whole", tokenizer, average_last=0.5).train()
    ends, checkpoint = [], tmp_path / "whole/checkpoint-8"
    changed(checkpoint, of_slashes)
    for change in (lambda means: means, lambda means: {name: as_before(text) for name, text in means.items()}):
        changed(checkpoint, change)
        resumed = make(tmp_path / "resumed", tokenizer, average_last=0.5)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        ends.append(resumed.model.prompt.detach())
    assert torch.equal(*ends)


def as_before(text):
    former = base64.b64encode(base64.urlsafe_b64decode(text)).decode()
    assert former.startswith("/")
    return former


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text[1:], "padding"),
        (lambda text: text[4:], "509 bytes in place of 512"),
        (lambda text: "é" + text, "only ASCII"),
        (lambda text: None, "it is None, and no text"),
    ],
)
def test_a_damaged_mean(change, fault, tmp_path, tokenizer):
    make(tmp_path / "whole", tokenizer, average_last=0.5).train()
    checkpoint = tmp_path / "whole/checkpoint-8"
    changed(checkpoint, lambda means: {name: change(text) for name, text in means.items() if change(text)})
    resumed = make(tmp_path / "resumed", tokenizer, average_last=0.5)
    told = rf"trainer_state\.json of the checkpoint at step 8 .* 'default\.embedding\.weight': .*{fault}.*up to step 6"
    with pytest.raises(PromptTuningError, match=told):
        resumed.train(resume_from_checkpoint=str(checkpoint))

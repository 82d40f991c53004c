"""Prompts of any name: PEFT saves "default" in a folder's root, and the others in folders of their own."""

import pytest
import torch
from transformers import TrainerCallback

from hf_prompt_tuning import PromptTuningConfig, PromptTuningTrainer, get_prompt_tuning_model
from hf_prompt_tuning.models.create import add_prompt
from tests.shared.foreign_trainers import rows_of
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import arguments
from tests.shared.vanilla_trainer import vanilla

EVERY_STEP = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
RUN = dict(num_train_epochs=2, learning_rate=3e-2, report_to="none")
NAMES = [("mine",), ("default", "b"), ("mine", "b")]


def model_of(names, backbone=None):
    """A model with prompts of these names and of one length; the last one is active."""
    config = PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init="RANDOM", random_range=1.0)
    backbone = tiny_model("llama") if backbone is None else backbone
    model = get_prompt_tuning_model(backbone, config, adapter_name=names[0])
    for name in names[1:]:
        add_prompt(model, name, config)
    model.set_adapter(names[-1])
    return model


class Spoil(TrainerCallback):
    """From the third step on, each step begins with a prompt that is far off."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step >= 2:
            model.prompt.data.normal_(std=9.0)


def require_best(trainer):
    found = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(found), rel=1e-5)
    assert found[-1] > min(found) + 0.01
    assert trainer.model.prompt.requires_grad


@pytest.mark.parametrize("names", NAMES)
def test_the_best_prompt_comes_back(names, tmp_path, tokenizer):
    trainer = PromptTuningTrainer(
        model_of(names),
        arguments(tmp_path, **RUN | EVERY_STEP, load_best_model_at_end=True),
        train_dataset=rows_of(),
        eval_dataset=rows_of(),
        processing_class=tokenizer,
        callbacks=[Spoil()],
    )
    others = [trainer.model.prompt_encoder[name].embedding.weight.clone() for name in names[:-1]]
    trainer.train()
    require_best(trainer)
    for name, before in zip(names[:-1], others, strict=True):
        assert torch.equal(trainer.model.prompt_encoder[name].embedding.weight, before)


def test_the_best_prompt_comes_back_in_the_trainer_of_transformers(tmp_path, tokenizer, caplog):
    """It loads the checkpoint's root, where "default" is, under the active prompt's name."""
    model = model_of(("default", "b"))
    trainer = vanilla(tmp_path, tokenizer, model, [Spoil()], **EVERY_STEP, load_best_model_at_end=True)
    trainer.train()
    require_best(trainer)
    assert "holds the prompt 'b' in a folder of its own, which is loaded" in caplog.text


@pytest.mark.parametrize("names", NAMES)
def test_a_search_keeps_the_best_trials_prompts(names, tmp_path, tokenizer):
    backbone = tiny_model("llama")
    trainer = PromptTuningTrainer(
        model_init=lambda trial: model_of(names, backbone),
        args=arguments(tmp_path, **RUN | {"num_train_epochs": 1}),
        train_dataset=rows_of(),
        eval_dataset=rows_of(),
        processing_class=tokenizer,
    )
    rates = iter([0.5, 1e-3])
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", rate := next(rates), rate)},
        n_trials=2,
        direction="minimize",
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best.objective, rel=1e-5)
    assert list(trainer.model.peft_config) == list(names)
    assert trainer.model.active_adapter == names[-1]
    assert all(weight.requires_grad for weight in trainer.model.prompt_encoder.parameters())


def test_a_checkpoint_without_the_prompt_is_loaded_as_it_is_asked_for(tmp_path):
    """Only a checkpoint that has the prompt in a folder of its own means that one."""
    saved, model = model_of(("default", "b")), model_of(("default", "b"))
    saved.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "b")  # no checkpoint: a folder that a person names
    assert torch.equal(model.prompt, saved.prompt_encoder["default"].embedding.weight)
    (tmp_path / "trainer_state.json").write_text("{}")
    model.load_adapter(tmp_path, "b")
    assert torch.equal(model.prompt, saved.prompt)
    model.load_adapter(tmp_path, "c")  # a new name is no prompt of this model
    assert torch.equal(model.prompt_encoder["c"].embedding.weight, saved.prompt_encoder["default"].embedding.weight)

"""A search re-uses one backbone, drops each trial's prompt, and keeps the best."""

import gc
import json

import pytest
import torch
from transformers import TrainerCallback

from hf_prompt_tuning import (
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_prompt,
)
from tests.shared.searches import Search
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE, arguments


def test_the_best_trial_is_kept_and_the_others_are_dropped(tmp_path, tokenizer, messages):
    search = Search(tmp_path, tokenizer, messages)
    trainer, before, hooks = search.trainer, search.backbone_hash(), search.hooks()
    best = search.run()
    assert trainer.model.get_base_model() is search.backbone
    assert search.backbone_hash() == before and search.hooks() == hooks
    # one prompt lives while the next is made: the trainer's own, at the start
    assert max(search.alive) <= 1
    del search.trainer
    gc.collect()
    assert sum(prompt() is not None for prompt in search.prompts) == 0
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert folders == ["run-0", "run-1", "run-2", "run-3"]
    infos = [json.loads((tmp_path / name / "prompt_tuning.json").read_text()) for name in folders]
    assert len({(len(i["nearest_words"]), i["training"]["learning_rate"]) for i in infos}) > 1
    assert best.objective == min(info["metrics"]["eval_loss"] for info in infos)
    # the trainer holds it, as if it had been trained last
    assert len(trainer.model.prompt) == best.hyperparameters["num_virtual_tokens"]
    assert trainer.args.learning_rate == best.hyperparameters["learning_rate"]
    assert trainer.model.prompt.requires_grad and trainer.model.info.template == TEMPLATE
    trainer.save_model()
    saved = json.loads((tmp_path / "prompt_tuning.json").read_text())
    kept = infos[int(best.run_id)]
    assert {name: saved[name] for name in ("training", "history", "initialization", "metrics")} == {
        name: kept[name] for name in ("training", "history", "initialization", "metrics")
    }
    assert torch.equal(load_prompt(str(tmp_path), backbone=search.backbone)[0].prompt, trainer.model.prompt)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best.objective, rel=1e-6)


def test_the_objective_is_the_metric_that_is_named(tmp_path, tokenizer, messages):
    """Not Trainer's sum of all metrics, perplexity among them."""
    search = Search(tmp_path, tokenizer, messages, metric_for_best_model="accuracy")
    best = search.run(n_trials=2)
    found = [json.loads((tmp_path / f"run-{i}/prompt_tuning.json").read_text())["metrics"] for i in range(2)]
    assert best.objective == max(metrics["eval_accuracy"] for metrics in found)
    with pytest.raises(PromptTuningError, match="metric_for_best_model is 'eval_bleu', and an evaluation gives eval_"):
        Search(tmp_path, tokenizer, messages, metric_for_best_model="bleu").run(n_trials=1)


def test_with_load_best_the_objective_is_that_of_the_prompt_that_is_kept(tmp_path, tokenizer, messages):
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.prompt.data.normal_(std=5.0)

    values = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    search = Search(tmp_path, tokenizer, messages, [Spoil()], load_best_model_at_end=True, **values)
    best = search.run(n_trials=2)
    assert search.trainer.evaluate()["eval_loss"] == pytest.approx(best.objective, rel=1e-6)
    logged = [log["eval_loss"] for log in search.trainer.state.log_history if "eval_loss" in log]
    assert best.objective == pytest.approx(min(logged[:3]), rel=1e-6) and logged[2] > best.objective + 0.01


@pytest.mark.parametrize(
    "values", [{"eval_strategy": "epoch", "average_last": 1.0}, {"eval_strategy": "steps", "eval_steps": 2}]
)
def test_the_objective_is_that_of_the_prompt_that_is_kept(values, tmp_path, tokenizer, messages):
    """The mean of the last steps, and the last step's where the last evaluation was before it."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    search = Search(tmp_path, tokenizer, messages, [Stop()], max_steps=5, **values)
    best = search.run(n_trials=2)
    assert search.trainer.state.global_step == 3
    assert search.trainer.evaluate()["eval_loss"] == pytest.approx(best.objective, rel=1e-6)
    infos = [json.loads((tmp_path / f"run-{i}/prompt_tuning.json").read_text()) for i in range(2)]
    assert best.objective == min(info["metrics"]["eval_loss"] for info in infos)


def test_training_goes_on_from_model_init(tmp_path, tokenizer, messages):
    """`train` makes its model anew, as in Trainer, so two runs are the same."""
    trainer = Search(tmp_path, tokenizer, messages).trainer
    trainer.train()
    first = trainer.model.prompt
    trainer.train()
    assert torch.equal(trainer.model.prompt, first) and trainer.model.prompt is not first
    assert trainer.model.info.example["target"] == " complaint"


def test_data_must_fit_behind_every_trials_prompt(tmp_path, tokenizer, messages):
    rows = [*messages, {"message": "night " * 55, "label": "1"}]
    search = Search(tmp_path, tokenizer, rows)
    room = 128 - len(search.trainer.train_dataset[len(messages)]["input_ids"])
    assert room >= 4
    search.model_init = lambda trial: get_prompt_tuning_model(
        search.backbone, PromptTuningConfig(num_virtual_tokens=room + 1), tokenizer, TEMPLATE
    )
    search.trainer.model_init = search.model_init
    with pytest.raises(PromptTuningError, match="row 13 of the training data has"):
        search.trainer.train()


def test_a_model_and_a_way_to_make_one_are_one_too_many(tmp_path, tokenizer, messages):
    with pytest.raises(PromptTuningError, match="both model and model_init are given"):
        PromptTuningTrainer(
            model=tiny_model("llama"), model_init=lambda: None, args=arguments(tmp_path), processing_class=tokenizer
        )

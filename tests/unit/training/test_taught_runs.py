"""Runs with a teacher: resumed, accumulated, in half precision, searched, saved."""

import json

import pytest
import torch
from transformers import set_seed

from hf_prompt_tuning import (
    PromptMonitorCallback,
    PromptTuningArguments,
    PromptTuningTrainer,
    Teacher,
    load_prompt,
)
from tests.shared.reference import tiny_prompt_model
from tests.shared.resumed_runs import EVALUATED, ROWS, SAVED, assert_same
from tests.shared.teaching import TEXT
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE, TEMPLATE, arguments

FREE_ROWS = [{"message": row["message"], "answer": row["message"][:7]} for row in ROWS]


def make(folder, template=FREE, teacher=None, rows=FREE_ROWS, **values):
    set_seed(len(str(folder)))  # what came before must not matter
    model = tiny_prompt_model("llama", num_virtual_tokens=4)
    return PromptTuningTrainer(
        model=model,
        args=PromptTuningArguments(output_dir=str(folder), predict_with_generate=False, **SAVED | values),
        train_dataset=rows,
        eval_dataset=rows[:6],
        processing_class=make_tokenizer("llama"),
        template=template,
        teacher=teacher or Teacher(text=TEXT),
    )


@pytest.mark.parametrize(
    "values",
    [
        EVALUATED | {"metric_for_best_model": "kl"},
        {"gradient_accumulation_steps": 2, "distillation_weight": 0.5},
        {"template": TEMPLATE, "rows": ROWS, "distill_over": "labels"},
        {"teacher_writes": 2, "teacher_max_new_tokens": 4},
    ],
)
def test_a_resumed_run_ends_with_the_same_prompt_bit_for_bit(tmp_path, values):
    whole = make(tmp_path / "run", **values)
    whole.train()
    again = make(tmp_path / "run", **values)
    with torch.no_grad():
        again.model.prompt.zero_()
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-3"))
    assert_same(again, whole)


@pytest.mark.parametrize("values", [{}, {"template": TEMPLATE, "rows": ROWS, "distill_over": "labels"}])
def test_accumulated_steps_equal_those_of_a_whole_batch(tmp_path, values):
    whole = make(tmp_path / "a", **values | {"per_device_train_batch_size": 4})
    parts = make(tmp_path / "b", **values | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2})
    for trainer in (whole, parts):
        trainer.train()
    torch.testing.assert_close(parts.model.prompt, whole.model.prompt, rtol=1e-3, atol=3e-4)


def test_no_generator_moves_because_of_a_teacher(tmp_path):
    states = []
    for teacher in (Teacher(text=TEXT), Teacher(column="context")):
        rows = [row | {"context": TEXT} for row in FREE_ROWS]
        trainer = make(tmp_path, teacher=teacher, rows=rows)
        trainer.train()
        states.append((torch.get_rng_state(), trainer.model.prompt.detach().clone()))
    assert torch.equal(states[0][0], states[1][0])
    torch.testing.assert_close(states[0][1], states[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("publish", [False, True])
def test_a_saved_prompt_tells_what_taught_it(tmp_path, publish):
    trainer = make(tmp_path, num_train_epochs=1, publish_teacher_text=publish)
    trainer.add_callback(PromptMonitorCallback(trainer, every=1))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "prompt/moved" in log]
    assert logs and all(("prompt/nearest_words" in log) is publish for log in logs)
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    described = json.loads((tmp_path / "saved/prompt_tuning.json").read_text())["teacher"]
    tokens = len(trainer.processing_class(TEXT, add_special_tokens=False)["input_ids"])
    context = len(trainer.processing_class(TEXT + "\n\n", add_special_tokens=False)["input_ids"])
    assert (described["kind"], described["tokens"], described["tokens_saved"]) == ("text", tokens, context - 4)
    assert described["text_milliseconds"] > 0 and described["prompt_milliseconds"] > 0
    assert described.get("text") == (TEXT if publish else None)
    card = (tmp_path / "saved/README.md").read_text()
    assert f"behind a text of {tokens} tokens" in card and f"{context - 4} tokens shorter" in card
    assert (TEXT in card) is publish and "| KL, no context |" in card
    loaded = load_prompt(tmp_path / "saved", backbone=tiny_model("llama"), tokenizer=trainer.processing_class)
    assert loaded.model.info.teacher == described
    # Vectors that learned from a text are near its words.
    assert bool(loaded.model.info.nearest_words) is publish and ("nearest" in card.lower()) is publish
    assert set(trainer.model.info.history) == {"loss", "eval_loss", "eval_kl"}


def test_half_precision_teaches(tmp_path):
    trainer = make(tmp_path, bf16=True, num_train_epochs=1)
    trainer.train()
    full = make(tmp_path, num_train_epochs=1)
    full.train()
    for log, expected in zip(trainer.state.log_history, full.state.log_history, strict=True):
        if "loss" in log:
            assert log["loss"] == pytest.approx(expected["loss"], rel=0.2)


def test_each_trial_of_a_search_is_taught(tmp_path):
    pytest.importorskip("optuna")
    trainer = PromptTuningTrainer(
        model_init=lambda trial: tiny_prompt_model("llama", num_virtual_tokens=3 if trial is None else 5),
        args=arguments(tmp_path, num_train_epochs=1, predict_with_generate=False, metric_for_best_model="kl"),
        train_dataset=FREE_ROWS,
        eval_dataset=FREE_ROWS[:6],
        processing_class=make_tokenizer("llama"),
        template=FREE,
        teacher=Teacher(text=TEXT),
    )
    best = trainer.hyperparameter_search(lambda trial: {"seed": trial.suggest_int("seed", 1, 9)}, n_trials=2)
    assert best.objective == pytest.approx(trainer.evaluate()["eval_kl"], rel=1e-5)

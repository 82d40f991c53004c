"""A checkpoint of several prompts goes on by position, so that their order must be the run's."""

from dataclasses import replace

import pytest

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.several.trainer import MultiPromptTrainer
from hf_prompt_tuning.training.pickle_free import without_pickles
from tests.shared.ensembles import MEMBERS, make
from tests.shared.several_prompts import arguments
from tests.shared.tiny_models import tiny_model

SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def begun(tmp_path, tokenizer, tasks):
    """Resumes a run of two tasks with others."""
    pair = [replace(task, max_steps=4, num_train_epochs=None) for task in tasks[:2]]

    def run(tasks, resume=None, **values):
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path, **SAVED | values), tasks, tokenizer)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run(pair)
    return pair, run, str(tmp_path / "checkpoint-2")


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if "goes on:" in record.getMessage()]


def test_tasks_in_another_order(begun):
    pair, run, checkpoint = begun
    with pytest.raises(
        PromptTuningError, match=r"of the prompts \['complaints', 'reviews'\], .* trains \['reviews', 'complaints'\]"
    ):
        run(pair[::-1], checkpoint)
    rates = [group["initial_lr"] for group in run(pair, checkpoint).optimizer.param_groups]
    assert rates == [0.03, 0.1]


def test_a_resumed_runs_checkpoint_and_a_pushed_one_know_the_order(begun, tmp_path):
    pair, run, checkpoint = begun
    run(pair, checkpoint)
    (tmp_path / "hub").mkdir()
    without_pickles(tmp_path / "checkpoint-4", tmp_path / "hub")
    with pytest.raises(PromptTuningError, match="resume with the same order"):
        run(pair[::-1], str(tmp_path / "hub"))


def test_members_in_another_order(tmp_path, messages):
    make(tmp_path, messages, **SAVED).train()
    moved = make(tmp_path, messages, members=[MEMBERS[1], MEMBERS[0], MEMBERS[2]], **SAVED)
    before = {name: weight.detach().clone() for name, weight in moved.prompts.items()}
    with pytest.raises(PromptTuningError, match=r"\['one', 'two', 'three'\], .* trains \['two', 'one', 'three'\]"):
        moved.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(weight.equal(before[name]) for name, weight in moved.prompts.items())


def test_a_tasks_changed_rate_is_told(begun, caplog):
    pair, run, checkpoint = begun
    run(pair, checkpoint)
    assert warnings(caplog) == []
    run([pair[0], replace(pair[1], learning_rate=0.5)], checkpoint)
    (message,) = warnings(caplog)
    assert message.startswith("learning_rate of 'reviews' is 0.5, and the checkpoint's 0.1 goes on")


def test_what_all_tasks_share_is_told_of_each(begun, caplog):
    pair, run, checkpoint = begun
    run(pair, checkpoint, weight_decay=0.2)
    assert [message.partition(",")[0] for message in warnings(caplog)] == [
        "weight_decay of 'complaints' is 0.2",
        "weight_decay of 'reviews' is 0.2",
    ]

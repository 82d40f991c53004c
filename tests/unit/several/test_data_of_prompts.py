"""What data and how many steps the tasks of a run may have."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.several.trainer import MultiPromptTrainer
from tests.shared.ensembles import MEMBERS, TEMPLATE, make, state_of
from tests.shared.several_prompts import arguments
from tests.shared.tiny_models import make_tokenizer, tiny_model


def stream(rows):
    return Dataset.from_list(rows).to_iterable_dataset()


class TestRefusals:
    def test_several_sets_to_evaluate_a_task_on(self, tmp_path, tokenizer, tasks):
        sets = {"x": tasks[0].eval_dataset[:4], "y": tasks[0].eval_dataset[4:]}
        several, backbone = [tasks[1], replace(tasks[0], eval_dataset=sets)], tiny_model("llama")
        before = state_of(backbone)
        with pytest.raises(PromptTuningError, match=r"task 'complaints' is to be evaluated on a dict of 'x', 'y',"):
            MultiPromptTrainer(backbone, arguments(tmp_path), several, tokenizer)
        assert state_of(backbone) == before

    @pytest.mark.parametrize("how", ["evaluate", "evaluate_untuned", "predict_tasks"])
    def test_several_sets_for_a_task(self, how, tmp_path, tokenizer, tasks):
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer)
        with pytest.raises(
            PromptTuningError, match=r"task 'reviews' is to be evaluated on a dict of 'x', and takes one"
        ):
            getattr(trainer, how)({"reviews": {"x": tasks[1].eval_dataset}})

    def test_a_stream_to_train_on(self, tmp_path, tokenizer, tasks):
        backbone = tiny_model("llama")
        before = state_of(backbone)
        tasks[1].train_dataset = stream(tasks[1].train_dataset)
        with pytest.raises(PromptTuningError, match=r"the reviews training data is a IterableDataset, .* no length"):
            MultiPromptTrainer(backbone, arguments(tmp_path), tasks, tokenizer)
        assert state_of(backbone) == before

    def test_a_stream_for_an_ensemble(self, tmp_path, messages):
        backbone = tiny_model("llama")
        before = state_of(backbone)
        with pytest.raises(PromptTuningError, match=r"the training data is a IterableDataset, .* give a list of them"):
            EnsembleTrainer(
                *(backbone, arguments(tmp_path), MEMBERS, stream(messages), None, make_tokenizer(), TEMPLATE)
            )
        assert state_of(backbone) == before


def test_a_stream_to_evaluate_on(tmp_path, tokenizer, tasks):
    """It gives the metrics of its rows, and their number is not recorded."""
    trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer)
    expected = trainer.evaluate()["eval_reviews_loss"]
    tasks[1].eval_dataset = stream(tasks[1].eval_dataset)
    tasks[1].template = replace(tasks[1].template, label_words={"awful": "awful", "great": "great"})
    trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer)
    assert trainer.evaluate()["eval_reviews_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.save_model()
    assert trainer.model.prompt_info["reviews"].data == {"training_rows": 7}


def test_a_run_of_no_step_leaves_the_prompts(tmp_path, tokenizer, tasks):
    none = [replace(task, num_train_epochs=None, max_steps=None) for task in tasks]
    trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path, max_steps=0), none, tokenizer)
    before = {name: weight.detach().clone() for name, weight in trainer.prompts.items()}
    trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.prompts.items())
    trainer.save_model()


def test_a_tasks_own_steps_override_a_run_of_none(tmp_path, tokenizer, tasks):
    tasks = [replace(tasks[0]), replace(tasks[2], max_steps=2)]
    trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path, max_steps=0), tasks, tokenizer)
    before = {name: weight.detach().clone() for name, weight in trainer.prompts.items()}
    trainer.train()
    moved = {name: not torch.equal(weight, before[name]) for name, weight in trainer.prompts.items()}
    assert trainer.state.global_step == 2 and moved == {"complaints": False, "answers": True}


def test_an_ensemble_of_no_step(tmp_path, messages):
    trainer = make(tmp_path, messages, max_steps=0)
    before = {name: weight.detach().clone() for name, weight in trainer.prompts.items()}
    trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.prompts.items())

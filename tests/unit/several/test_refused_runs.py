"""A refused run leaves the prompts of its model as they were; an accepted one tells what it replaces."""

from copy import deepcopy
from dataclasses import replace

import pytest
from transformers import TrainerCallback

from hf_prompt_tuning import PromptHubCallback, PromptTemplate, PromptTuningError
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.several.task import PromptTask, model_with_prompts
from hf_prompt_tuning.several.trainer import MultiPromptTrainer
from tests.shared.ensembles import TEMPLATE, state_of
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_models import tiny_model

OLD = PromptTemplate(source="{message} ?", label_column="label", label_words={"1": "yes", "2": "no"})
BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.fixture(params=[MultiPromptTrainer, EnsembleTrainer])
def trained(request, tmp_path, tokenizer, messages):
    """Makes a trainer of two prompts that have an older template, of which the second is active."""
    tasks = [PromptTask(name, random_prompt(4), seed=seed, template=OLD) for seed, name in enumerate("ab")]
    model = model_with_prompts(tiny_model("llama"), tasks, tokenizer, 0)
    model.set_adapter("b")

    def make(values, options, rows=messages[:4]):
        args = arguments(tmp_path, **values)
        if request.param is EnsembleTrainer:
            members = [replace(task, template=None) for task in tasks]
            return EnsembleTrainer(model, args, members, messages, rows, tokenizer, TEMPLATE, **options)
        own = [replace(task, template=TEMPLATE, train_dataset=messages, eval_dataset=rows) for task in tasks]
        return MultiPromptTrainer(model, args, own, tokenizer, **options)

    return model, make


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (BEST, {}, "load_best_model_at_end"),
        ({}, {"teacher": object()}, "teacher is given"),
        ({}, {"callbacks": [PromptHubCallback]}, "PromptHubCallback pushes one prompt"),
        ({}, {"optimizers": (object(), None)}, "optimizers are given"),
        ({"batch_eval_metrics": True}, {}, "batch_eval_metrics is given"),
        ({}, {"compute_loss_func": len}, "compute_loss_func is given"),
        ({"layout": "none such"}, {}, "none such"),
    ],
)
def test_the_prompts_stay_as_they_were(trained, values, options, message):
    model, make = trained
    infos, before = {name: deepcopy(info) for name, info in model.prompt_info.items()}, state_of(model)
    with pytest.raises(PromptTuningError, match=message):
        make(values, options)
    assert model.active_adapter == "b" and state_of(model) == before
    assert dict(model.prompt_info) == infos


def test_also_where_transformers_refuses(trained):
    model, make = trained
    infos = {name: deepcopy(info) for name, info in model.prompt_info.items()}
    with pytest.raises(ValueError, match="eval_strategy"):
        make({"eval_strategy": "epoch"}, {"callbacks": [TrainerCallback()]}, rows=None)
    assert model.active_adapter == "b" and dict(model.prompt_info) == infos


def test_a_template_that_is_replaced_is_told_of_each_prompt(trained, caplog):
    model, make = trained
    make({}, {})
    assert {info.template.source for info in model.prompt_info.values()} == {TEMPLATE.source}
    replaced = [
        message for message in caplog.messages if "is replaced by the one that the trainer is given" in message
    ]
    assert [message.partition(",")[0] for message in replaced] == [
        "The template of the prompt 'a'",
        "The template of the prompt 'b'",
    ]
    assert all("with the source '{message} ?'" in message for message in replaced)
    caplog.clear()
    make({}, {})
    assert not [message for message in caplog.messages if "is replaced" in message]

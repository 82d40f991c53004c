"""Runs that push their prompts."""

from hf_prompt_tuning import MultiPromptTrainer, PromptTuningConfig, PromptTuningTrainer, get_prompt_tuning_model
from tests.shared import ensembles
from tests.shared.several_prompts import arguments
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE

DRAWN = dict(num_virtual_tokens=4, prompt_tuning_init="SAMPLE_VOCAB")
SPOKEN = dict(num_virtual_tokens=6, prompt_tuning_init_text="complaint or not")


def model_of(tokenizer, **config):
    return get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(**config), tokenizer, TEMPLATE)


def trainer_of(folder, tokenizer, messages, config, evaluates=True, **values):
    values = dict(save_strategy="steps", save_steps=2, max_steps=4, push_to_hub=True, hub_model_id="alice/p") | values
    return PromptTuningTrainer(
        model_of(tokenizer, **config),
        arguments(folder, report_to="none", hub_always_push=True, **values),
        train_dataset=messages,
        eval_dataset=messages[:6] if evaluates else None,
        processing_class=tokenizer,
        callbacks=values.pop("callbacks", None),
    )


def several(folder, tokenizer, tasks, **values):
    values = dict(max_steps=2, push_to_hub=True, hub_model_id="alice/p", hub_always_push=True) | values
    return MultiPromptTrainer(tiny_model("llama"), arguments(folder, report_to="none", **values), tasks, tokenizer)


def ensemble(folder, messages, members=ensembles.MEMBERS, **values):
    values = dict(push_to_hub=True, hub_model_id="alice/p", hub_always_push=True, report_to="none") | values
    return ensembles.make(folder, messages, members=members, **values)

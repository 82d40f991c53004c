"""Named recipes set the arguments that are not given, and nothing else."""

import copy
import dataclasses
import pickle

import pytest
from transformers import HfArgumentParser

from hf_prompt_tuning import (
    EnsembleTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.training.recipes import RECIPES, missing_values
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import tiny_model

TEMPLATE = PromptTemplate("Message : {message} Label :", label_column="label", label_words={"1": "sad", "2": "glad"})


def values_of(args, names):
    return {name: getattr(value := getattr(args, name), "value", value) for name in names}


def make(folder, **values):
    return PromptTuningArguments(str(folder), use_cpu=True, **values)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_all_its_values_and_leaves_the_rest(name, tmp_path):
    args, plain = make(tmp_path, recipe=name), make(tmp_path)
    recipe = RECIPES[name].training
    assert values_of(args, recipe) == dict(recipe)
    others = {f.name for f in dataclasses.fields(args)} - set(recipe) - {"recipe"}
    assert {name for name in others if getattr(args, name) != getattr(plain, name)} == set()


def test_recipes_name_arguments_that_there_are():
    of_training = {f.name for f in dataclasses.fields(PromptTuningArguments)}
    of_prompt = {f.name for f in dataclasses.fields(PromptTuningConfig)}
    for recipe in RECIPES.values():
        assert set(recipe.training) <= of_training and set(recipe.prompt) <= of_prompt


def test_what_is_given_wins_even_where_it_is_the_default(tmp_path):
    args = make(tmp_path, recipe="lester2021", learning_rate=3e-2)
    assert args.learning_rate == 3e-2 and args.per_device_train_batch_size == 32
    assert PromptTuningArguments(str(tmp_path), recipe="peft", use_cpu=True, num_train_epochs=3).num_train_epochs == 3


def test_what_is_given_stands_for_what_says_the_same(tmp_path):
    args = make(tmp_path, recipe="lester2021", num_train_epochs=3)
    assert (args.max_steps, args.num_train_epochs) == (-1, 3)
    assert make(tmp_path, recipe="peft", max_steps=7).num_train_epochs == 10
    words = {"prompt_tuning_init": "TEXT", "num_virtual_tokens": 8}
    assert missing_values(words, {"prompt_tuning_init_text"}) == {"num_virtual_tokens": 8}
    assert missing_values(words, {"init_prompt"}) == {}


def test_a_text_goes_before_examples():
    examples = RECIPES["examples"].prompt
    assert missing_values(examples, {"prompt_tuning_init_text"}) == {"prompt_tuning_init": "EXAMPLES"}
    assert missing_values(examples, {"init_prompt"}) == missing_values(examples, {"prompt_tuning_init"}) == {}


def test_copies_keep_what_was_given(tmp_path):
    args = make(tmp_path, recipe="lester2021", learning_rate=3e-2)
    for other in (copy.copy(args), copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert other.given == args.given == {"output_dir", "use_cpu", "recipe", "learning_rate"}
        assert other.learning_rate == 3e-2
    assert dataclasses.replace(args, logging_steps=3).per_device_train_batch_size == 32


def test_a_parser_that_passes_every_default(tmp_path):
    """It cannot tell a given default from one that is not, so what differs from the default counts as given."""
    flags = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--recipe", "lester2021", "--weight_decay", "0.5"]
    args = HfArgumentParser(PromptTuningArguments).parse_args_into_dataclasses(flags)[0]
    assert (args.learning_rate, args.weight_decay, args.max_steps) == (0.3, 0.5, 30_000)


def test_an_unknown_recipe(tmp_path):
    with pytest.raises(PromptTuningError, match="give one of default, few_shot, examples, lester2021, peft"):
        make(tmp_path, recipe="best")


def test_what_is_for_auto_alone(tmp_path):
    for values in ({"recipe_budget": 3.0}, {"recipe_lengths": [4]}):
        with pytest.raises(PromptTuningError, match=r"recipe_\w+ is .*, and is for the recipe auto; give both"):
            make(tmp_path, recipe="peft", **values)
        assert make(tmp_path, recipe="auto", **values).learning_rate == 3e-2


def test_the_log_says_what_is_set(tmp_path, caplog):
    caplog.set_level("INFO", "hf_prompt_tuning")
    args = make(tmp_path, recipe="few_shot", num_train_epochs=3)
    PromptTuningTrainer(tiny_prompt_model("llama", num_virtual_tokens=4), args)
    assert caplog.messages == ["The recipe few_shot sets per_device_train_batch_size=8, average_last=0.5."]


def test_the_arguments_of_examples_with_another_start(tmp_path, caplog):
    """From Python, a recipe says nothing about the prompt, which is easily overlooked."""
    PromptTuningTrainer(tiny_prompt_model("llama"), make(tmp_path, recipe="few_shot"))
    assert "starts from training rows" not in caplog.text
    PromptTuningTrainer(tiny_prompt_model("llama"), make(tmp_path, recipe="examples"))
    assert (
        "The recipe examples is for a prompt that starts from training rows, and 'default' started from RANDOM; give "
        'PromptTuningConfig(prompt_tuning_init="EXAMPLES") (--prompt_tuning_init), or another recipe.'
    ) in caplog.text


def test_examples_may_be_in_a_prompt_that_another_goes_on_from(tokenizer, messages, tmp_path, caplog):
    """Such a prompt has rows in it; one of which nothing is recorded may have any start. All are told of."""
    examples = PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init="EXAMPLES")
    first = get_prompt_tuning_model(tiny_model("llama"), examples, tokenizer, TEMPLATE, train_dataset=messages)
    first.save_pretrained(tmp_path / "first")
    model = get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(init_prompt=str(tmp_path / "first")))
    PromptTuningTrainer(model, make(tmp_path, recipe="examples"))
    assert "starts from training rows" not in caplog.text
    model.info.initialization = {}
    PromptTuningTrainer(model, make(tmp_path, recipe="examples"))
    assert "'default' started from what is not recorded" in caplog.text
    members = [PromptTask("a", examples), PromptTask("b", PromptTuningConfig(num_virtual_tokens=4))]
    run = {"members": members, "train_dataset": messages, "processing_class": tokenizer, "template": TEMPLATE}
    EnsembleTrainer(tiny_model("llama"), make(tmp_path, recipe="examples"), **run)
    assert "'b' started from SAMPLE_VOCAB" in caplog.text and "'a' started" not in caplog.text

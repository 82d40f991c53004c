"""Prompts that train together start from training rows (`EXAMPLES`) as each would alone."""

import pytest
import torch

from hf_prompt_tuning import (
    EnsembleTrainer,
    FieldTrainer,
    MultiPromptTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
)
from hf_prompt_tuning.data.examples import example_ids
from tests.shared.start_rows import EXAMPLES, TEMPLATE, arguments
from tests.shared.tiny_models import make_tokenizer, tiny_model


def start_of(rows, tokenizer, seed, length=30):
    embed = tiny_model("llama").get_input_embeddings()
    torch.manual_seed(seed)
    return embed(torch.tensor(example_ids(rows, TEMPLATE, tokenizer, length)))


def test_each_task_starts_from_its_own_rows(tokenizer, messages, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=30, **EXAMPLES)
    halves = {"first": messages[:6], "second": messages[6:]}
    tasks = [PromptTask(name, config, rows, template=TEMPLATE, seed=3) for name, rows in halves.items()]
    drawn = PromptTuningConfig(num_virtual_tokens=30)
    tasks.insert(1, PromptTask("drawn", drawn, messages[:6], template=TEMPLATE, seed=3))
    trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, processing_class=tokenizer)
    for name, rows in halves.items():
        assert torch.equal(trainer.prompts[name], start_of(rows, tokenizer, 3))


def test_a_field_draws_twice(tokenizer, messages, tmp_path, caplog):
    """Its ten prompts have two starts, and the log says it of each."""
    caplog.set_level("INFO", "hf_prompt_tuning")
    config = PromptTuningConfig(num_virtual_tokens=30, **EXAMPLES)
    run = {"processing_class": tokenizer, "train_dataset": messages, "template": TEMPLATE}
    field = FieldTrainer(tiny_model("llama"), arguments(tmp_path, recipe="auto"), config, **run)
    assert len(field.tasks) == 10
    assert caplog.text.count("The prompt starts from training rows:") == 2


def test_trainers_that_make_the_prompt_give_their_rows(tokenizer, messages, tmp_path):
    config, run = PromptTuningConfig(num_virtual_tokens=30, **EXAMPLES), {"processing_class": tokenizer}
    run |= {"train_dataset": messages, "template": TEMPLATE}
    one = PromptTuningTrainer(tiny_model("llama"), arguments(tmp_path, seed=7), prompt_config=config, **run)
    assert torch.equal(one.model.prompt, start_of(messages, tokenizer, 7))
    members = [PromptTask("a", config, seed=3), PromptTask("b", config, seed=4)]
    several = EnsembleTrainer(tiny_model("llama"), arguments(tmp_path), members=members, **run)
    for name, seed in (("a", 3), ("b", 4)):
        assert torch.equal(several.prompts[name], start_of(messages, tokenizer, seed))


def test_a_field_starts_from_no_row_that_it_compares_by(tokenizer, messages, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=30, **EXAMPLES)
    args = arguments(tmp_path, recipe="auto", seed=7)
    run = {"processing_class": tokenizer, "train_dataset": messages, "template": TEMPLATE}
    field = FieldTrainer(tiny_model("llama"), args, config, **run)
    first = [messages[i] for i in field._first]
    assert 0 < len(first) < len(messages)
    started = {task.name: task.seed for task in field.tasks.values()}
    assert set(started.values()) == {7, 8}
    for name, seed in started.items():
        assert torch.equal(field.prompts[name], start_of(first, tokenizer, seed))
    given = FieldTrainer(tiny_model("llama"), args, config, eval_dataset=messages[:4], **run)
    assert torch.equal(given.prompts["prompt_1"], start_of(messages, tokenizer, 7))


def test_draws_of_other_rows_differ(tmp_path):
    """Two draws that happen to be equal would be one prompt twice; then the second is drawn again."""
    rows = [{"message": "the parcel never came " * 9 + f"number {i}", "label": str(1 + i % 2)} for i in range(16)]
    config, tokenizer = PromptTuningConfig(num_virtual_tokens=16, **EXAMPLES), make_tokenizer("gpt2")
    for seed in range(12):
        args = arguments(tmp_path, recipe="auto", seed=seed)
        field = FieldTrainer(tiny_model("llama"), args, config, rows, None, tokenizer, TEMPLATE)
        assert not torch.equal(field.prompts["prompt_1"], field.prompts["prompt_6"])


def test_draws_that_cannot_differ_are_refused(tokenizer, tmp_path):
    """The fixed end of the template is longer than the prompt."""
    words = {"1": "sad", "2": "glad"}
    template = PromptTemplate("{message} Is it sad or is it not ? Label :", label_column="label", label_words=words)
    rows = [{"message": f"number {i}", "label": "1"} for i in range(16)]
    config, args = PromptTuningConfig(num_virtual_tokens=20, **EXAMPLES), arguments(tmp_path, recipe="auto")
    with pytest.raises(PromptTuningError, match=r"'prompt_1' and 'prompt_6' start .* num_virtual_tokens \(20\)"):
        FieldTrainer(tiny_model("llama"), args, config, rows, None, tokenizer, template)


def test_members_of_one_seed_are_told_of_seeds(tokenizer, messages, tmp_path):
    members = [PromptTask(name, PromptTuningConfig(num_virtual_tokens=30, **EXAMPLES)) for name in "ab"]
    run = {"processing_class": tokenizer, "train_dataset": messages, "template": TEMPLATE}
    with pytest.raises(PromptTuningError, match=r"'a' and 'b' start .* Draw them by other seeds \(--prompt"):
        EnsembleTrainer(tiny_model("llama"), arguments(tmp_path), members=members, **run)


@pytest.mark.parametrize("row", range(12))
def test_an_error_names_the_callers_row(tokenizer, messages, tmp_path, row):
    """A field draws from some of the rows; their numbers are those of all."""
    rows = [one | {"message": None} if number == row else one for number, one in enumerate(messages)]
    config, args = PromptTuningConfig(num_virtual_tokens=400, **EXAMPLES), arguments(tmp_path, recipe="auto")
    with pytest.raises(PromptTuningError, match=rf"^row {row + 1} of the training data: "):
        FieldTrainer(tiny_model("llama"), args, config, rows, None, tokenizer, TEMPLATE)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"train_dataset": [{"message": "x", "label": "7"}], "template": TEMPLATE},
            r"row 1 of the second training data: .*'7'",
        ),
        (
            {"train_dataset": [{"input_ids": [4, 5], "labels": [4, 5]}]},
            r"the second training data has no template; .* Give a template, or another start",
        ),
        (
            {"train_dataset": [{"input_ids": [4, 5], "labels": [4, 5]}], "template": TEMPLATE},
            r"the second training data is rows of token ids",
        ),
    ],
)
def test_an_error_names_the_task(tokenizer, messages, tmp_path, task, message):
    config = PromptTuningConfig(num_virtual_tokens=30, **EXAMPLES)
    tasks = [PromptTask("first", config, messages, template=TEMPLATE), PromptTask("second", config, **task)]
    with pytest.raises(PromptTuningError, match=message):
        MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, processing_class=tokenizer)

"""Several prompts in one run with pictures: each becomes what it becomes alone."""

import json

import pytest
import torch
from datasets import Dataset

from hf_prompt_tuning import (
    ChatTemplate,
    EnsembleTrainer,
    FieldTrainer,
    MultiPromptTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_ensemble,
    load_prompt,
)
from tests.shared.picture_rows import LABELS
from tests.shared.picture_rows import ROWS as FEW
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_processors import picture, seeing_model, tiny_processor

TEXTS = PromptTemplate(source="{text} Answer :", label_column="label", label_words={"a": "great", "b": "awful"})
ROWS = [
    *FEW,
    {"image": picture(12, 12, 2), "question": "of a film", "label": "yes"},
    {"image": picture(30, 20, 3), "question": "the plot", "label": "no"},
]
WORDS = [{"text": text, "label": label} for text, label in (("never came", "b"), ("thank you", "a"), ("a dog", "b"))]


def chat(question, answer, *images):
    parts = [part for _ in images for part in ({"type": "image"}, {"type": "text", "text": "and"})]
    parts.append({"type": "text", "text": question})
    answer = [{"type": "text", "text": answer}]
    return {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}],
        "images": list(images),
    }


CHATS = [
    chat("a small dog ?", "great help", picture(20, 30), picture(16, 16, 1)),
    chat("the old town", "nobody answers"),
    chat("and night", "thank you", picture(9, 30, 2)),
]


def tasks():
    return [
        PromptTask("seen", random_prompt(3), ROWS, ROWS, LABELS, learning_rate=0.1),
        PromptTask("told", random_prompt(4), CHATS, CHATS, ChatTemplate(max_target_length=5), learning_rate=0.05),
        PromptTask("read", random_prompt(2), WORDS, WORDS, TEXTS, learning_rate=0.2, per_device_train_batch_size=2),
    ]


def alone(task, folder, name, processor, **values):
    """What PromptTuningTrainer makes of one of the tasks."""
    size = task.per_device_train_batch_size or 4
    args = arguments(folder, learning_rate=task.learning_rate, per_device_train_batch_size=size, **values)
    backbone = seeing_model(name, processor)
    torch.manual_seed(args.seed if task.seed is None else task.seed)
    model = get_prompt_tuning_model(backbone, random_prompt(task.config.num_virtual_tokens))
    trainer = PromptTuningTrainer(
        model,
        args,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        processing_class=processor,
        template=task.template,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3", "qwen2_5_vl"])
def test_each_prompt_is_the_one_trained_alone(name, tmp_path):
    """With pictures in templates and in chats, beside a task of texts; and accumulation over uneven counts."""
    processor = tiny_processor(name)
    values = {"gradient_accumulation_steps": 2}
    trainer = MultiPromptTrainer(seeing_model(name, processor), arguments(tmp_path, **values), tasks(), processor)
    before = {name: weight.detach().clone() for name, weight in trainer.prompts.items()}
    trainer.train()
    metrics, outputs = trainer.evaluate(), trainer.predict_tasks({"seen": ROWS, "told": CHATS})
    for task in tasks():
        expected = alone(task, tmp_path / task.name, name, processor, **values)
        right = expected.model.prompt
        assert (right - before[task.name]).abs().max() > 0.01
        torch.testing.assert_close(trainer.prompts[task.name], right, rtol=1e-4, atol=1e-5)
        for key, value in expected.evaluate().items():
            if key.removeprefix("eval_") in ("loss", "perplexity", "accuracy", "f1", "exact_match", "rougeL"):
                assert metrics[f"eval_{task.name}_{key.removeprefix('eval_')}"] == pytest.approx(value, rel=1e-3)
        if task.name in outputs:
            predicted = expected.predict(task.eval_dataset).predictions
            if task.name == "told":
                assert outputs["told"].predictions == predicted
            else:
                assert outputs["seen"].predictions == pytest.approx(predicted, rel=1e-3)
    trainer.save_model()
    info = json.loads((tmp_path / "seen/prompt_tuning.json").read_text())
    assert info["data"]["picture_columns"] == "image"
    loaded = load_prompt(tmp_path / "told", backbone=seeing_model(name, processor), tokenizer=processor)
    torch.testing.assert_close(loaded.model.prompt, trainer.prompts["told"])


def test_a_task_of_token_ids_comes_first(tmp_path):
    """The columns of pictures are kept for the tasks behind it."""
    processor = tiny_processor("gemma3")
    ids = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    first = PromptTask("ids", random_prompt(2), Dataset.from_list(ids), Dataset.from_list(ids), learning_rate=0.1)
    both = [first, tasks()[0]]
    trainer = MultiPromptTrainer(seeing_model("gemma3", processor), arguments(tmp_path), both, processor)
    trainer.train()
    expected = alone(both[1], tmp_path / "seen", "gemma3", processor)
    torch.testing.assert_close(trainer.prompts["seen"], expected.model.prompt, rtol=1e-4, atol=1e-5)
    assert trainer.evaluate()["eval_seen_loss"] == pytest.approx(expected.evaluate()["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["llava", "idefics3", "qwen2_5_vl"])
def test_an_ensemble(name, tmp_path):
    processor = tiny_processor(name)
    members = [PromptTask(f"p{i}", random_prompt(2 + i), learning_rate=0.1 * i, seed=i) for i in (1, 2, 3)]
    trainer = EnsembleTrainer(
        seeing_model(name, processor), arguments(tmp_path), members, ROWS, ROWS, processor, LABELS
    )
    trainer.train()
    metrics, scores = trainer.evaluate(), trainer.predict(ROWS).predictions
    for g, member in enumerate(members):
        task = PromptTask(**vars(member) | {"train_dataset": ROWS, "eval_dataset": ROWS, "template": LABELS})
        expected = alone(task, tmp_path / member.name, name, processor)
        torch.testing.assert_close(trainer.prompts[member.name], expected.model.prompt, rtol=1e-4, atol=1e-5)
        assert scores[:, g] == pytest.approx(expected.predict(ROWS).predictions, rel=1e-3)
        assert metrics[f"eval_{member.name}_loss"] == pytest.approx(expected.evaluate()["eval_loss"], rel=1e-4)
    trainer.save_model()
    loaded = load_ensemble(tmp_path, backbone=seeing_model(name, processor), tokenizer=processor)
    assert loaded.scores(ROWS) == pytest.approx(scores, rel=1e-3)
    assert [record["prediction"] for record in loaded.predict(ROWS, batch_size=2)] == [
        record["prediction"] for record in loaded.predict(ROWS)
    ]


@pytest.mark.parametrize("name", ["idefics3", "qwen2_5_vl"])
def test_a_field(name, tmp_path):
    """The prompt that is left learned what it would have learned without the others."""
    processor = tiny_processor(name)
    trainer = FieldTrainer(
        seeing_model(name, processor),
        arguments(tmp_path, recipe="auto", num_train_epochs=10, max_grad_norm=1.0, average_last=0.0),
        prompt_config=PromptTuningConfig(num_virtual_tokens=2),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        processing_class=processor,
        template=LABELS,
    )
    trainer.train()
    kept = trainer.end.prompt
    task = trainer.tasks[kept]
    assert trainer.end.losses[kept] < trainer.end.losses["no prompt"]
    expected = PromptTuningTrainer(
        seeing_model(name, processor),
        arguments(
            tmp_path / "one",
            num_train_epochs=10,
            max_grad_norm=1.0,
            learning_rate=task.learning_rate,
            seed=task.seed if task.seed is not None else 42,
            data_seed=42,
        ),
        train_dataset=ROWS,
        processing_class=processor,
        template=LABELS,
        prompt_config=task.config,
    )
    expected.train()
    if trainer.end.kind == "one":
        torch.testing.assert_close(trainer.prompts[kept], expected.model.prompt, rtol=1e-3, atol=1e-4)
    assert trainer.evaluate()["eval_accuracy"] >= 0.4

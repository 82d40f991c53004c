"""What a teacher may be, and how a run with one is evaluated."""

import json
import math
from functools import partial

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    MultiPromptTrainer,
    PromptTask,
    PromptTuningArguments,
    PromptTuningError,
    PromptTuningTrainer,
    Teacher,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.layouts.base import IGNORED
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.places import place_config
from tests.shared.teaching import ROWS, TEXT, kl, logits_behind, logits_of_text, taught
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE, TEMPLATE, arguments, losses

make = partial(taught, eval_rows=ROWS)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "given nothing"),
        ({"text": "a", "column": "b"}, "given text and column"),
        ({"text": " "}, "text is ' '"),
        ({"text": 3}, "text is 3"),
        ({"messages": []}, "messages"),
        ({"prompt": 3}, "prompt is a int"),
        ({"text": "a", "separator": None}, "separator is None"),
    ],
)
def test_an_invalid_teacher_is_refused(values, words):
    with pytest.raises(PromptTuningError, match=words):
        Teacher(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"distillation_temperature": 0.0}, "distillation_temperature is 0.0"),
        ({"distillation_weight": 1.5}, "distillation_weight is 1.5"),
        ({"teacher_top_k": 0}, "teacher_top_k is 0"),
        ({"distill_over": "words"}, "distill_over is 'words'"),
        ({"teacher_writes": 0}, "teacher_writes is 0"),
        ({"teacher_writes": 2, "teacher_temperature": 0.0}, "all answers to a row are the same"),
        ({"teacher_top_p": 0.0}, "teacher_top_p 0.0"),
        ({"teacher_max_new_tokens": 0}, "teacher_max_new_tokens is 0"),
    ],
)
def test_invalid_arguments_are_refused(tmp_path, values, words):
    with pytest.raises(PromptTuningError, match=words):
        arguments(tmp_path, **values)


@pytest.mark.parametrize(
    ("teacher", "values", "words"),
    [
        ("a text", {}, "teacher is 'a text'"),
        ([], {}, "empty list"),
        (Teacher(prompt="default"), {}, "the one that is taught"),
        (Teacher(prompt="nowhere/to/be/found"), {}, "neither a folder"),
        (Teacher(column="context"), {}, "no column of the training data"),
        (Teacher(column="message"), {}, "the student would read it, too"),
        (Teacher(messages=[{"role": "user", "content": "a"}]), {}, "the rows are no chats"),
        (Teacher(text="day and night " * 60), {}, "128 positions"),
        (None, {"distill_over": "labels"}, "the template has none"),
        (None, {"template": TEMPLATE, "rows": None, "eval_rows": None, "teacher_writes": 1}, "need no answers"),
        (None, {"others": {"data_collator": lambda rows: rows}}, "data_collator is a function"),
    ],
)
def test_a_teacher_that_does_not_suit_the_run_is_refused(tmp_path, teacher, values, words):
    with pytest.raises(PromptTuningError, match=words):
        make(tmp_path, teacher, **values)


def test_a_row_without_a_text_for_the_teacher_is_named(tmp_path):
    rows = [row | {"context": "a text"} for row in ROWS]
    rows[2]["context"] = None
    with pytest.raises(PromptTuningError, match="row 3 of the training data: the row has no text for the teacher"):
        make(tmp_path, Teacher(column="context"), rows)


def test_a_chat_with_a_system_turn_of_its_own_is_refused(tmp_path):
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    rows = [{"messages": [*chat, {"role": "assistant", "content": "no"}]}]
    tokenizer = chat_tokenizer("chatml")
    options = {"model": get_prompt_tuning_model(tiny_model("llama"), place_config("start"))}
    options |= {"train_dataset": rows, "processing_class": tokenizer, "template": ChatTemplate(chat=ChatFormat())}
    with pytest.raises(PromptTuningError, match="row 1 of the training data: the row has a system turn of its own"):
        PromptTuningTrainer(args=arguments(tmp_path), teacher=Teacher(text=TEXT), **options)
    shots = Teacher(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    trainer = PromptTuningTrainer(args=arguments(tmp_path), teacher=shots, **options)
    text = tokenizer.decode(trainer.train_dataset[0]["teacher_0_input_ids"])
    assert [part.split("\n")[0] for part in text.split("<|im_start|>")[1:]] == [
        *("system", "user", "assistant", "user", "assistant"),
    ]
    labelled = [i for i in trainer.train_dataset[0]["teacher_0_labels"] if i != IGNORED]
    assert tokenizer.decode(labelled) == "no<|im_end|>"


def test_streams_and_several_prompts_and_dropout_are_refused(tmp_path):
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(PromptTuningError, match="is a IterableDataset, and a teacher reads rows that have a length"):
        make(tmp_path, rows=stream, max_steps=2)
    with pytest.raises(PromptTuningError, match="teacher is given"):
        tasks = [PromptTask("one", place_config("start"), ROWS, template=FREE)]
        options = {"processing_class": make_tokenizer(), "teacher": Teacher(text=TEXT)}
        MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, **options)
    config = place_config("start", backbone_dropout=True)
    with pytest.raises(PromptTuningError, match="backbone_dropout is on"):
        PromptTuningTrainer(
            get_prompt_tuning_model(tiny_model("llama"), config),
            arguments(tmp_path),
            train_dataset=ROWS,
            processing_class=make_tokenizer(),
            template=FREE,
            teacher=Teacher(text=TEXT),
        )


def expected_metrics(trainer, students):
    """The mean divergence from the teacher and the share of equal tokens, row by row."""
    rows = [(row["teacher_0_input_ids"], row["teacher_0_labels"]) for row in trainer.eval_dataset]
    teachers = [logits_of_text(trainer.model, *row) for row in rows]
    divergence = torch.cat([kl(*pair) for pair in zip(teachers, students, strict=True)])
    same = torch.cat([t.argmax(-1) == s.argmax(-1) for t, s in zip(teachers, students, strict=True)])
    return pytest.approx(float(divergence.mean()), rel=1e-3), pytest.approx(float(same.double().mean()))


@pytest.mark.parametrize("place", ["start", "after_bos"])
def test_an_evaluation_has_the_divergence_and_two_baselines(tmp_path, place):
    trainer = make(tmp_path, place=place, per_device_eval_batch_size=2)
    metrics, again = trainer.evaluate(), trainer.evaluate()
    rows = [(row["input_ids"], row["labels"]) for row in trainer.eval_dataset]
    model, tokenizer = trainer.model, trainer.processing_class
    first = model.get_input_embeddings()(torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"][:4]))
    with torch.no_grad():
        students = {
            "": [logits_behind(model, *row) for row in rows],
            "no_context_": [logits_of_text(model, *row) for row in rows],
            "first_tokens_": [logits_behind(model, *row, vectors=first) for row in rows],
        }
    for name, logits in students.items():
        divergence, agreement = expected_metrics(trainer, logits)
        assert metrics[f"eval_{name}kl"] == divergence and metrics[f"eval_{name}agreement"] == agreement
        assert again[f"eval_{name}kl"] == metrics[f"eval_{name}kl"]
    assert trainer.model.info.metrics["eval_kl"] == metrics["eval_kl"]
    untuned = trainer.evaluate_untuned()
    assert untuned["untuned_kl"] == pytest.approx(metrics["eval_no_context_kl"])


def test_the_text_that_a_prompt_starts_from_is_a_baseline_whichever_teacher_has_it(tmp_path):
    rows = [row | {"context": "a text"} for row in ROWS]
    vectors = []
    for teacher in ([Teacher(column="context"), Teacher(text=TEXT)], Teacher(text=TEXT), Teacher(column="context")):
        trainer = make(tmp_path, teacher, rows, eval_rows=rows)
        vectors.append(trainer.teaching.first_vectors(trainer.model))
    assert vectors[1].shape == (4, 32) and torch.equal(vectors[0], vectors[1]) and vectors[2] is None


@pytest.mark.parametrize("values", [{"teacher_writes": 1}, {"template": TEMPLATE, "distill_over": "labels"}])
def test_a_row_that_leaves_no_room_for_its_target_is_refused(tmp_path, values):
    """GPT-2 has a table of positions: what is longer ends in an error of the backbone."""
    row, refused = {"message": "why", "answer": "no", "label": None}, []
    for number in range(114, 120):
        teacher = Teacher(text="day " * number)
        try:
            options = {"rows": [row], "eval_rows": [row], "name": "gpt2", "teacher_max_new_tokens": 3}
            trainer = make(tmp_path / str(number), teacher, **options | values)
        except PromptTuningError as error:
            assert "it has 1" in str(error) and "the backbone has 128 positions" in str(error)
            refused.append(number)
            continue
        trainer.train()
        assert trainer.evaluate()["eval_kl"] >= 0
        trainer.save_model()
    assert refused == list(range(refused[0], 120)) and refused[0] > 114


def test_the_divergence_falls_and_decides_on_the_best_prompt(tmp_path):
    trainer = make(
        tmp_path,
        num_train_epochs=8,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="kl",
    )
    assert trainer.args.greater_is_better is False
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_kl"] < before["eval_kl"] / 2
    assert trainer.state.best_metric == pytest.approx(after["eval_kl"])
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainer.save_model(str(tmp_path / "saved"))
    results = json.loads((tmp_path / "saved/results.json").read_text())
    assert results["metrics"]["eval_no_context_kl"] == before["eval_no_context_kl"]


def test_labels_are_compared_with_and_without_right_ones(tmp_path, messages):
    rows = [row | {"label": None} for row in messages[:5]]
    trainer = make(tmp_path, rows=rows, eval_rows=rows, template=TEMPLATE, distill_over="labels", num_train_epochs=8)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_kl"] < before["eval_kl"] and "eval_accuracy" not in after
    coder, model = trainer.rows.tokenizer, trainer.model
    with torch.no_grad():
        options = {"candidates": coder.label_token_ids}
        students = [model(input_ids=torch.tensor([coder.source_ids(row)[0]]), **options).scores for row in rows]
        behind = [torch.tensor([row["teacher_0_input_ids"]]) for row in trainer.eval_dataset]
        teachers = [model(input_ids=ids, adapter_names=["__base__"], **options).scores for ids in behind]
    expected = torch.cat([kl(*pair) for pair in zip(teachers, students, strict=True)]).mean()
    assert after["eval_kl"] == pytest.approx(float(expected), rel=1e-3, abs=1e-7)
    assert all(math.isfinite(value) for value in losses(trainer))


def test_rows_of_a_taught_run_train_without_a_teacher(tmp_path):
    rows = make(tmp_path).train_dataset
    trainers = [
        PromptTuningTrainer(
            get_prompt_tuning_model(tiny_model("llama"), place_config("start")),
            arguments(tmp_path, remove_unused_columns=False),
            train_dataset=data,
            processing_class=make_tokenizer("llama"),
        )
        for data in (rows, rows.remove_columns(["teacher_0_input_ids", "teacher_0_labels"]))
    ]
    for trainer in trainers:
        trainer.train()
    assert losses(trainers[0]) == losses(trainers[1])


def test_rows_of_a_taught_run_are_of_that_teacher(tmp_path):
    """Another run may use them again; one with another teacher would learn what the first one says."""
    first = make(tmp_path).train_dataset
    again = make(tmp_path, rows=first, eval_rows=first.select([1]))
    assert list(again.train_dataset) == list(first) and list(again.eval_dataset) == [first[1]]
    for teacher in (Teacher(text="Be kind."), Teacher(text=TEXT, separator=" ")):
        with pytest.raises(PromptTuningError, match="has the column 'teacher_0_input_ids', of another teacher than"):
            make(tmp_path, teacher, rows=first)
    with pytest.raises(PromptTuningError, match="encoded for a teacher already, and teacher_writes asks for new"):
        make(tmp_path, rows=first, teacher_writes=1)
    with pytest.raises(PromptTuningError, match="an evaluation data set is called 'training', as the training data"):
        make(tmp_path, eval_rows={"training": ROWS}, teacher_writes=1)


@pytest.mark.parametrize("name", ["teacher_writes", "distillation_weight", "publish_teacher_text"])
def test_arguments_of_a_teacher_without_one(tmp_path, name):
    model = get_prompt_tuning_model(tiny_model("llama"), place_config("start"))
    with pytest.raises(PromptTuningError, match=f"{name} is given, and no teacher; give one"):
        PromptTuningTrainer(model, arguments(tmp_path, **{name: 1}), train_dataset=ROWS, template=FREE)


def test_arguments_of_transformers_do_not_teach(tmp_path):
    with pytest.raises(PromptTuningError, match="give PromptTuningArguments"):
        PromptTuningTrainer(
            get_prompt_tuning_model(tiny_model("llama"), place_config("start")),
            TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            train_dataset=ROWS,
            processing_class=make_tokenizer(),
            template=FREE,
            teacher=Teacher(text=TEXT),
        )
    assert PromptTuningArguments(output_dir=str(tmp_path), use_cpu=True).distillation_weight == 1.0

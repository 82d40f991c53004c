"""PromptTuningTrainer with heads that find answers: runs, metrics, checkpoints, saved prompts, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from datasets import Dataset

from hf_prompt_tuning import (
    Answer,
    AnswerTemplate,
    ClassTemplate,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.models.scoring import metric
from hf_prompt_tuning.prompts.info import PromptInfo
from tests.shared.answer_rows import ROWS, TEMPLATE, answer_backbone, answer_rows, answer_tokenizer, answer_trainer
from tests.shared.head_runs import head_of, require_same, trained_weights
from tests.shared.tiny_models import tiny_model

TEXTS = [row[2] for row in ROWS]
LEARNS = dict(num_train_epochs=40, learning_rate=3e-2, head_learning_rate=3e-2, per_device_train_batch_size=4)


def refused(message):
    return pytest.raises(PromptTuningError, match=message)


def test_windows_whose_rows_are_not_together_are_refused(tmp_path):
    trainer = answer_trainer(tmp_path, eval_rows=answer_rows())
    windows = trainer.eval_dataset
    rows = windows["window_row"][:]
    second = next(i for i in range(1, len(rows)) if rows[i] == rows[i - 1])
    apart = [i for i in range(len(rows)) if i != second] + [second]
    twice = [*range(len(rows)), 0]
    without_first = [i for i in range(len(rows)) if i != second - 1]
    within = [second, second - 1]
    for order, number in ((apart, len(rows)), (twice, len(rows) + 1), (without_first, second), (within, 1)):
        with refused(f"window {number} of the data to evaluate is .* of its row, .*keep the order of windows"):
            trainer.evaluate(windows.select(order))
    whole = [i for i, row in enumerate(rows) if row != rows[second]]
    assert "eval_f1" in trainer.evaluate(windows.select(whole))


@pytest.mark.parametrize(
    ("prediction", "texts", "exact", "f1"),
    [
        ("The  old, town!", ["old town"], 1, 1),  # without case, punctuation, articles and white space
        ("the big old town", ["old town"], 0, 4 / 5),  # 2 of 3 words, 2 of 2
        ("town town", ["old town town town"], 0, 4 / 6),  # each as often as both have it
        ("a cat", ["a dog", "cat"], 1, 1),  # the best reference
        ("big cat", ["cat", "a big dog cat"], 0, 4 / 5),
        ("cat", [], 0, 0),
        ("", [], 1, 1),
        ("", ["cat"], 0, 0),
        ("the", ["an"], 1, 1),  # nothing is left of both
        ("dog", ["cat"], 0, 0),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(prediction, texts, exact, f1):
    found = metric("answers.py").compute(predictions=[prediction], references=[texts])
    assert found == {"exact_match": exact, "f1": pytest.approx(f1)}
    together = metric("answers.py").compute(predictions=[prediction, "x"], references=[texts, ["y", "z"]])
    assert together == {"exact_match": exact / 2, "f1": pytest.approx(f1 / 2)}


@pytest.mark.parametrize(("name", "side"), [("bert", "right"), ("roberta", "left"), ("llama", "left")])
def test_a_run_learns_and_its_prompt_reloads(name, side, tmp_path):
    rows, backbone = answer_rows(without=[2]), answer_backbone(name)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    trainer = answer_trainer(tmp_path, name, rows=rows, eval_rows=rows, backbone=backbone, side=side, **LEARNS)
    untuned, before = trainer.evaluate_untuned(), trainer.evaluate()
    assert {"untuned_loss", "untuned_exact_match", "untuned_f1"} <= untuned.keys()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.5 * before["eval_loss"] and after["eval_f1"] >= 0.8
    trainer.save_model()
    require_same(dict(backbone.state_dict()), state)
    described = json.loads((tmp_path / "prompt_tuning.json").read_text())
    assert described["data"] == {"training_rows": 5, "evaluation_rows": 5}
    assert described["template"] == {
        "question_column": "question",
        "context_column": "context",
        "answers_column": "answers",
        "max_length": 40,
        "stride": 8,
        "longest_answer": 6,
        "no_answers": True,
    }
    assert described["classifier"]["id2label"] == {"0": "start", "1": "end"}
    assert described["example"]["source"].startswith(f"{ROWS[0][0]} the parcel never came")
    assert described["example"]["target"] == "the parcel"
    assert trainer.model.info.metrics["eval_f1"] == after["eval_f1"]
    card = (tmp_path / "README.md").read_text()
    assert "| F1 |" in card and "cut into windows of 40 tokens" in card and "a context may have none" in card
    loaded = load_prompt(tmp_path, backbone=answer_backbone(name), tokenizer=answer_tokenizer())
    assert loaded.template == trainer.rows.tokenizer.template
    require_same(head_of(loaded.model), head_of(trainer.model))
    found = trainer.predict(rows)
    assert found.label_ids == [[text] for text in TEXTS[:2]] + [[]] + [[text] for text in TEXTS[3:]]
    asked = loaded.model.answer(loaded.tokenizer, [row[0] for row in ROWS], [row[1] for row in ROWS])
    for here, there in zip(asked, found.predictions, strict=True):
        assert here[:2] == there[:2] and here.score == pytest.approx(there.score, rel=1e-4, abs=1e-5)
    again = PromptTuningTrainer(
        loaded.model, trainer.args, eval_dataset=rows, processing_class=answer_tokenizer()
    ).evaluate()
    assert again["eval_loss"] == pytest.approx(after["eval_loss"], rel=1e-5)


def test_only_runs_whose_rows_say_so_find_no_answer(tmp_path):
    """Without such training rows each row gets an answer, also one of which an evaluation says that it has none."""
    nothing = answer_rows(without=range(5))
    trainer = answer_trainer(tmp_path, eval_rows=nothing)
    assert not trainer.rows.tokenizer.template.no_answers
    assert all(answer.text for answer in trainer.predict(nothing).predictions)
    trained = answer_trainer(tmp_path, rows=nothing, eval_rows=nothing, **LEARNS)
    trained.train()
    found = trained.predict(nothing)
    assert {answer[:2] for answer in found.predictions} == {("", None)}
    assert found.metrics["test_exact_match"] == found.metrics["test_f1"] == 1


def test_predictions_are_one_a_row_in_the_callers_order(tmp_path):
    """Whatever the batch size; of rows without answers, without the column, and in another order."""
    trainer = answer_trainer(tmp_path, per_device_eval_batch_size=2)
    rows = answer_rows()
    expected = trainer.predict(rows).predictions
    assert all(isinstance(answer, Answer) for answer in expected) and len(expected) == 5
    order = [3, 1, 4, 0, 2]
    bare = [{name: rows[i][name] for name in ("context", "question")} | {"id": i} for i in order]
    trainer.args.per_device_eval_batch_size = 3
    found = trainer.predict(Dataset.from_list(bare))
    assert [answer[:2] for answer in found.predictions] == [expected[i][:2] for i in order]
    assert found.label_ids == [None] * 5 and set(found.metrics) & {"test_loss", "test_f1"} == set()
    known = [row | {"answers": None} if i == 1 else row for i, row in enumerate(rows)]
    some = trainer.predict(known)
    assert some.label_ids[1] is None and "test_f1" in some.metrics
    right = [answer.text == text for answer, text in zip(expected, TEXTS, strict=True)]
    assert some.metrics["test_exact_match"] == pytest.approx(sum(right[:1] + right[2:]) / 4)


def test_a_run_resumes_bit_for_bit_and_keeps_its_best_prompt(tmp_path):
    rows = answer_rows(without=[4])
    options = dict(num_train_epochs=3, per_device_train_batch_size=3, save_strategy="steps", save_steps=1)
    options |= dict(eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="f1")
    options |= dict(head_learning_rate=2e-2, gradient_accumulation_steps=2)
    whole = answer_trainer(tmp_path / "a", rows=rows, eval_rows=rows, **options)
    assert whole.args.greater_is_better
    whole.train()
    again = answer_trainer(tmp_path / "b", rows=rows, eval_rows=rows, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert again.state.best_global_step == whole.state.best_global_step
    require_same(trained_weights(again.model), trained_weights(whole.model))
    scores = {log["step"]: log["eval_f1"] for log in whole.state.log_history if "eval_f1" in log}
    assert whole.evaluate()["eval_f1"] == max(scores.values()) == scores[whole.state.best_global_step]
    rates = {group["lr"] for group in answer_trainer(tmp_path, head_learning_rate=0.5).create_optimizer().param_groups}
    assert rates == {3e-2, 0.5}


def test_the_callers_metrics_are_of_rows(tmp_path):
    seen = {}

    def keep(prediction):
        seen.update(answers=prediction.predictions, references=prediction.label_ids, losses=prediction.losses)
        return {"long": float(np.mean([len(answer.text) for answer in prediction.predictions]))}

    rows = [row | {"answers": None} if i == 1 else row for i, row in enumerate(answer_rows(without=[2]))]
    options = {"compute_metrics": keep}
    trainer = answer_trainer(tmp_path, eval_rows=rows, own=options, include_for_metrics=["loss"])
    assert trainer.evaluate()["eval_long"] == np.mean([len(answer.text) for answer in seen["answers"]])
    assert seen["references"] == [["the parcel"], [], ["town"], ["film"]]
    losses = [trainer.evaluate([rows[i]])["eval_loss"] for i in (0, 2, 3, 4)]
    answer_trainer(tmp_path, eval_rows=rows, own=options, include_for_metrics=["loss"]).evaluate()
    assert seen["losses"] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("no_answers", 1, "template.no_answers is 1, and must be bool or NoneType"),
        ("stride", True, "template.stride is True, and must be int or NoneType"),
        ("stride", -1, "stride is -1; give a whole number, 0 or more"),
        ("longest_answer", "30", "template.longest_answer is '30', and must be int"),
        ("question_column", ["q"], "template.question_column is"),
        ("target", "x", "template has an unknown field 'target'"),
    ],
)
def test_a_damaged_description_is_refused(name, value, message):
    values = {"format_version": 1, "template": dataclasses.asdict(TEMPLATE)}
    assert PromptInfo.from_json(values).template == TEMPLATE
    with refused(message):
        PromptInfo.from_json(values | {"template": values["template"] | {name: value}})


def test_other_columns_several_data_sets_and_transfer(tmp_path):
    names = {"question": "q", "context": "text", "answers": "spans"}
    rows = [{names[name]: value for name, value in row.items()} for row in answer_rows()]
    template = AnswerTemplate("q", "text", "spans", max_length=40, stride=8, longest_answer=6)
    trainer = answer_trainer(tmp_path, rows=rows, eval_rows={"a": rows, "b": rows[:2]}, own={"template": template})
    expected = answer_trainer(tmp_path, eval_rows=answer_rows()).evaluate()
    metrics = trainer.evaluate()
    assert metrics["eval_a_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert metrics["eval_b_f1"] == trainer.evaluate(rows[:2])["eval_f1"]
    trainer.evaluate_transfer({"other": rows[:2]})
    assert trainer.model.info.transfer["other"]["rows"] == 2


@pytest.mark.parametrize("position", ["start", "after_bos"])
def test_the_default_window_fills_the_positions_of_the_backbone(position, tmp_path):
    """A head's token is one of the window."""
    rows = [row | {"context": row["context"] * 4} for row in answer_rows()]
    own = {"template": AnswerTemplate()}
    trainer = answer_trainer(tmp_path, rows=rows, own=own, prompt={"prompt_position": position}, max_steps=1)
    assert max(trainer.train_dataset["length"]) == trainer.rows.tokenizer.template.max_length == 124
    assert trainer.rows.tokenizer.template.stride == 41
    trainer.train()
    assert len(trainer.predict(rows).predictions) == 5


def test_a_search_tries_prompts_that_leave_room_for_the_windows(tmp_path):
    def made(trial):
        config = PromptTuningConfig(num_virtual_tokens=4 if trial is None else 90, prompt_tuning_init="RANDOM")
        return get_prompt_tuning_model(answer_backbone(), config)

    trainer = PromptTuningTrainer(
        model_init=made,
        args=PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        train_dataset=answer_rows(),
        processing_class=answer_tokenizer(),
        template=TEMPLATE,
    )
    with refused("windows have 40 tokens, and behind the prompt the backbone has positions for 38; lower max_length"):
        trainer.call_model_init(trial=1)


def test_a_stream_trains_and_is_not_evaluated(tmp_path):
    stream = Dataset.from_list(answer_rows()).to_iterable_dataset()
    with refused("the training data is a stream, which does not tell"):
        answer_trainer(tmp_path, rows=stream, max_steps=2)
    template = AnswerTemplate(max_length=40, stride=8, no_answers=False)
    trainer = answer_trainer(tmp_path, rows=stream, max_steps=2, own={"template": template})
    trainer.train()
    with refused("the data to evaluate is a stream, and an answer is the best of all windows of its row"):
        trainer.evaluate(stream)


def test_what_a_trainer_refuses_for_answers(tmp_path):
    for values, message in (
        (dict(class_weights="balanced"), "class_weights is 'balanced', which is for classes"),
        (dict(label_smoothing_factor=0.1), "label_smoothing_factor is 0.1, which is for classes"),
        (dict(head_learning_rate=-1), "head_learning_rate is -1; give a number, 0 or more"),
        (dict(own={"template": None}), "template is not given, and the backbone has a head for answers; give Answer"),
        (dict(own={"template": PromptTemplate("{question}", label_column="answers")}), "give an? AnswerTemplate"),
        (dict(own={"template": ClassTemplate("{question}", "answers")}), "is for QUESTION_ANS; give a"),
        (
            dict(own={"template": AnswerTemplate("query")}),
            "the template's column 'query' is no column of the training",
        ),
        (dict(own={"template": AnswerTemplate(max_length=125)}), "max_length is 125, .* has positions for 124"),
        (dict(rows=[{"input_ids": [1, 2], "start_positions": 0}]), "the training data has token ids, and answers are"),
        (
            dict(rows=[answer_rows()[0] | {"answers": None}, answer_rows()[1]]),
            "row 1 of the training data: .*no answers",
        ),
        (dict(backbone=answer_backbone(vocab_size=90)), "row 1 of the windowed training data has in input_ids the to"),
        (dict(include_for_metrics=["inputs"], eval_rows=answer_rows()), "include_for_metrics has 'inputs'"),
    ):
        with refused(message):
            answer_trainer(tmp_path, **values).evaluate()
    tokens = [{"input_ids": [1, 2], "labels": [0, 0]}]
    with refused("the evaluation data has token ids, and answers are read from texts"):
        answer_trainer(tmp_path, eval_rows=tokens)
    writer = dict(prompt_config=PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM"))
    with refused("template is a AnswerTemplate, which is for a head, and the backbone is a language model"):
        PromptTuningTrainer(
            tiny_model("llama"),
            PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none"),
            train_dataset=answer_rows(),
            processing_class=answer_tokenizer(),
            template=TEMPLATE,
            **writer,
        )
    with refused("processing_class is not given"):
        PromptTuningTrainer(
            get_prompt_tuning_model(answer_backbone(), writer["prompt_config"]),
            PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none"),
            train_dataset=answer_rows(),
            template=TEMPLATE,
        )

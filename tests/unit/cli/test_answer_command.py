"""The command with heads that find answers, in this process: SQuAD's files, predictions, going on, refusals."""

import json
import sys

import pytest
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from hf_prompt_tuning import PromptTuningError, load_prompt
from hf_prompt_tuning.cli import train
from tests.shared.answer_rows import ROWS, answer_backbone, answer_rows, answer_tokenizer
from tests.shared.classifiers import DECODERS, ENCODERS
from tests.shared.head_runs import head_of, require_same

VALUES = ENCODERS | DECODERS


def saved_backbone(folder, name="bert", kind="base"):
    """A folder with a base model, a classifier of three classes, or a model with a head for answers."""
    config = AutoConfig.for_model(name, **dict(bos_token_id=1, eos_token_id=2, pad_token_id=0) | VALUES[name])
    config.max_position_embeddings = 128
    if kind == "classifier":
        config.num_labels = 3
    auto = {"base": AutoModel, "classifier": AutoModelForSequenceClassification}
    model = answer_backbone(name) if kind == "answers" else auto[kind].from_config(config)
    model.save_pretrained(folder)
    answer_tokenizer().save_pretrained(folder)
    return folder


def run(monkeypatch, folder, **values):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(sys, "argv", ["train", str(folder / "config.yaml")])
    train.main()
    return folder / "out"


def values_of(backbone, folder, rows, **changes):
    folder.mkdir(exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual = {
        "model_name_or_path": str(backbone),
        "task_type": "QUESTION_ANS",
        "train_file": str(file),
        "validation_file": str(file),
        "max_source_length": 40,
        "stride": 8,
        "num_virtual_tokens": 3,
        "max_steps": 4,
        "per_device_train_batch_size": 3,
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "report_to": "none",
        "do_predict": True,
        "disable_tqdm": True,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    return usual | changes


def records_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "kind"), [("bert", "base"), ("bert", "classifier"), ("roberta", "answers"), ("llama", "base")]
)
def test_the_command_finds_answers(name, kind, tmp_path, monkeypatch):
    """Behind a base model, a classifier of another number of classes, and a model that has such a head."""
    backbone, rows = saved_backbone(tmp_path / "backbone", name, kind), answer_rows(without=[3])
    out = run(monkeypatch, tmp_path, **values_of(backbone, tmp_path, rows, longest_answer=5))
    results = json.loads((out / "all_results.json").read_text())
    assert {"eval_loss", "eval_exact_match", "eval_f1", "test_f1"} <= results.keys()
    assert results["test_loss"] == pytest.approx(results["eval_loss"])
    described = json.loads((out / "prompt_tuning.json").read_text())
    window = {"max_length": 40, "stride": 8, "longest_answer": 5, "no_answers": True}
    assert described["template"].items() >= window.items()
    assert described["training"]["learning_rate"] == 3e-2
    assert "pipeline_tag: question-answering" in (out / "README.md").read_text()
    records = records_of(out)
    assert [record["row"] for record in records] == list(range(5))
    assert [record["input"] for record in records] == [row[0] for row in ROWS]
    assert [record["reference"] for record in records] == [[] if i == 3 else [row[2]] for i, row in enumerate(ROWS)]
    model, tokenizer, _ = load_prompt(out, backbone=backbone)
    found = model.answer(tokenizer, [row[0] for row in ROWS], [row[1] for row in ROWS])
    for record, answer, row in zip(records, found, ROWS, strict=True):
        assert (record["prediction"], record["start"]) == answer[:2]
        assert record["score"] == pytest.approx(answer.score, rel=1e-3, abs=1e-6)
        assert answer.start is None or row[1][answer.start :].startswith(answer.text)


def test_lists_of_answers_other_columns_and_rows_without_the_column(tmp_path, monkeypatch):
    """As a JSON file may have them; the defaults of the window are those of the backbone."""
    rows = []
    for i, row in enumerate(answer_rows()):
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        pairs = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        rows.append({"id": f"row {i}", "q": row["question"], "text": row["context"], "spans": pairs})
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"q": row["q"], "text": row["text"]}) + "\n" for row in rows)
    )
    values = values_of(saved_backbone(tmp_path / "backbone"), tmp_path, rows, test_file=str(tmp_path / "test.jsonl"))
    values |= {"question_column": "q", "context_column": "text", "answers_column": "spans"}
    values = {name: value for name, value in values.items() if name not in ("stride", "max_source_length")}
    out = run(monkeypatch, tmp_path, **values)
    template = json.loads((out / "prompt_tuning.json").read_text())["template"]
    assert template["max_length"] == 125 and template["stride"] == 41 and template["no_answers"] is False
    assert [record["reference"] for record in records_of(out)] == [None] * 5
    assert all(record["prediction"] for record in records_of(out))


def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    backbone = saved_backbone(tmp_path / "backbone", kind="answers")
    options = dict(save_strategy="steps", save_steps=2, do_predict=False)
    whole = run(monkeypatch, tmp_path / "a", **values_of(backbone, tmp_path / "a", answer_rows(), **options))
    again = values_of(backbone, tmp_path / "b", answer_rows(), **options)
    again["resume_from_checkpoint"] = str(whole / "checkpoint-2")
    other = run(monkeypatch, tmp_path / "b", **again)
    models = [load_prompt(folder, backbone=backbone).model for folder in (whole, other)]
    assert models[0].prompt.equal(models[1].prompt)
    require_same(head_of(models[0]), head_of(models[1]))


def test_a_saved_prompt_brings_its_template(tmp_path, monkeypatch):
    """Alone it is evaluated as before. On other rows it goes on, and learns from them that there may be no answer."""
    backbone = saved_backbone(tmp_path / "backbone", kind="answers")
    values = values_of(backbone, tmp_path / "a", answer_rows(), longest_answer=4)
    first = run(monkeypatch, tmp_path / "a", **values)
    left_out = ("train_file", "max_source_length", "stride", "longest_answer", "num_virtual_tokens")
    alone = {name: value for name, value in values.items() if name not in left_out}
    alone |= {"init_prompt": str(first), "output_dir": str(tmp_path / "b" / "out"), "do_train": False}
    second = run(monkeypatch, tmp_path / "b", **alone)
    results = [json.loads((folder / "eval_results.json").read_text()) for folder in (first, second)]
    assert results[1]["eval_loss"] == pytest.approx(results[0]["eval_loss"], rel=1e-6)
    assert results[1]["eval_f1"] == results[0]["eval_f1"]
    assert [record["prediction"] for record in records_of(first)] == [
        record["prediction"] for record in records_of(second)
    ]
    more = values_of(backbone, tmp_path / "c", answer_rows(without=[1]))
    more = {name: value for name, value in more.items() if name not in left_out[1:]} | {"init_prompt": str(first)}
    third = run(monkeypatch, tmp_path / "c", **more | {"stride": 9})
    template = json.loads((third / "prompt_tuning.json").read_text())["template"]
    changed = {"max_length": 40, "stride": 9, "longest_answer": 4, "no_answers": True}
    assert template.items() >= changed.items()


def test_what_the_command_refuses_for_answers(tmp_path, monkeypatch):
    backbone = saved_backbone(tmp_path / "backbone")
    wrong = answer_rows()
    wrong[1]["answers"]["answer_start"] = [7]
    for rows, changes, message in (
        (answer_rows(), {"label_column": "answers"}, "label_column is given, and task_type is QUESTION_ANS"),
        (answer_rows(), {"source_template": "{question}"}, "source_template is given, and task_type is QUESTION_ANS"),
        (answer_rows(), {"words_column": "context"}, "words_column is given, and task_type is QUESTION_ANS"),
        (answer_rows(), {"max_target_length": 8}, "max_target_length is given, and task_type is QUESTION_ANS"),
        (answer_rows(), {"task_type": "SEQ_CLS"}, "stride is given, and task_type is SEQ_CLS"),
        (
            answer_rows(),
            {"task_type": "CAUSAL_LM"},
            "stride is given, and is for a classification head or for answers",
        ),
        (answer_rows(), {"num_prompts": 3}, "num_prompts is given, and task_type is QUESTION_ANS"),
        (answer_rows(), {"recipe": "auto"}, "recipe is given, and task_type is QUESTION_ANS"),
        (answer_rows(), {"class_weights": "balanced"}, "class_weights is 'balanced', which is for classes"),
        (answer_rows(), {"max_source_length": 200}, "max_length is 200, and behind the prompt the backbone has"),
        (answer_rows(), {"stride": 39}, "takes .* of the 40 tokens of a window"),
        (answer_rows(), {"question_column": "query"}, "column 'query' is no column of the training data"),
        (answer_rows(), {"answers_column": "spans"}, "answers_column 'spans' is no column of the data"),
        (wrong, {}, r"row 2 of the training data \(row 2 of rows.jsonl\): .* answer_start 7, .* it stands at 113"),
    ):
        with pytest.raises(PromptTuningError, match=message):
            run(monkeypatch, tmp_path, **values_of(backbone, tmp_path, rows, **changes))

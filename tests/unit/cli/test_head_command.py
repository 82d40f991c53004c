"""The command with classification heads, in this process: labels of every kind, predictions, refusals."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining, BertConfig, BertTokenizer, pipeline

from hf_prompt_tuning import PromptTuningError, load_prompt
from hf_prompt_tuning.models.calibration import fit_calibration
from tests.shared.classifiers import BERT_LIKE, tiny_classifier, tokenizer_with_cls
from tests.shared.head_runs import NAMES, SEVERAL, TAGS, TEXTS, head_of, require_same, rows_of
from tests.shared.repository import ROOT
from tests.shared.text_pairs import PAIRS, pair_rows


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of a pretrained model, as BERT is published: with its pooler, and without a head."""
    folder = tmp_path_factory.mktemp("backbone")
    config = AutoConfig.for_model("bert", bos_token_id=1, eos_token_id=2, pad_token_id=0, **BERT_LIKE)
    AutoModelForPreTraining.from_config(config).save_pretrained(folder)
    tokenizer_with_cls().save_pretrained(folder)
    return folder


def run(monkeypatch, folder, **values):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    spec = importlib.util.spec_from_file_location("run_prompt_tuning", ROOT / "run_prompt_tuning.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["run_prompt_tuning.py", str(folder / "config.yaml")])
    script.main()
    return folder / "out"


def values_of(backbone, folder, kind, **changes):
    folder.mkdir(exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)))
    own = {"source_template": "{message}", "label_column": "label", "task_type": "SEQ_CLS"}
    if kind == "tags":
        own = {"words_column": "words", "label_column": "tags", "task_type": "TOKEN_CLS"}
    usual = {
        "model_name_or_path": str(backbone),
        "train_file": str(file),
        "validation_file": str(file),
        "num_virtual_tokens": 3,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "report_to": "none",
        "do_predict": True,
        "disable_tqdm": True,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    return usual | own | changes


def require_same_evaluation(monkeypatch, values, out, folder):
    """Evaluate the prompt in `out` in a run of its own, which takes the template and the head from it."""
    kept = {"model_name_or_path", "validation_file", "use_cpu", "report_to", "disable_tqdm", "task_type"}
    alone = {name: value for name, value in values.items() if name in kept}
    alone |= {"init_prompt": str(out), "output_dir": str(folder / "out"), "do_train": False}
    again = run(monkeypatch, folder, **alone)
    first, second = (json.loads((each / "eval_results.json").read_text()) for each in (out, again))
    assert second["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)


def records_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "weights", "classes", "metrics"),
    [
        ("single", {"class_weights": "balanced"}, ["complaint", "other", "praise"], ["accuracy", "f1", "f1_micro"]),
        ("numbers", {}, ["LABEL_0"], ["pearson", "spearman"]),
        ("several", {"pos_weight": [1, 2, 0.5]}, ["a", "b", "c"], ["accuracy", "f1", "f1_micro"]),
        ("tags", {"class_weights": {"B-X": 3, "B-Y": 3, "I-Y": 3, "O": 1}}, ["B-X", "B-Y", "I-Y", "O"], ["precision"]),
    ],
)
def test_the_command_learns_the_classes_of_the_data(kind, weights, classes, metrics, backbone, tmp_path, monkeypatch):
    values = values_of(backbone, tmp_path, kind, head_learning_rate=5e-3, prompt_position="after_bos", **weights)
    out = run(monkeypatch, tmp_path, **values)
    results = json.loads((out / "all_results.json").read_text())
    assert {f"eval_{name}" for name in ["loss", *metrics]} <= results.keys()
    assert results["test_loss"] == pytest.approx(results["eval_loss"])
    described = json.loads((out / "prompt_tuning.json").read_text())
    assert list(described["classifier"]["id2label"].values()) == classes
    assert described["training"]["head_learning_rate"] == 5e-3
    card = (out / "README.md").read_text()
    assert ("Calibrated probabilities are the softmax of the logits divided by" in card) == (kind == "single")
    task = "token-classification" if kind == "tags" else "text-classification"
    assert f"pipeline_tag: {task}" in card and "ranked by log-likelihood" not in card
    assert f"type: {task}" in card  # of the results
    assert ("| macro F1 |" in card) == (kind in ("single", "several")) and ("| F1 |" in card) == (kind == "tags")
    records = records_of(out)
    shown = [text.split() for text in TEXTS] if kind == "tags" else TEXTS
    assert [record["input"] for record in records] == shown
    labels = {"single": NAMES, "tags": TAGS, "several": [sorted(row) for row in SEVERAL]}.get(kind)
    if labels is not None:
        assert [record["reference"] for record in records] == labels
    model, tokenizer, template = load_prompt(out, backbone=backbone)
    assert list(model.config.id2label.values()) == classes and len(model.config.id2label) == len(classes)
    coder, found = model.row_encoder(tokenizer, template), []
    for record in records:
        row = {"words": record["input"]} if kind == "tags" else {"message": record["input"]}
        logits = model(input_ids=torch.tensor([coder.content_ids(row)])).logits[0]
        if kind == "single":
            found.append(logits.tolist())
            assert record["prediction"] == classes[int(logits.argmax())]
            assert list(record["scores"].values()) == pytest.approx(logits.tolist(), abs=1e-4)
        elif kind == "several":
            assert record["prediction"] == [classes[i] for i in range(3) if logits[i] > 0]
        elif kind == "numbers":
            assert record["prediction"] == pytest.approx(logits.item(), abs=1e-4)
        else:
            places = coder.word_tokens(record["input"])[1]
            assert record["prediction"] == [classes[i] for i in logits[places].argmax(-1).tolist()]
    if kind == "single":
        expected = fit_calibration(np.array(found), np.array([classes.index(name) for name in NAMES]))
        assert described["calibration"] == pytest.approx(expected, rel=1e-3)
    else:
        assert described["calibration"] == {}


@pytest.mark.parametrize("kind", ["single", "numbers", "several", "tags"])
def test_a_head_of_another_size_without_names_is_new(kind, tmp_path, monkeypatch, caplog):
    """BERT's classifier has the same name for texts and for tokens."""
    made = tiny_classifier("bert", num_labels=2)
    made.save_pretrained(tmp_path / "backbone")
    tokenizer_with_cls().save_pretrained(tmp_path / "backbone")
    run(monkeypatch, tmp_path, **values_of(tmp_path / "backbone", tmp_path, kind, do_predict=False, max_steps=1))
    model = load_prompt(tmp_path / "out", backbone=tmp_path / "backbone").model
    count = {"single": 3, "numbers": 1, "several": 3, "tags": 4}[kind]
    assert len(head_of(model)["classifier.bias"]) == count
    told = f"has 2 outputs without names, and the data needs {count}: it gets a new head" in caplog.text
    assert told == (kind != "tags")


def test_a_run_goes_on_bit_for_bit(backbone, tmp_path, monkeypatch):
    options = dict(save_strategy="steps", save_steps=2, do_predict=False)
    whole = run(monkeypatch, tmp_path / "a", **values_of(backbone, tmp_path / "a", "single", **options))
    again = values_of(backbone, tmp_path / "b", "single", **options)
    again["resume_from_checkpoint"] = str(whole / "checkpoint-2")
    other = run(monkeypatch, tmp_path / "b", **again)
    models = [load_prompt(folder, backbone=backbone).model for folder in (whole, other)]
    assert models[0].prompt.equal(models[1].prompt)
    require_same(head_of(models[0]), head_of(models[1]))


def test_a_saved_prompt_is_evaluated_with_its_head_and_its_template(backbone, tmp_path, monkeypatch):
    values = values_of(backbone, tmp_path, "single")
    out = run(monkeypatch, tmp_path, **values)
    require_same_evaluation(monkeypatch, values, out, tmp_path / "second")


def test_a_trained_head_keeps_its_classes(tmp_path, monkeypatch):
    names = ["praise", "other", "complaint"]
    trained = tiny_classifier("bert", id2label=dict(enumerate(names)))
    trained.save_pretrained(tmp_path / "trained")
    tokenizer_with_cls().save_pretrained(tmp_path / "trained")
    out = run(monkeypatch, tmp_path, **values_of(tmp_path / "trained", tmp_path, "single"))
    described = json.loads((out / "prompt_tuning.json").read_text())
    assert list(described["classifier"]["id2label"].values()) == names == described["template"]["labels"]
    rows = tmp_path / "other.jsonl"
    rows.write_text('{"message": "a", "label": "rant"}\n{"message": "b", "label": "other"}\n')
    with pytest.raises(PromptTuningError, match=r"the label 'rant' .* is none of the backbone's classes"):
        values = values_of(tmp_path / "trained", tmp_path, "single") | {"train_file": str(rows)}
        run(monkeypatch, tmp_path, **values)


def test_what_the_command_refuses_for_heads(backbone, tmp_path, monkeypatch):
    for changes, message in (
        ({"label_words": '{"a": "b"}'}, "label_words is given, and task_type is SEQ_CLS"),
        ({"target_template": "{label}"}, "target_template is given, and task_type is SEQ_CLS"),
        ({"words_column": "words"}, "words_column is given, and task_type is SEQ_CLS"),
        ({"label_column": None}, "label_column is not given; with task_type SEQ_CLS rows need label_column"),
        ({"task_type": "TOKEN_CLS"}, "source_template is given, and task_type is TOKEN_CLS"),
        ({"task_type": "RANKING", "label_words": {name: name for name in NAMES}}, "is 'RANKING'; give CAUSAL_LM"),
        ({"task_type": "CAUSAL_LM", "problem_type": "regression"}, "problem_type is given, and is for a class"),
        ({"num_prompts": 3}, "num_prompts is given, and task_type is SEQ_CLS; a classification head"),
        ({"teacher_text": "Be nice."}, "teacher_text is given, and task_type is SEQ_CLS"),
        ({"recipe": "auto"}, "recipe is given, and task_type is SEQ_CLS"),
        ({"class_weights": "[1]"}, r"class_weights is \[1\]; give 'balanced'"),
        ({"tasks": [{"name": "a"}]}, "tasks is given, and task_type is SEQ_CLS"),
    ):
        with pytest.raises(PromptTuningError, match=message):
            run(monkeypatch, tmp_path, **values_of(backbone, tmp_path, "single", **changes))


def test_a_backbone_whose_base_is_not_whole_is_refused(tmp_path, monkeypatch):
    """BERT's head reads a pooler, which masked language models lack: it would be random, and another in each load."""
    AutoModelForMaskedLM.from_config(BertConfig(**BERT_LIKE)).save_pretrained(tmp_path / "backbone")
    tokenizer_with_cls().save_pretrained(tmp_path / "backbone")
    with pytest.raises(PromptTuningError, match=r"have no bert.pooler.dense.bias, which a BertForSequenceClass"):
        run(monkeypatch, tmp_path, **values_of(tmp_path / "backbone", tmp_path, "single"))
    run(monkeypatch, tmp_path, **values_of(tmp_path / "backbone", tmp_path, "tags"))  # which read no pooler


def test_pairs_of_texts(tmp_path, monkeypatch):
    """The command trains them, records the pair, writes predictions of it, and goes on from the saved prompt."""
    config = AutoConfig.for_model("bert", bos_token_id=1, eos_token_id=2, pad_token_id=0, **BERT_LIKE)
    AutoModelForPreTraining.from_config(config).save_pretrained(tmp_path / "backbone")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *sorted({*" ".join(map(" ".join, PAIRS)).split()})]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    tokenizer.save_pretrained(tmp_path / "backbone")
    values = values_of(tmp_path / "backbone", tmp_path, "single", source_template="{premise}")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
    values |= {"pair_template": "{hypothesis}", "prompt_position": "after_bos"}
    out = run(monkeypatch, tmp_path, **values)
    described = json.loads((out / "prompt_tuning.json").read_text())
    assert described["template"]["pair"] == "{hypothesis}" and described["template"]["max_source_length"] == 512
    records = records_of(out)
    assert [record["input"] for record in records] == [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    model, tokenizer, _ = load_prompt(out, backbone=tmp_path / "backbone")
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    for record in records:
        inputs = tokenizer(record["input"]["text"], record["input"]["text_pair"], return_tensors="pt")
        assert inputs["token_type_ids"].max() == 1
        assert list(record["scores"].values()) == pytest.approx(model(**inputs).logits[0].tolist(), abs=1e-4)
        assert classify(record["input"])["label"] == record["prediction"]
    require_same_evaluation(monkeypatch, values, out, tmp_path / "second")
    for changes, message in (
        ({"pair_template": "{other}"}, "the template's column 'other' is no column of the training data"),
        ({"pair_template": ""}, "pair is ''; give a text"),
        ({"source_template": None}, "source_template is not given; with task_type SEQ_CLS rows need"),
        ({"task_type": "CAUSAL_LM", "label_words": {"no": "no"}}, "pair_template is given, and is for a classif"),
        (
            {"task_type": "TOKEN_CLS", "source_template": None, "words_column": "premise"},
            "pair_template is given, and task_type is TOKEN_CLS",
        ),
    ):
        with pytest.raises(PromptTuningError, match=message):
            run(monkeypatch, tmp_path, **values | changes)

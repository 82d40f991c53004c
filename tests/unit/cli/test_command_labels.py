"""The command on label columns of every type, name and number of prompts, in this process."""

import importlib.util
import json
import sys

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from hf_prompt_tuning.prompts.files import read_prompt
from tests.shared.repository import ROOT
from tests.shared.tiny_models import make_tokenizer, tiny_model

TEXTS = ["never came", "thank you", "third time", "great help"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    tiny_model("llama").save_pretrained(folder)
    make_tokenizer("gpt2").save_pretrained(folder)
    return str(folder)


def run(monkeypatch, folder, values):
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    spec = importlib.util.spec_from_file_location("run_prompt_tuning", ROOT / "run_prompt_tuning.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["run_prompt_tuning.py", str(folder / "config.yaml")])
    script.main()


def values_of(backbone, folder, file, **values):
    return {
        "model_name_or_path": backbone,
        "train_file": str(file),
        "validation_file": str(file),
        "source_template": "Message : {text} Label :",
        "num_virtual_tokens": 3,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "report_to": "none",
        "do_predict": True,
        "disable_tqdm": True,
        "eval_strategy": "no",
        "save_strategy": "no",
    } | values


def references(file):
    return [json.loads(line)["reference"] for line in file.read_text().splitlines()]


def written(folder, labels, feature, column):
    if feature is None:
        file = folder / "rows.jsonl"
        rows = [{"text": text, column: label} for text, label in zip(TEXTS, labels, strict=True)]
        file.write_text("\n".join(map(json.dumps, rows)))
        return file
    file = folder / "rows.parquet"
    features = Features({"text": Value("string"), column: feature})
    Dataset.from_dict({"text": TEXTS, column: labels}, features=features).to_parquet(str(file))
    return file


STARS = ([0, 1, 2, 0], ClassLabel(names=["1", "2", "3"]), None, ["1", "2", "3", "1"])
DIGITS = ([0, 1, 1, 0], ClassLabel(names=["1", "0"]), None, ["1", "0", "0", "1"])
BOOLEANS = ([True, False, False, True], None, {"true": "yes", "false": "no"}, ["yes", "no", "no", "yes"])
FLOATS = ([1.0, 0.0, 0.0, 1.0], None, {1: "yes", 0: "no"}, ["yes", "no", "no", "yes"])


@pytest.mark.parametrize(
    ("kind", "column", "labels", "feature", "words", "expected"),
    [
        ("one", "Label", *DIGITS),
        ("one", "label", *BOOLEANS),
        ("ensemble", "Label", *STARS),
        ("tasks", "label", *FLOATS),
        ("tasks", "labels", *DIGITS),
    ],
)
def test_labels_keep_their_words(kind, column, labels, feature, words, expected, backbone, tmp_path, monkeypatch):
    file = written(tmp_path, labels, feature, column)
    given = {} if words is None else {"label_words": words}
    values = values_of(backbone, tmp_path, file, label_column=column, **given)
    out = tmp_path / "out"
    if kind == "ensemble":
        values["num_prompts"] = 2
    if kind == "tasks":
        values["tasks"] = [{"name": "a"}]
        out /= "a"
    run(monkeypatch, tmp_path, values)
    assert references(out / "predictions.jsonl") == expected
    template = read_prompt(out if kind != "ensemble" else out / "prompt_1").info.template
    assert sorted(template.label_words.values()) == sorted(set(expected))


def test_a_text_column_called_input_ids(backbone, tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    rows = [{"input_ids": text, "length": str(i % 2)} for i, text in enumerate(TEXTS)]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = {"0": "no", "1": "no complaint"}
    template = "Message : {input_ids} Label :"
    values = values_of(
        backbone, tmp_path, file, source_template=template, label_column="length", label_words=words, num_prompts=2
    )
    run(monkeypatch, tmp_path, values)
    assert references(tmp_path / "out/predictions.jsonl") == ["no", "no complaint"] * 2

"""A prompt is evaluated on data that it was not trained on, and says so in its results and its card."""

import importlib.util
import json
import sys

import pytest
import yaml

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.cli import arguments
from hf_prompt_tuning.cli.arguments import parse_arguments
from hf_prompt_tuning.cli.data_arguments import DataArguments
from hf_prompt_tuning.cli.splits import load_transfer
from hf_prompt_tuning.data.files import read_file
from hf_prompt_tuning.prompts.files import read_prompt
from hf_prompt_tuning.prompts.info import PromptInfo
from tests.shared.reference import tiny_prompt_model
from tests.shared.repository import ROOT
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE, TEMPLATE, make


@pytest.fixture
def files(tmp_path, messages):
    """Two other domains: one with the template's columns, one with columns of its own."""
    reviews = [{"review": row["message"], "verdict": row["label"], "message": "unused"} for row in messages[:5]]
    for name, rows in (("train", messages), ("calls", messages[3:7]), ("reviews", reviews)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_metrics_are_those_of_evaluating_there(files, tmp_path, tokenizer, messages):
    trainer = make(tmp_path / "out", tokenizer, messages, eval_rows=messages)
    trainer.train()
    before = trainer.evaluate()
    named = [f"calls={files}/calls.jsonl", f"reviews={files}/reviews.jsonl"]
    columns = ["reviews.review=message", "reviews.verdict=label"]
    data = load_transfer(DataArguments(transfer_file=named, transfer_columns=columns), TEMPLATE)
    assert [row["message"] for row in data["reviews"]] == [row["message"] for row in messages[:5]]
    metrics = trainer.evaluate_transfer(data)
    info = trainer.model.info
    for name, rows in (("calls", messages[3:7]), ("reviews", messages[:5])):
        expected = trainer.predict(rows).metrics
        for metric in ("accuracy", "f1", "loss", "perplexity"):
            assert metrics[f"transfer_{name}_{metric}"] == pytest.approx(expected[f"test_{metric}"], rel=1e-6)
        kept = {metric: expected[f"test_{metric}"] for metric in ("accuracy", "f1", "loss", "perplexity")}
        assert info.transfer[name] == pytest.approx(kept | {"rows": len(rows)}, rel=1e-6)
    # the validation's own results are as they were
    assert info.metrics["eval_loss"] == before["eval_loss"]
    assert sum(map(sum, info.confusion_matrix["counts"])) == 12
    trainer.save_model()
    assert read_prompt(tmp_path / "out").info.transfer == info.transfer
    assert json.loads((tmp_path / "out/results.json").read_text())["transfer"] == info.transfer
    card = (tmp_path / "out/README.md").read_text()
    section = card.split("## Transfer")[1].split("\n## ")[0]
    assert f"| calls | accuracy | {info.transfer['calls']['accuracy']:.4g} |" in section
    assert "| reviews | rows | 5 |" in section and "![Loss]" not in section


def test_a_damaged_record_is_refused():
    for damaged in ([], {"mrpc": 0.5}, {"mrpc": {"accuracy": "high"}}):
        with pytest.raises(PromptTuningError, match="transfer"):
            PromptInfo.from_json({"format_version": 1, "transfer": damaged})


def test_free_text_transfers_too(tmp_path, tokenizer, messages):
    rows = [{"message": row["message"], "answer": "yes"} for row in messages]
    trainer = make(tmp_path, tokenizer, rows, FREE)
    assert {"transfer_other_rougeL", "transfer_other_loss"} <= set(trainer.evaluate_transfer({"other": rows[:3]}))


def test_a_card_without_transfer_says_nothing_of_it(tmp_path):
    tiny_prompt_model("llama").save_pretrained(tmp_path)
    assert "Transfer" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("named", "columns", "message"),
    [
        (["calls.jsonl"], [], r"transfer_file has 'calls.jsonl'; give NAME=FILE"),
        (["a.b=calls.jsonl"], [], r"transfer_file has 'a.b=.*calls.jsonl'; give NAME=FILE"),
        (["a=calls.jsonl", "a=reviews.jsonl"], [], r"each NAME .* once"),
        (["a=nowhere.jsonl"], [], "the data file '.*nowhere.jsonl' is not there"),
        (["a=calls.jsonl"], ["review=message"], r"transfer_columns has 'review=message'; .* \(a\)"),
        (["a=calls.jsonl"], ["b.review=message"], r"transfer_columns has 'b.review=message'"),
        (["a=reviews.jsonl"], ["a.text=message"], r"names a.text, and the transfer data 'a' has the columns 'review'"),
        (["a=reviews.jsonl"], ["a.message=other"], r"field \{message\} is no column of the transfer \(a\) data"),
        (
            ["a=reviews.jsonl"],
            ["a.review=message"],
            r"column 'label' is no column of the transfer data 'a'",
        ),
        (["a=reviews.jsonl"], ["a.review=label"], r"the label 'never came' \(column 'label'\) has no words"),
        (["a=bare.jsonl"], [], r"no row of the transfer data 'a' has a label"),
    ],
)
def test_what_would_fail_after_training_fails_before(named, columns, message, files):
    (files / "bare.jsonl").write_text('{"message": "x", "label": ""}')
    named = [given.replace("=", f"={files}/") for given in named]
    with pytest.raises(PromptTuningError, match=message):
        load_transfer(DataArguments(transfer_file=named, transfer_columns=columns), TEMPLATE)


def test_flags_add_up_and_override_the_file(files):
    config = files / "config.yaml"
    config.write_text(yaml.safe_dump({"model_name_or_path": "m", "output_dir": "o", "transfer_file": ["a=1", "b=2"]}))
    assert parse_arguments([str(config)])[1].transfer_file == ["a=1", "b=2"]
    flags = ["--transfer_file", "c=3", "d=4", "--transfer_file=e=5"]
    assert parse_arguments([str(config), *flags])[1].transfer_file == ["c=3", "d=4", "e=5"]


def test_the_articles_experiment(monkeypatch):
    """QQP to MRPC: which files and columns would be read, without the Hub."""
    monkeypatch.setattr(arguments, "split_names", lambda *_: ["train", "validation", "test"])
    _, data, *_, training = parse_arguments([str(ROOT / "examples/qqp_to_mrpc.yaml"), "--model_name_or_path", "m"])
    read = {}

    def mrpc(file, *_):
        from datasets import ClassLabel, Dataset, Features, Value

        read["file"] = file
        text = Value("string")
        features = {"sentence1": text, "sentence2": text, "label": ClassLabel(names=["not_equivalent", "equivalent"])}
        rows = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "label": [1, 0]}
        return Dataset.from_dict(rows, features=Features(features))

    monkeypatch.setattr("hf_prompt_tuning.cli.splits.read_file", mrpc)
    template = data.template()
    rows = load_transfer(data, template)["mrpc"]
    assert read["file"] == "hf://datasets/nyu-mll/glue/mrpc/validation-00000-of-00001.parquet"
    assert template.source_text(rows[0]) == "first : a second : b Do they mean the same ?"
    assert [template.target_text(row) for row in rows] == ["yes", "no"]
    assert training.load_best_model_at_end and training.metric_for_best_model == "accuracy"


def test_a_file_of_the_hub_is_asked_of_the_hub():
    """Not of this machine's disk; there is no Hub here, and that is said."""
    with pytest.raises(
        PromptTuningError,
        match=r"the data file 'hf://datasets/a/b/c.parquet' cannot be read as parquet: .* Check its URL",
    ):
        read_file("hf://datasets/a/b/c.parquet")


def test_the_command_reports_it(files, tmp_path, monkeypatch, capsys):
    """One small run, from flags to files; in this process, which has everything imported."""
    tiny_model("llama").save_pretrained(tmp_path / "backbone")
    make_tokenizer("gpt2").save_pretrained(tmp_path / "backbone")
    values = {
        "model_name_or_path": tmp_path / "backbone",
        "train_file": files / "train.jsonl",
        "source_template": "Message : {message} Label :",
        "label_column": "label",
        "label_words": json.dumps({"1": "complaint", "2": "no complaint"}),
        "num_virtual_tokens": 3,
        "max_steps": 2,
        "output_dir": tmp_path / "out",
        "use_cpu": "true",
        "report_to": "none",
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    flags += ["--transfer_file", f"calls={files}/calls.jsonl", "--transfer_file", f"reviews={files}/reviews.jsonl"]
    flags += ["--transfer_columns", "reviews.review=message", "reviews.verdict=label"]
    spec = importlib.util.spec_from_file_location("run_prompt_tuning", ROOT / "run_prompt_tuning.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["run_prompt_tuning.py", *flags])
    script.main()
    assert "transfer_calls_accuracy" in capsys.readouterr().out
    results = json.loads((tmp_path / "out/all_results.json").read_text())
    assert {"transfer_calls_accuracy", "transfer_reviews_f1", "train_loss"} <= set(results)
    kept = read_prompt(tmp_path / "out").info.transfer
    assert kept["reviews"]["accuracy"] == results["transfer_reviews_accuracy"] and kept["calls"]["rows"] == 4
    assert "## Transfer" in (tmp_path / "out/README.md").read_text()

"""The page on classification heads: its code and its commands run as they are written."""

import json
import re
import shlex
import sys

import torch
from transformers import TrainingArguments

from hf_prompt_tuning import PromptTuningArguments
from hf_prompt_tuning.cli import train
from tests.shared.answer_rows import ROWS as ANSWERED
from tests.shared.answer_rows import answer_backbone, answer_rows, answer_tokenizer
from tests.shared.classifiers import tiny_base_model, tiny_classifier, tokenizer_with_cls
from tests.shared.doc_pages import run
from tests.shared.repository import ROOT
from tests.shared.text_pairs import pair_tokenizer

PAGE = "how-to/classification-head.md"
PAIRS = [
    {"sentence1": "never came", "sentence2": "the parcel came", "label": "praise"},
    {"sentence1": "thank you", "sentence2": "great help", "label": "complaint"},
]
ROWS = [
    {"message": "never came", "label": "complaint"},
    {"message": "thank you", "label": "praise"},
    {"message": "why is my line down", "label": "complaint"},
    {"message": "great help", "label": "praise"},
]
TAGGED = [
    {"tokens": ["the", "old", "town"], "tags": ["O", "B-LOC", "I-LOC"]},
    {"tokens": ["a", "dog"], "tags": ["O", "O"]},
]


def test_the_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.TrainingArguments", here(TrainingArguments))
    monkeypatch.setattr("hf_prompt_tuning.PromptTuningArguments", here(PromptTuningArguments))
    backbone = tiny_classifier("bert", num_labels=2, id2label={0: "praise", 1: "complaint"})
    before = backbone.classifier.weight.clone()
    names = {"backbone": backbone, "tokenizer": pair_tokenizer(), "torch": torch, "pairs": PAIRS}
    names = run(PAGE, names | {"data": {"train": ROWS, "test": ROWS}})
    printed = capsys.readouterr().out
    assert {*printed.split()[-2:]} <= {"praise", "complaint"} and "{'label': " in printed
    trained = names["model"].prompt_encoder["default"].classifier["classifier"].weight
    assert not trained.equal(before) and backbone.classifier.weight.equal(before)
    assert names["template"].labels == ["praise", "complaint"]


def test_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_prompt_tuning.PromptTuningArguments", here(PromptTuningArguments))
    names = run("how-to/answers.md", {"backbone": answer_backbone(), "tokenizer": answer_tokenizer()})
    assert len(names["trainer"].train_dataset) > len(names["rows"])  # the context is cut
    answer = names["answer"]
    assert capsys.readouterr().out.split("\n")[-2] == f"{answer.text} {answer.start} {answer.score}"
    assert names["text"][answer.start :].startswith(answer.text) and 0 < answer.score < 1
    assert names["trainer"].predict(names["rows"]).predictions[0][:2] == answer[:2]


def test_the_command_for_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer_backbone().base_model.save_pretrained("MODEL")
    answer_tokenizer().save_pretrained("MODEL")
    example = re.search(r"^    (\{.*\})$", (ROOT / "docs" / "how-to/answers.md").read_text(), re.MULTILINE)[1]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([example, *map(json.dumps, answer_rows())]))
    (words,) = commands("how-to/answers.md")
    monkeypatch.setattr(sys, "argv", [*words, "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"])
    train.main()
    records = [json.loads(line) for line in (tmp_path / "outputs/answers/predictions.jsonl").read_text().splitlines()]
    assert [record["reference"] for record in records] == [["the parcel"], *([row[2]] for row in ANSWERED)]
    assert {*records[0]} == {"row", "input", "prediction", "start", "score", "reference"}


def test_embeddings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("how-to/embeddings.md", {"backbone": tiny_base_model("llama"), "tokenizer": tokenizer_with_cls()})
    nearest = (names["embedded"](names["questions"]) @ names["embedded"](names["answers"]).T).argmax(1)
    assert names["loss"] < 0.5 and nearest.tolist() == [0, 1, 2]


def here(kind):
    """The arguments of the page, on this machine."""
    quiet = dict(use_cpu=True, dataloader_pin_memory=False, report_to="none", disable_tqdm=True)
    return lambda *args, **options: kind(*args, **quiet | options)


def commands(page=PAGE):
    """The words of each command of the page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [
        shlex.split(command.replace("\\\n", " "))[1:]
        for command in re.findall(r"^    hf-prompt-tuning (?:.*\\\n)*.*$", text, re.MULTILINE)
    ]


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train", ROWS), ("test", ROWS), ("tagged", TAGGED), ("pairs", PAIRS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_classifier("bert").base_model.save_pretrained("MODEL")
    pair_tokenizer().save_pretrained("MODEL")
    found = commands()
    assert len(found) == 3 and all(words[0] == "train" for words in found)
    for words in found:
        monkeypatch.setattr(sys, "argv", [*words, "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"])
        train.main()
    texts = [json.loads(line) for line in (tmp_path / "outputs/texts/predictions.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in texts] == [row["label"] for row in ROWS]
    tags = [json.loads(line) for line in (tmp_path / "outputs/tags/predictions.jsonl").read_text().splitlines()]
    assert [len(row["prediction"]) for row in tags] == [3, 2]
    pairs = [json.loads(line) for line in (tmp_path / "outputs/pairs/predictions.jsonl").read_text().splitlines()]
    assert [row["input"] for row in pairs] == [
        {"text": row["sentence1"], "text_pair": row["sentence2"]} for row in PAIRS
    ]

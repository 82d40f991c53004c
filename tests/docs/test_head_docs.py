"""The page on classification heads: its code and its commands run as they are written."""

import json
import re
import shlex
import sys

import torch
from tokenizers.processors import TemplateProcessing
from transformers import TrainingArguments

from hf_prompt_tuning import PromptTuningArguments
from hf_prompt_tuning.cli import train
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
    monkeypatch.setattr("transformers.TrainingArguments", here(TrainingArguments))
    tokenizer, backbone = tokenizer_with_cls(), tiny_classifier("bert", "QUESTION_ANS", max_position_embeddings=128)
    special = dict(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**special)
    names = run("how-to/answers.md", {"backbone": backbone, "tokenizer": tokenizer})
    assert len(names["rows"]) > 3 and sum(row["start_positions"] > 0 for row in names["rows"]) == 2
    assert capsys.readouterr().out.split("\n")[-2].strip() in names["text"]


def test_embeddings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("how-to/embeddings.md", {"backbone": tiny_base_model("llama"), "tokenizer": tokenizer_with_cls()})
    nearest = (names["embedded"](names["questions"]) @ names["embedded"](names["answers"]).T).argmax(1)
    assert names["loss"] < 0.5 and nearest.tolist() == [0, 1, 2]


def here(kind):
    """The arguments of the page, on this machine."""
    quiet = dict(use_cpu=True, dataloader_pin_memory=False, report_to="none", disable_tqdm=True)
    return lambda *args, **options: kind(*args, **quiet | options)


def commands():
    """The words of each command of the page."""
    text = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
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

"""The code of the page on classification heads runs as it is written."""

from tokenizers.processors import TemplateProcessing
from transformers import TrainingArguments

from tests.shared.classifiers import tiny_base_model, tiny_classifier, tokenizer_with_cls
from tests.shared.doc_pages import run


def test_classification_head(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.TrainingArguments", arguments_here)
    backbone = tiny_classifier("bert", num_labels=2, id2label={0: "praise", 1: "complaint"})
    before = backbone.classifier.weight.clone()
    names = run("how-to/classification-head.md", {"backbone": backbone, "tokenizer": tokenizer_with_cls()})
    assert capsys.readouterr().out.split()[-1] in ("praise", "complaint")
    trained = names["model"].prompt_encoder["default"].classifier["classifier"].weight
    assert not trained.equal(before) and backbone.classifier.weight.equal(before)


def test_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.TrainingArguments", arguments_here)
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


def arguments_here(*args, **options):
    """The arguments of the page, on this machine."""
    quiet = dict(use_cpu=True, dataloader_pin_memory=False, report_to="none", disable_tqdm=True)
    return TrainingArguments(*args, **quiet | options)

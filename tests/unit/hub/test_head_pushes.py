"""A prompt with a classification head on the Hub: pushed by a run, and loaded by its name alone."""

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_prompt_tuning import load_prompt
from tests.shared.answer_rows import answer_backbone, answer_rows, answer_tokenizer, answer_trainer
from tests.shared.classifiers import tiny_classifier, tokenizer_with_cls
from tests.shared.head_runs import TEXTS, head_of, head_trainer, require_same, rows_of
from tests.shared.hub_client import contents


@pytest.mark.parametrize("kind", ["single", "tags"])
def test_a_run_pushes_its_head_which_loads_by_name(kind, hub, tmp_path):
    """The backbone on the Hub has no head; the prompt brings it, with its classes and its template."""
    tiny_classifier("bert").base_model.save_pretrained(tmp_path / "backbone")
    tokenizer_with_cls().save_pretrained(tmp_path / "backbone")
    hub.put("alice/bert", contents(tmp_path / "backbone"))
    auto, count = (AutoModelForTokenClassification, 4) if kind == "tags" else (AutoModelForSequenceClassification, 3)
    backbone = auto.from_pretrained("alice/bert", num_labels=count)
    push = dict(push_to_hub=True, hub_model_id="alice/heads", max_steps=2)
    trainer = head_trainer(tmp_path / "run", kind, backbone=backbone, eval_rows=rows_of(kind), **push)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    assert "adapter_model.safetensors" in hub.files("alice/heads")
    loaded = load_prompt("alice/heads")
    require_same(head_of(loaded.model), head_of(trainer.model))
    assert loaded.template == trainer.rows.tokenizer.template
    assert list(loaded.model.config.id2label.values()) == loaded.template.labels
    content = TEXTS[0].split() if kind == "tags" else {"message": TEXTS[0]}
    ids = torch.tensor([loaded.model.row_encoder(loaded.tokenizer).content_ids(content)])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        assert torch.equal(loaded.model(input_ids=ids).logits, expected)
    card = hub.files("alice/heads")["README.md"].decode()
    code = card.split("```python\n")[1].split("```")[0]
    words = code.replace('"..."', '"nobody"')
    exec(compile(words, "the card", "exec"), {})


def test_a_run_pushes_its_head_for_answers(hub, tmp_path, capsys):
    """The card's code finds an answer with the prompt alone, which brings its head and its template."""
    answer_backbone().base_model.save_pretrained(tmp_path / "backbone")
    answer_tokenizer().save_pretrained(tmp_path / "backbone")
    hub.put("alice/bert", contents(tmp_path / "backbone"))
    backbone, rows = AutoModelForQuestionAnswering.from_pretrained("alice/bert"), answer_rows()
    push = dict(push_to_hub=True, hub_model_id="alice/answers", max_steps=2)
    trainer = answer_trainer(tmp_path / "run", backbone=backbone, eval_rows=rows, **push)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    loaded = load_prompt("alice/answers")
    require_same(head_of(loaded.model), head_of(trainer.model))
    assert loaded.template == trainer.rows.tokenizer.template
    expected = trainer.predict(rows[:1]).predictions[0]
    card = hub.files("alice/answers")["README.md"].decode()
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace("...", "{}")
        .format(rows[0]["question"], rows[0]["context"])
    )
    capsys.readouterr()
    exec(compile(code, "the card", "exec"), {})
    assert capsys.readouterr().out.strip() == f"{expected.text} {expected.start}"

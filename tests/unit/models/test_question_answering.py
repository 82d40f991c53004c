"""Prompts with a head that finds answers: training, saving, loading, and refusals."""

import json

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_prompt_tuning import (
    PromptMismatchError,
    PromptTuningError,
    PromptTuningModelForQuestionAnswering,
    get_prompt_tuning_model,
    load_prompt,
)
from tests.shared.classifiers import tiny_classifier
from tests.shared.head_rows import P, with_prompt

IDS = torch.tensor([[1, 17, 30, 9], [1, 44, 8, 25]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


def tiny(name: str, **changes):
    return tiny_classifier(name, "QUESTION_ANS", **changes)


def logits_of(model, ids=IDS):
    with torch.no_grad():
        outputs = model.eval()(input_ids=ids)
    return torch.stack([outputs.start_logits, outputs.end_logits])


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def require_same(here, there):
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def trained(model, folder):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (6, 3, 6, 4, 6, 5):
        ids = [1, *torch.randint(4, 400, (length - 1,), generator=generator).tolist()]
        rows.append({"input_ids": ids, "start_positions": 1, "end_positions": length - 1, "note": "left out"})

    def collated(rows):
        width = max(len(row["input_ids"]) for row in rows)
        batch = {name: torch.tensor([row[name] for row in rows]) for name in ("start_positions", "end_positions")}
        batch["input_ids"] = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
        return batch | {"attention_mask": (batch["input_ids"] != 0).long()}

    plain = dict(use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, report_to="none")
    args = TrainingArguments(
        str(folder), learning_rate=1e-2, max_steps=6, per_device_train_batch_size=2, save_steps=3, **plain
    )
    trainer = Trainer(model, args, data_collator=collated, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("name", "position"), [("bert", "after_bos"), ("modernbert", "start"), ("llama", "start")])
def test_trainer_trains_prompt_and_head_which_reload_bit_for_bit(name, position, tmp_path):
    backbone = tiny(name)
    state, model = state_of(backbone), with_prompt(backbone, position)
    assert type(model) is PromptTuningModelForQuestionAnswering and model.task_type == "QUESTION_ANS"
    head = model.prompt_encoder["default"].classifier
    before, vectors = state_of(head), model.prompt.detach().clone()
    trainer = trained(model, tmp_path / "run")
    after = trainer.predict(trainer.eval_dataset)
    assert after.metrics["test_loss"] < 1.5 and [part.shape for part in after.predictions] == [(6, 6), (6, 6)]
    assert not torch.equal(model.prompt, vectors)
    assert not any(torch.equal(before[key], value) for key, value in head.state_dict().items() if "weight" in key)
    require_same(state_of(backbone), state)
    trainer.save_model(str(tmp_path / "saved"))
    again = load_prompt(tmp_path / "saved", backbone=tiny(name)).model
    assert type(again) is PromptTuningModelForQuestionAnswering
    assert torch.equal(again.prompt, model.prompt) and torch.equal(logits_of(again), logits_of(model))
    require_same(again.prompt_encoder["default"].classifier.state_dict(), head.state_dict())
    checkpoint = load_prompt(tmp_path / "run" / "checkpoint-6", backbone=tiny(name)).model
    assert torch.equal(logits_of(checkpoint), logits_of(model))
    described = json.loads((tmp_path / "saved" / "prompt_tuning.json").read_text())["classifier"]
    assert described == {"id2label": {"0": "start", "1": "end"}, "problem_type": None, "is_trained": True}
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card and "model.answer(tokenizer, question=" in card
    assert "logits[0]" not in card
    assert "| answers | a head with scores of their first and last tokens, trained with the vectors |" in card


def test_a_backbone_that_is_loaded_by_name_has_a_head_for_answers(tmp_path):
    """Also where the config tells of five classes of texts."""
    backbone = tiny("bert")
    backbone.config.num_labels = 5
    backbone.base_model.save_pretrained(tmp_path / "bert")
    backbone.config.num_labels = 2
    model = with_prompt(backbone)
    model.save_pretrained(tmp_path / "prompt")
    again = load_prompt(tmp_path / "prompt", backbone=tmp_path / "bert", tokenizer=object()).model
    torch.testing.assert_close(logits_of(again), logits_of(model))


def test_peft_writes_a_folder_that_is_read(tmp_path):
    import peft

    config = peft.PromptTuningConfig(task_type="QUESTION_ANS", num_virtual_tokens=P)
    theirs = peft.get_peft_model(tiny("bert"), config)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    ours = load_prompt(tmp_path, backbone=tiny("bert")).model
    torch.testing.assert_close(logits_of(ours, IDS[:1]), logits_of(theirs, IDS[:1])[..., P:])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (([1, 2], None), "end_positions is missing beside the other"),
        (([1, -1], [1, 3]), r"start_positions of row 1 is -1, which is below 0; .* or 4 or more to leave the row out"),
        (([1, 2], [1, 0]), "end_positions of row 1 is 0, which is a pad; give the column in the padded batch"),
        (([1.0, 2.0], [1, 2]), r"start_positions has shape \[2\] and dtype torch.float32; give whole numbers"),
        (([1, 2, 3], [1, 2]), r"start_positions has shape \[3\]"),
    ],
)
def test_positions_that_are_refused(positions, message):
    model = with_prompt(tiny("bert"))
    given = [None if values is None else torch.tensor(values) for values in positions]
    with pytest.raises(PromptTuningError, match=message):
        model(input_ids=IDS, attention_mask=MASK, start_positions=given[0], end_positions=given[1])


def test_what_is_refused(tmp_path):
    refused = pytest.raises(PromptTuningError, match="labels is given, which is for language models; leave it out")
    model = with_prompt(tiny("bert"))
    with refused:
        model(input_ids=IDS, labels=IDS)
    with pytest.raises(PromptTuningError, match="gives 3 numbers for a token, and an answer's start and end are 2"):
        with_prompt(tiny("roberta", num_labels=3))
    with pytest.raises(PromptTuningError, match="BertForQuestionAnswering is a QUESTION_ANS model"):
        get_prompt_tuning_model(tiny("bert"), model.peft_config["default"].__class__(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path)
    with pytest.raises(PromptMismatchError, match="is a prompt of task type QUESTION_ANS"):
        load_prompt(tmp_path, backbone=tiny_classifier("bert"))
    frozen = load_prompt(tmp_path, backbone=tiny("bert")).model.train()
    loss = frozen(input_ids=IDS, start_positions=IDS[:, 0], end_positions=IDS[:, 0]).loss
    with pytest.raises(PromptTuningError, match="was loaded without is_trainable=True"):
        loss.backward()

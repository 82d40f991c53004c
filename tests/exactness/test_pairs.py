"""Pairs of texts behind a prompt equal each row alone by hand: training, predictions, and what others do with them."""

import json

import pytest
import torch
from torch.nn import functional
from transformers import pipeline

from hf_prompt_tuning import PromptTuningArguments, PromptTuningConfig, PromptTuningTrainer, load_prompt
from tests.shared.classifiers import hidden_by_hand, sequence_logits_by_hand, tiny_classifier
from tests.shared.head_runs import require_step, trained_weights
from tests.shared.reference import relative_error
from tests.shared.text_pairs import LABELS, PAIR, PAIRS, ids_by_hand, pair_rows, pair_tokenizer

NAMES = ["maybe", "no", "yes"]
BACKBONES = {
    "bert": ("bert", {}),
    "electra": ("bert", {}),
    "deberta-v2": ("bert", {}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "distilbert": ("bert", {}),  # it has no token types, whatever the tokenizer gives
    "modernbert": ("roberta", {}),
    "t5": ("t5", {}),
    "llama": ("llama", {}),
}
READ_TYPES = ("bert", "electra", "deberta-v2")


def pair_trainer(folder, name, side="right", position="start", **values):
    kind, changes = BACKBONES[name]
    torch.manual_seed(1)
    quiet = dict(use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", logging_steps=1)
    config = dict(num_virtual_tokens=4, prompt_tuning_init="RANDOM", random_range=1.0, prompt_position=position)
    return PromptTuningTrainer(
        tiny_classifier(name, id2label=dict(enumerate(NAMES)), **changes),
        PromptTuningArguments(str(folder), **quiet | values),
        train_dataset=pair_rows(),
        eval_dataset=pair_rows(),
        processing_class=pair_tokenizer(kind, side),
        template=PAIR,
        prompt_config=PromptTuningConfig(**config),
    )


def logits_by_hand(model, name, behind=0, pairs=PAIRS):
    """The logits [rows, L] of each pair alone, whose ids and token types are put together by hand."""
    backbone, head = model.get_base_model(), model.prompt_encoder["default"].classifier
    found = []
    for text, pair in pairs:
        ids, types = ids_by_hand(BACKBONES[name][0], text, pair)
        given = {"token_type_ids": torch.tensor(types)} if name in READ_TYPES else {}
        hidden = hidden_by_hand(backbone, model.prompt, torch.tensor(ids), behind, **given)
        found.append(sequence_logits_by_hand(backbone, head, hidden))
    return torch.stack(found)


def loss_by_hand(logits):
    return functional.cross_entropy(logits, torch.tensor([NAMES.index(label) for label in LABELS]))


CASES = [(name, "right", "start", "auto") for name in BACKBONES]
CASES += [(name, "left", "after_bos", "padded") for name in ("bert", "roberta", "deberta-v2", "llama")]
CASES += [(name, "left", "start", "packed") for name in ("bert", "electra", "roberta")]


@pytest.mark.parametrize(("name", "side", "position", "layout"), CASES)
def test_a_step_and_predictions_are_those_of_each_pair_alone(name, side, position, layout, tmp_path):
    behind = int(position == "after_bos")
    options = dict(optim="sgd", lr_scheduler_type="constant", learning_rate=0.5, head_learning_rate=0.25)
    options |= dict(max_steps=1, per_device_train_batch_size=5, per_device_eval_batch_size=3, max_grad_norm=0.0)
    if layout != "auto":
        options |= dict(layout=layout)
    trainer = pair_trainer(tmp_path, name, side, position, **options)
    model = trainer.model
    with torch.no_grad():
        by_hand = logits_by_hand(model.eval(), name, behind)
    output = trainer.predict(pair_rows())
    assert relative_error(torch.tensor(output.predictions), by_hand) < 1e-5
    assert output.metrics["test_loss"] == pytest.approx(loss_by_hand(by_hand).item(), rel=1e-5)
    assert output.metrics["test_accuracy"] == pytest.approx(
        (by_hand.argmax(1) == torch.tensor([NAMES.index(label) for label in LABELS])).float().mean().item()
    )
    before, loss = trained_weights(model), loss_by_hand(logits_by_hand(model.train(), name, behind))
    require_step(trainer, loss, before)


def test_token_types_count(tmp_path):
    """Without them the predictions are others, so that the tests above would see them dropped."""
    trainer = pair_trainer(tmp_path, "bert")
    kept = trainer.predict(pair_rows()).predictions
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in trainer.train_dataset]
    assert relative_error(torch.tensor(trainer.predict(rows).predictions), torch.tensor(kept)) > 1e-2


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_a_loaded_prompt_and_transformers_pipeline_read_pairs(name, size, tmp_path):
    trainer = pair_trainer(tmp_path / "prompt", name)
    trainer.save_model()
    described = json.loads((tmp_path / "prompt" / "prompt_tuning.json").read_text())
    assert described["template"]["pair"] == "{hypothesis}" and described["template"]["source"] == "{premise}"
    kind, changes = BACKBONES[name]
    tiny_classifier(name, **changes).save_pretrained(tmp_path / "backbone")
    tokenizer = pair_tokenizer(kind)
    loaded = load_prompt(tmp_path / "prompt", backbone=tmp_path / "backbone", tokenizer=tokenizer)
    model, _, template = loaded
    assert template == trainer.rows.tokenizer.template and "'{premise}' + '{hypothesis}' ->" in repr(loaded)
    with torch.no_grad():
        by_hand = logits_by_hand(trainer.model.eval(), name)
        for row, expected in zip(pair_rows(), by_hand, strict=True):
            inputs = model.row_encoder(tokenizer).content_inputs(row)
            found = model(**{key: torch.tensor([values]) for key, values in inputs.items()}).logits[0]
            assert relative_error(found, expected) < 1e-5
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    texts = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    assert texts == [template.shown(row) for row in pair_rows()]
    for scores, expected in zip(classify(texts, batch_size=size, top_k=None), by_hand.softmax(-1), strict=True):
        assert {score["label"]: score["score"] for score in scores} == pytest.approx(
            dict(zip(NAMES, expected.tolist(), strict=True)), abs=1e-5
        )

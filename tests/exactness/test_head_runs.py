"""Steps with a classification head equal steps by hand: each row alone, unpadded, and torch's own losses."""

import pytest
import torch
from torch.nn import functional

from tests.shared.classifiers import hidden_by_hand, sequence_logits_by_hand, token_logits_by_hand, tokenizer_with_cls
from tests.shared.head_runs import (
    NAMES,
    NUMBERS,
    SEVERAL,
    TAGS,
    TEXTS,
    head_trainer,
    require_step,
    rows_of,
    trained_weights,
)
from tests.shared.reference import relative_error

WEIGHTS = {"complaint": 0.5, "other": 4.0, "praise": 2.0}
POSITIVE = [2.0, 0.5, 3.0]
TAG_NAMES = ["B-X", "B-Y", "I-Y", "O"]
KINDS = {
    "single": {},
    "single, weighted": {"class_weights": WEIGHTS},
    "single, balanced": {"class_weights": "balanced"},
    "single, smoothed": {"class_weights": [0.5, 4, 2], "label_smoothing_factor": 0.2},
    "numbers": {},
    "several": {},
    "several, weighted": {"pos_weight": POSITIVE},
    "tags": {},
    "tags, weighted": {"class_weights": '{"B-X": 3, "B-Y": 2, "I-Y": 5, "O": 0.25}'},
}


def logits_by_hand(model, kind):
    """The logits of each row alone: [L], or [words, L] of each word's first token."""
    backbone, head, tokenizer = (
        model.get_base_model(),
        model.prompt_encoder["default"].classifier,
        tokenizer_with_cls(),
    )
    found = []
    for text in TEXTS:
        ids, places = tokenizer(text)["input_ids"], []
        if kind == "tags":
            ids = [tokenizer.bos_token_id]
            for i, word in enumerate(text.split()):
                places.append(len(ids))
                ids += tokenizer(word if i == 0 else f" {word}", add_special_tokens=False)["input_ids"]
            assert ids == tokenizer(text.split(), is_split_into_words=True)["input_ids"]
        hidden = hidden_by_hand(backbone, model.prompt, torch.tensor(ids), behind=0)
        if kind == "tags":
            found.append(token_logits_by_hand(backbone, head, hidden)[places])
        else:
            found.append(sequence_logits_by_hand(backbone, head, hidden))
    return found


def loss_by_hand(logits, kind, weighted=True):
    """torch's own loss of all rows in one batch."""
    what = kind.partition(",")[0]
    if what == "tags":
        labels = torch.tensor([TAG_NAMES.index(tag) for row in TAGS for tag in row])
        weight = torch.tensor([3, 2, 5, 0.25]) if kind != "tags" and weighted else None
        return functional.cross_entropy(torch.cat(logits), labels, weight=weight)
    logits = torch.stack(logits)
    if what == "single":
        names = sorted(set(NAMES))
        labels = torch.tensor([names.index(name) for name in NAMES])
        weight = {
            "single, balanced": torch.tensor([6 / (3 * NAMES.count(name)) for name in names]),
            "single": None,
        }.get(kind, torch.tensor([0.5, 4.0, 2.0]))
        smoothing = 0.2 if kind == "single, smoothed" else 0.0
        if not weighted:
            weight, smoothing = None, 0.0
        return functional.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    if what == "several":
        labels = torch.tensor([[float(name in row) for name in "abc"] for row in SEVERAL])
        weight = torch.tensor(POSITIVE) if kind != "several" and weighted else None
        return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
    return functional.mse_loss(logits[:, 0], torch.tensor(NUMBERS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "size"), [("bert", 6), ("deberta-v2", 2), ("llama", 2)])
def test_a_step_is_one_of_torchs_loss_of_all_rows(kind, name, size, tmp_path):
    """In one batch, and in three that accumulate."""
    rates = dict(learning_rate=0.5, head_learning_rate=0.25, optim="sgd", lr_scheduler_type="constant")
    trainer = head_trainer(
        tmp_path,
        kind.partition(",")[0],
        name,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=6 // size,
        max_grad_norm=0.0,
        max_steps=1,
        **rates,
        **KINDS[kind],
    )
    model = trainer.model.train()
    before, loss = trained_weights(model), loss_by_hand(logits_by_hand(model, kind.partition(",")[0]), kind)
    require_step(trainer, loss, before)


@pytest.mark.parametrize("kind", ["single, weighted", "numbers", "several, weighted", "tags, weighted"])
def test_predictions_are_those_of_each_row_alone(kind, tmp_path):
    """In the rows' order and in batches of any size; the loss of an evaluation has no weights."""
    what = kind.partition(",")[0]
    losses = []
    for size in (1, 4):
        trainer = head_trainer(tmp_path, what, per_device_eval_batch_size=size, **KINDS[kind])
        with torch.no_grad():
            by_hand = logits_by_hand(trainer.model.eval(), what)
        output = trainer.predict(rows_of(what))
        losses.append(output.metrics["test_loss"])
        assert losses[-1] == pytest.approx(loss_by_hand(by_hand, kind, weighted=False).item(), rel=1e-5)
        for row, (logits, expected) in enumerate(zip(torch.tensor(output.predictions), by_hand, strict=True)):
            if what == "tags":
                places = trainer.rows.tokenizer.word_tokens(TEXTS[row].split())[1]
                logits = logits[places]
                assert output.label_ids[row][places].tolist() == [TAG_NAMES.index(tag) for tag in TAGS[row]]
            assert relative_error(logits.reshape(expected.shape), expected) < 1e-5
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)

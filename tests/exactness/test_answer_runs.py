"""Runs with a head for answers equal what is done by hand: each window alone, unpadded, cut from the text by hand."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_prompt_tuning import Answer
from tests.shared.answer_rows import ROWS, answer_rows, answer_tokenizer, answer_trainer
from tests.shared.classifiers import TOKEN_TYPES, hidden_by_hand, token_logits_by_hand
from tests.shared.head_runs import trained_weights

WINDOW, STRIDE, LONGEST = 40, 8, 6
NONE = 4
"""The row that has no answer."""


def windows_by_hand(question, context, first, behind):
    """The windows of a row: ids, the number of the question's tokens, the characters of each context token, labels."""
    tokenizer = answer_tokenizer()
    whole = tokenizer(question, context, return_offsets_mapping=True)
    parts = whole.sequence_ids()
    asked = [i for i, part in zip(whole["input_ids"], parts, strict=True) if part == 0]
    tokens = [i for i, part in enumerate(parts) if part == 1]
    room, begin = WINDOW - len(asked) - 3, 0
    windows = []
    while True:
        part = tokens[begin : begin + room]
        ids = [1, *asked, 2, *(whole["input_ids"][i] for i in part), 2]
        offsets = [whole["offset_mapping"][i] for i in part]
        has = [i for i, (here, there) in enumerate(offsets) if here < behind and there > first]
        is_whole = has and offsets[0][0] <= first and offsets[-1][1] >= behind
        columns = (has[0] + len(asked) + 2, has[-1] + len(asked) + 2) if is_whole else (0, 0)
        windows.append((ids, len(asked), offsets, columns))
        if begin + room >= len(tokens):
            return windows
        begin += room - STRIDE


def logits_by_hand(model, ids, asked):
    """Start and end scores of one window alone, [n, 2]."""
    backbone, types = model.get_base_model(), {}
    if backbone.config.model_type in TOKEN_TYPES:
        types["token_type_ids"] = torch.tensor([0] * (asked + 2) + [1] * (len(ids) - asked - 2))
    behind = len(model.active_peft_config.head)
    hidden = hidden_by_hand(backbone, model.prompt, torch.tensor(ids), behind, **types)
    return token_logits_by_hand(backbone, model.prompt_encoder["default"].classifier, hidden)


def rows_by_hand():
    for i, (question, context, text, start) in enumerate(ROWS):
        place = (-1, -1) if i == NONE else (start, start + len(text))
        yield context, windows_by_hand(question, context, *place)


def loss_by_hand(model):
    """The mean over all windows of the mean of two cross-entropies."""
    losses = []
    for _, windows in rows_by_hand():
        for ids, asked, _, columns in windows:
            logits = logits_by_hand(model, ids, asked)
            losses += [cross_entropy(logits[None, :, side], torch.tensor([columns[side]])) for side in (0, 1)]
    return sum(losses) / len(losses)


def answers_by_hand(model):
    """The best span of each row, looked for one by one."""
    for context, windows in rows_by_hand():
        best, none = None, float("inf")
        for ids, asked, offsets, _ in windows:
            scores = logits_by_hand(model, ids, asked).log_softmax(0).tolist()
            none = min(none, sum(scores[0]))
            for i in range(len(offsets)):
                for j in range(i, min(i + LONGEST, len(offsets))):
                    score = scores[asked + 2 + i][0] + scores[asked + 2 + j][1]
                    if best is None or score > best[0]:
                        best = (score, offsets[i][0], offsets[j][1])
        score, here, there = best
        if none > score:
            yield Answer("", None, math.exp(none))
            continue
        text = context[here:there]
        yield Answer(text.strip(), here + len(text) - len(text.lstrip()), math.exp(score))


@pytest.mark.parametrize(("side", "position"), [("right", "start"), ("left", "after_bos")])
@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_an_evaluation_is_one_by_hand(name, side, position, tmp_path):
    """In batches of padded windows; before and after some steps, so that rows have answers and none."""
    rows = answer_rows(without=[NONE])
    prompt = {"prompt_position": position}
    own = dict(per_device_eval_batch_size=3, max_steps=12, head_learning_rate=2e-2, learning_rate=2e-2)
    trainer = answer_trainer(tmp_path, name, rows=rows, eval_rows=rows, side=side, prompt=prompt, **own)
    for step in range(2):
        with torch.no_grad():
            expected, loss = list(answers_by_hand(trainer.model.eval())), loss_by_hand(trainer.model).item()
        output = trainer.predict(rows)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
        assert output.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
        for answer, by_hand in zip(output.predictions, expected, strict=True):
            assert answer[:2] == by_hand[:2]
            assert answer.score == pytest.approx(by_hand.score, rel=1e-4, abs=1e-5)
        right = [answer.text == ("" if i == NONE else ROWS[i][2]) for i, answer in enumerate(expected)]
        assert output.metrics["test_exact_match"] == pytest.approx(sum(right) / len(right))
        if step == 0:
            trainer.train()


@pytest.mark.parametrize(
    ("name", "size", "side"), [("bert", 8, "right"), ("roberta", 2, "left"), ("llama", 2, "left")]
)
def test_a_step_is_one_of_the_loss_of_all_windows(name, size, side, tmp_path):
    """In one batch, and in several that accumulate, of which the last has fewer windows."""
    rates = dict(learning_rate=0.5, head_learning_rate=0.25, optim="sgd", lr_scheduler_type="constant")
    trainer = answer_trainer(
        tmp_path,
        name,
        rows=answer_rows(without=[NONE]),
        side=side,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=8 // size,
        max_grad_norm=0.0,
        max_steps=1,
        **rates,
    )
    assert len(trainer.train_dataset) == 7
    model = trainer.model.train()
    before, loss = trained_weights(model), loss_by_hand(model)
    loss.backward()
    expected = {}
    for key, weight in model.named_parameters():
        if weight.requires_grad:
            rate = 0.25 if "classifier" in key else 0.5
            expected[key] = (weight.detach() - rate * weight.grad).clone()
    model.zero_grad()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for key, weight in trained_weights(model).items():
        moved = (expected[key] - before[key]).norm()
        assert (weight - expected[key]).norm() < max(1e-4 * moved, 1e-6), key

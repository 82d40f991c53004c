"""Heads that find answers, behind a prompt: logits, loss and gradients equal each row alone, unpadded and by hand."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.shared.classifiers import DECODERS, ENCODERS, tiny_classifier
from tests.shared.head_rows import (
    LENGTHS,
    adds_to_all_columns,
    alone,
    batch_of,
    gradients,
    require_equal,
    rows_of,
    with_prompt,
)
from tests.shared.reference import relative_error

NAMES = [name for name in (*ENCODERS, *DECODERS, "bart") if name != "gemma2"]  # which has no such head
STARTS, ENDS = (2, 0, 0, 3), (6, 11, 0, 3)
BEYOND = 99


def answers(model, side: str, starts, ends) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch of ragged rows, and the columns of its answers, which stand in the rows at these tokens."""
    batch = batch_of(rows_of(model.config.model_type), side)
    pads = torch.tensor([max(LENGTHS) - length if side == "left" else 0 for length in LENGTHS])
    return batch, {"start_positions": torch.tensor(starts) + pads, "end_positions": torch.tensor(ends) + pads}


def loss_by_hand(logits: list[Tensor], starts, ends) -> Tensor:
    """The mean over rows of the mean of two cross-entropies of each row's tokens. Logits are [n, 2] of each row."""
    sides = []
    for side, positions in enumerate((starts, ends)):
        losses = [
            cross_entropy(row[None, :, side], torch.tensor([at]))
            for row, at in zip(logits, positions, strict=True)
            if at != BEYOND
        ]
        sides.append(sum(losses) / len(losses))
    return sum(sides) / 2


@pytest.mark.parametrize("position", ["start", "after_bos"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_found_as_in_each_row_alone(name, position):
    model, rows = with_prompt(tiny_classifier(name, "QUESTION_ANS"), position).train(), rows_of(name)
    for side in ("right", "left"):
        expected = alone(model, rows, behind=int(position != "start"))
        batch, positions = answers(model, side, STARTS, ENDS)
        outputs = model(**batch, **positions)
        real = batch["attention_mask"].bool()
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
        assert logits.shape == (*real.shape, 2) and logits.dtype == torch.float32
        assert relative_error(logits[real].detach(), torch.cat(expected).detach()) < 1e-5
        require_equal(model, outputs.loss, loss_by_hand(expected, STARTS, ENDS))
        best = outputs.start_logits.argmax(1).tolist()
        offset = [max(LENGTHS) - length if side == "left" else 0 for length in LENGTHS]
        assert [at - pads for at, pads in zip(best, offset, strict=True)] == [
            int(row[:, 0].argmax()) for row in expected
        ]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_answers_beyond_a_cut_row_are_left_out(name):
    """As in transformers; but where all are, its loss is NaN, and here 0."""
    model, rows = with_prompt(tiny_classifier(name, "QUESTION_ANS")), rows_of(name)
    starts, ends = (2, BEYOND, 0, 3), (6, BEYOND, BEYOND, 3)
    batch, positions = answers(model, "right", starts, ends)
    require_equal(model, model(**batch, **positions).loss, loss_by_hand(alone(model, rows, 0), starts, ends))
    nowhere = torch.full((4,), max(LENGTHS))
    loss = model(**batch, start_positions=nowhere, end_positions=nowhere).loss
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


def test_unpadded_rows_have_the_loss_of_transformers():
    """A frozen head, and no prompt: the backbone's own class says the same, also for answers beyond a row."""
    backbone = tiny_classifier("roberta", "QUESTION_ANS")
    model, ids = with_prompt(backbone), torch.randint(4, 300, (3, 6))
    positions = {"start_positions": torch.tensor([[1], [6], [0]]), "end_positions": torch.tensor([[4], [8], [6]])}
    with torch.no_grad():
        ours, theirs = model(ids, adapter_names="__base__", **positions), backbone(ids, **positions)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    torch.testing.assert_close(ours.start_logits, theirs.start_logits)


def test_a_summed_loss_is_divided_by_the_answers_of_all_batches():
    model = with_prompt(tiny_classifier("roberta", "QUESTION_ANS"))
    batch, positions = answers(model, "left", STARTS, ENDS)
    whole = model(**batch, **positions).loss
    given = batch | positions
    parts = [model(**{k: v[i : i + 2] for k, v in given.items()}, num_items_in_batch=4).loss for i in (0, 2)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["bert", "modernbert", "llama"])
def test_bf16_backbones_give_finite_fp32_gradients(name):
    model = with_prompt(tiny_classifier(name, "QUESTION_ANS").bfloat16())
    batch, positions = answers(model, "left", STARTS, ENDS)
    outputs = model(**batch, **positions)
    assert outputs.start_logits.dtype == outputs.end_logits.dtype == torch.float32
    for gradient in gradients(model, outputs.loss).values():
        assert gradient.dtype == torch.float32 and bool(gradient.isfinite().all())
        assert adds_to_all_columns(model, gradient) or bool((gradient != 0).any())

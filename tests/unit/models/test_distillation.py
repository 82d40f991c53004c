"""The divergence beside its definition, its gradient beside that of autograd, and the fixed prompts of a teacher."""

import math

import pytest
import torch

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.layouts.base import IGNORED, LabelledLogits
from hf_prompt_tuning.models import distillation
from hf_prompt_tuning.models.distillation import (
    LabelDistillation,
    TokenDistillation,
    comparison,
    comparison_metrics,
    divergence,
    in_row_order,
    mean_distribution,
    token_kl,
)
from hf_prompt_tuning.models.fixed_prompts import FixedPrompt
from tests.shared.places import assembled
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model
from tests.shared.teaching import kl


def logits(seed, *shape, dtype=torch.float64):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def autograd_kl(student, teacher, temperature):
    """The divergence by torch's own functions, which keep all positions."""
    own, given = (each / temperature for each in (student, teacher))
    options = {"reduction": "none", "log_target": True}
    return torch.nn.functional.kl_div(own.log_softmax(-1), given.log_softmax(-1), **options).sum(-1)


@pytest.fixture(params=[1, 30, 10**6])
def numbers_at_once(request, monkeypatch):
    monkeypatch.setattr(distillation, "NUMBERS_AT_ONCE", request.param)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("reuse", [False, True])
def test_the_divergence_and_its_gradient_some_positions_at_a_time(numbers_at_once, temperature, reuse):
    student, teacher = logits(0, 7, 11).requires_grad_(), logits(1, 7, 11)
    weights = logits(2, 7)
    expected = autograd_kl(student, teacher, temperature)
    torch.testing.assert_close(kl(teacher, student, temperature), expected)
    gradient = torch.autograd.grad((expected * weights).sum(), student)[0]
    kept = teacher.clone()
    got = token_kl(student, teacher, None, temperature, reuse)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad((got * weights).sum(), student)[0], gradient)
    assert torch.equal(teacher, kept) is not reuse


def test_the_gradient_of_the_most_likely_tokens(numbers_at_once):
    student, teacher = logits(0, 5, 9).requires_grad_(), logits(1, 5, 9)
    top = teacher.topk(3, dim=1)
    kept = torch.full_like(teacher, -30000.0).scatter(1, top.indices, top.values)
    expected = autograd_kl(student, kept, 2.0)
    got = token_kl(student, top.values, top.indices, 2.0)
    torch.testing.assert_close(got, expected)
    pair = [torch.autograd.grad(values.sum(), student)[0] for values in (got, expected)]
    torch.testing.assert_close(*pair)


def test_a_token_that_is_excluded_adds_nothing():
    teacher = torch.tensor([[0.0, 1.0, -math.inf]])
    student = torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
    expected = kl(teacher[:, :2], student[:, :2])
    got = token_kl(student, teacher)
    torch.testing.assert_close(got.double(), expected)
    got.sum().backward()
    assert torch.isfinite(student.grad).all() and student.grad[0, 2] == 0


def test_half_precision_is_compared_in_fp32():
    student, teacher = logits(0, 4, 300, dtype=torch.float32), logits(1, 4, 300, dtype=torch.float32)
    half = [each.bfloat16() for each in (student, teacher)]
    got = token_kl(half[0].requires_grad_(), half[1])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), kl(half[1], half[0]), rtol=1e-4, atol=1e-5)
    got.sum().backward()
    assert half[0].grad.dtype == torch.bfloat16


def test_nan_stays_nan():
    teacher = torch.tensor([[0.0, math.nan]])
    assert math.isnan(float(divergence(torch.zeros(1, 2), teacher)))


def test_the_order_of_a_layout_does_not_matter():
    rows, order = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([2, 5, 0, 3, 1, 4])
    student, teacher, targets = logits(0, 6, 8), logits(1, 6, 8), torch.arange(6)
    lesson = TokenDistillation(teacher, targets, None, 2.0, 0.6)
    shuffled = LabelledLogits(student[order], targets[order], rows[order])
    expected = 0.6 * 4 * autograd_kl(student, teacher, 2.0).sum()
    expected = expected + 0.4 * torch.nn.functional.cross_entropy(student.float(), targets, reduction="sum")
    for predictions in (LabelledLogits(student, targets, rows), shuffled):
        assert float(lesson.total(predictions)) == pytest.approx(float(expected), rel=1e-5)
    assert in_row_order(shuffled).rows.tolist() == rows.tolist()
    with pytest.raises(PromptTuningError, match="or other ones"):
        lesson.total(LabelledLogits(student.flip(0), targets.flip(0), rows.flip(0)))


def test_other_labelled_tokens_are_refused():
    student = LabelledLogits(logits(0, 3, 5), torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1]))
    with pytest.raises(PromptTuningError, match="predicts 2 labelled tokens and the student 3"):
        TokenDistillation(logits(1, 2, 5), torch.tensor([1, 2])).total(student)


def test_rows_without_a_prompt_are_compared_where_both_predict():
    rows = torch.tensor([0, 0, 1, 2, 2])
    teacher = LabelledLogits(logits(0, 5, 6), torch.arange(5), rows)
    kept = torch.tensor([1, 2, 4])
    student = LabelledLogits(logits(1, 3, 6), kept, rows[kept])
    found = comparison(student, teacher, 4)
    expected = kl(teacher.logits[kept], student.logits)
    torch.testing.assert_close(found[0].double(), torch.cat([expected, torch.zeros(1)]), rtol=1e-5, atol=1e-6)
    assert found[2].tolist() == [1, 1, 1, 0]
    metrics = comparison_metrics(*(values.numpy() for values in found))
    assert metrics["kl"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert comparison_metrics(*(values.numpy()[3:] for values in found)) == {}


def test_the_mean_of_distributions(numbers_at_once):
    given = [logits(seed, 4, 7, dtype=torch.float32) for seed in range(3)]
    expected = torch.stack([each.softmax(-1) for each in given]).mean(0)
    assert mean_distribution(given[:1]) is given[0]
    torch.testing.assert_close(mean_distribution([each.clone() for each in given]).softmax(-1), expected)


def test_labels_that_do_not_count_add_nothing():
    student, teacher = logits(0, 3, 2).requires_grad_(), logits(1, 3, 2)
    lesson = LabelDistillation(
        teacher, torch.tensor([True, True, False]), torch.tensor([1, -1, 0]), torch.tensor([2, 4]), 1.0, 0.5
    )
    total = lesson.total(student)
    expected = 0.5 * autograd_kl(student, teacher, 1.0)[:2].sum() - 0.5 * student[0, 1] / 4
    torch.testing.assert_close(total, expected)
    assert torch.autograd.grad(total, student)[0][2].tolist() == [0, 0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_fixed_prompt_stands_in_front_of_rows_that_begin_with_it_or_not(side):
    model, rows = tiny_prompt_model("llama", num_virtual_tokens=4), ragged_rows([5, 2, 7], first_labelled=False)
    context, vectors = torch.tensor([1, 9, 8]), model.prompt.detach().clone()
    ids = torch.zeros(0, dtype=torch.long)
    model.set_fixed_prompt("text", FixedPrompt(context, torch.zeros(0, 32)))
    model.set_fixed_prompt("vectors", FixedPrompt(ids, vectors + 1))
    longer = [
        (torch.cat([context, text]), torch.cat([torch.full_like(context, IGNORED), labels])) for text, labels in rows
    ]
    for given in (rows, longer):
        batch = pad(given, side)
        with torch.no_grad():
            output = model(**batch, only_labelled=True, adapter_names=["text"] * 3)
            again = model(**batch, only_labelled=True, adapter_names=["text"] * 3)
            plain = model(**pad(longer, side), only_labelled=True, adapter_names=["__base__"] * 3)
        torch.testing.assert_close(output.logits, plain.logits)
        assert torch.equal(output.logits, again.logits)
    with torch.no_grad():
        mixed = model(**pad(rows, side), only_labelled=True, adapter_names=["text", "vectors", "default"])
        hand = [
            model.get_base_model()(input_ids=longer[0][0][None]).logits[0, 3:],
            model.get_base_model()(**assembled(model, rows[1][0], None, vectors + 1)).logits[0, 4:],
            model.get_base_model()(**assembled(model, rows[2][0])).logits[0, 4:],
        ]
    for row, expected in enumerate(hand):
        labelled = (rows[row][1] != IGNORED).nonzero()[:, 0]
        torch.testing.assert_close(mixed.logits[mixed.rows == row], expected[labelled - 1], rtol=1e-4, atol=1e-4)
    assert model.room("text") == 125 and model.room("vectors") == 124 and model.room("__base__") == 128
    model.set_fixed_prompt("text", None)
    with pytest.raises(PromptTuningError, match="'text'"):
        model(**pad(rows, side), only_labelled=True, adapter_names=["text"] * 3)
    assert set(model.peft_config) == {"default"}

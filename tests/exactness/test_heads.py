"""Classification heads behind a prompt: logits, loss and gradients equal each row alone, unpadded and by hand."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from tests.shared import classifiers
from tests.shared.classifiers import DECODERS, ENCODERS, hidden_by_hand, tiny_classifier
from tests.shared.head_rows import LENGTHS, alone, batch_of, gradients, require_equal, rows_of, with_prompt
from tests.shared.reference import relative_error
from tests.shared.versions import checkpoint_activations

CASES = [("SEQ_CLS", name) for name in ENCODERS | DECODERS]
TAGS = [torch.randint(-1, 3, (length,), generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
LABELS = {"SEQ_CLS": [2, 0, 1, 1], "TOKEN_CLS": [row.masked_fill(row < 0, -100) for row in TAGS]}
CASES += [("TOKEN_CLS", name) for name in [*ENCODERS, *DECODERS, "t5", "mt5", "umt5"]]
READS_DECODER = ("t5", "mt5", "umt5", "bart")


@pytest.mark.parametrize("position", ["start", "after_bos"])
@pytest.mark.parametrize(("task_type", "name"), [*CASES, *[("SEQ_CLS", name) for name in READS_DECODER]])
def test_a_head_reads_what_it_reads_of_each_row_alone(task_type, name, position):
    model = with_prompt(tiny_classifier(name, task_type), position).train()
    rows = rows_of(name, ends=task_type == "SEQ_CLS" and name in READS_DECODER)
    labels = LABELS[task_type]
    for side in ("right", "left"):
        model.use_layout("auto" if side == "right" else "padded")  # packed, where it is known to be exact
        expected = alone(model, rows, behind=int(position != "start"))
        batch = batch_of(rows, side)
        if task_type == "SEQ_CLS":
            outputs = model(**batch, labels=torch.tensor(labels))
            logits, by_hand = outputs.logits, torch.stack(expected)
            loss = cross_entropy(by_hand, torch.tensor(labels))
        else:
            real, given = batch["attention_mask"].bool(), torch.zeros_like(batch["input_ids"])
            given[real] = torch.cat(labels)  # the labels 0 on pads are not counted
            outputs = model(**batch, labels=given)
            assert outputs.logits.shape == (*given.shape, 3)
            logits, by_hand = outputs.logits[real], torch.cat(expected)
            loss = cross_entropy(by_hand, torch.cat(labels))
        assert relative_error(logits.detach(), by_hand.detach()) < 1e-5
        require_equal(model, outputs.loss, loss)


@pytest.mark.parametrize("name", READS_DECODER)
def test_a_decoder_reads_the_text_as_the_backbones_own_class_lets_it(name):
    """Without a prompt, in rows that this class takes: of one length, each with one EOS."""
    backbone, ids = tiny_classifier(name), torch.randint(4, 300, (3, 7))
    ids[:, -2] = 2
    with torch.no_grad():
        ours, theirs = with_prompt(backbone)(ids, adapter_names="__base__").logits, backbone(ids).logits
    torch.testing.assert_close(ours, theirs)


LOSSES = {
    "regression": (1, torch.tensor([0.5, -1.0, 2.0, 0.0]), lambda x, y: mse_loss(x[:, 0], y)),
    "several numbers": (3, torch.randn(4, 3), mse_loss),
    "single label": (3, torch.tensor([2, 0, -100, 1]), cross_entropy),
    "several labels": (
        3,
        torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]),
        binary_cross_entropy_with_logits,
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", ["bert", "deberta-v2", "llama", "gpt2"])
def test_the_loss_is_that_of_the_problem_type(name, kind):
    """It is told by the labels, or by the config; the backbone's config stays as it is."""
    count, labels, loss_of = LOSSES[kind]
    told = {"problem_type": "regression"} if kind == "several numbers" else {}
    backbone = tiny_classifier(name, num_labels=count, **told)
    model, rows = with_prompt(backbone), rows_of(name)
    before = backbone.config.to_dict()
    outputs = model(**batch_of(rows, "left"), labels=labels)
    require_equal(model, outputs.loss, loss_of(torch.stack(alone(model, rows, 0)), labels))
    assert backbone.config.to_dict() == before


def test_a_summed_loss_is_divided_by_the_items_of_all_batches():
    model, rows = with_prompt(tiny_classifier("roberta")), rows_of("roberta")
    labels = torch.tensor([2, 0, -100, 1])
    whole = model(**batch_of(rows, "right"), labels=labels).loss
    parts = [
        model(**batch_of(rows[i : i + 2], "right"), labels=labels[i : i + 2], num_items_in_batch=3).loss
        for i in (0, 2)
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)
    assert model(**batch_of(rows, "right"), labels=torch.full((4,), -100)).loss.item() == 0


def test_a_number_of_minus_100_is_learned_like_any_other():
    model, rows = with_prompt(tiny_classifier("bert", num_labels=1)), rows_of("bert")[:1]
    labels = torch.tensor([-100.0])
    loss = model(**batch_of(rows, "right"), labels=labels).loss
    require_equal(model, loss, mse_loss(torch.stack(alone(model, rows, 0))[:, 0], labels))


def test_mean_pooling_is_over_the_text():
    backbone = tiny_classifier("modernbert", classifier_pooling="mean")
    model, rows = with_prompt(backbone), rows_of("modernbert")
    head = model.prompt_encoder["default"].classifier
    logits = model(**batch_of(rows, "left")).logits
    for row, ours in zip(rows, logits, strict=True):
        mean = hidden_by_hand(backbone, model.prompt, row["input_ids"], 0).mean(0)[None]
        torch.testing.assert_close(ours, classifiers.sequence_logits_by_hand(backbone, head, mean))


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "gpt2"])
def test_bf16_backbones_give_finite_fp32_gradients(name, task_type):
    backbone = tiny_classifier(name, task_type).bfloat16()
    model, batch = with_prompt(backbone), batch_of(rows_of(name), "left")
    labels = torch.tensor([2, 0, 1, 1]) if task_type == "SEQ_CLS" else batch["attention_mask"]
    outputs = model(**batch, labels=labels)
    assert outputs.logits.dtype == torch.float32
    for gradient in gradients(model, outputs.loss).values():
        assert gradient.dtype == torch.float32 and bool(gradient.isfinite().all()) and bool((gradient != 0).any())


def test_hidden_states_are_those_of_the_text_in_the_callers_columns():
    model, rows = with_prompt(tiny_classifier("bert"), "after_bos"), rows_of("bert")
    batch = batch_of(rows, "left")
    outputs = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    by_hand = [
        hidden_by_hand(model.base_model, model.prompt, row["input_ids"], 1, token_type_ids=row["token_type_ids"])
        for row in rows
    ]
    torch.testing.assert_close(outputs.hidden_states[-1][real], torch.cat(by_hand))
    assert model(**batch, return_dict=False)[0].equal(outputs.logits)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_activations_may_be_computed_again(name):
    """`gradient_checkpointing` of transformers' Trainer: the same loss and gradients."""
    model, batch = with_prompt(tiny_classifier(name)).train(), batch_of(rows_of(name), "left")
    labels = torch.tensor([2, 0, 1, 1])
    expected = model(**batch, labels=labels).loss
    before = gradients(model, expected)
    checkpoint_activations(model.get_base_model())
    again = model(**batch, labels=labels).loss
    assert again.item() == pytest.approx(expected.item(), rel=1e-6)
    for weight, gradient in gradients(model, again).items():
        torch.testing.assert_close(gradient, before[weight])

"""Rows of encoders that are packed without pads: the same states, losses and gradients as padded rows."""

import pytest
import torch
from torch import nn

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.layouts.packed_texts import PACKS, PackedTexts
from tests.shared.classifiers import tiny_base_model, tiny_classifier
from tests.shared.head_rows import LENGTHS, P, batch_of, gradients, rows_of, with_prompt
from tests.shared.reference import relative_error

LABELS = torch.tensor([2, 0, 1, 1])


def seen_by(model) -> list[torch.Size]:
    """The shapes of the embedded rows that the backbone gets, which are added to as it is called."""
    shapes: list[torch.Size] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        shapes.append(kwargs["inputs_embeds"].shape[:2])

    model.get_base_model().base_model.register_forward_pre_hook(keep, with_kwargs=True)
    return shapes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("room", [None, 24])
@pytest.mark.parametrize("name", PACKS)
def test_packed_rows_are_padded_ones(name, room, attention):
    """In one row, or in two of which one has a place without a token; ModernBERT's windows are shorter than rows."""
    model = with_prompt(tiny_classifier(name, attn_implementation=attention), "after_bos")
    batch, shapes = batch_of(rows_of(name), "left"), seen_by(model)
    model.use_layout("padded")
    padded = model(**batch, labels=LABELS, output_hidden_states=True)
    expected = gradients(model, padded.loss)
    model.use_layout("packed", max_packed_tokens=room, check=False)
    packed = model(**batch, labels=LABELS, output_hidden_states=True)
    tokens = sum(LENGTHS) + P * len(LENGTHS)
    assert [list(shape) for shape in shapes] == [[4, 17], [1, tokens] if room is None else [2, 23]]
    assert relative_error(packed.logits.detach(), padded.logits.detach()) < 1e-5
    assert packed.loss.item() == pytest.approx(padded.loss.item(), rel=1e-5)
    real = batch["attention_mask"].bool()
    for ours, theirs in zip(packed.hidden_states, padded.hidden_states, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-5)
    for weight, gradient in gradients(model, packed.loss).items():
        assert relative_error(gradient, expected[weight]) < 1e-5, weight


def test_rows_are_packed_if_they_are_fewer_and_the_first_ones_are_checked():
    model = with_prompt(tiny_base_model("bert"))
    shapes, batch = seen_by(model), batch_of(rows_of("bert"), "right")
    model(**batch)
    assert [list(shape) for shape in shapes] == [[2, 17], [1, 23], [1, 44]]  # two rows of the check, and the batch
    shapes.clear()
    model(**batch)
    model(input_ids=batch["input_ids"])
    model(**batch, output_attentions=True)
    assert [list(shape) for shape in shapes] == [[1, 44], [4, 17], [4, 17]]


def test_a_backbone_that_reads_packed_rows_otherwise_gets_padded_ones(monkeypatch, caplog):
    model, batch = with_prompt(tiny_base_model("roberta")), batch_of(rows_of("roberta"), "right")
    model.use_layout("padded")
    expected = model(**batch).last_hidden_state
    model.use_layout("auto")
    monkeypatch.setattr("hf_prompt_tuning.layouts.packed_texts._first_position", lambda backbone: 0)
    assert torch.equal(model(**batch).last_hidden_state, expected)
    assert "Packed rows are not used for RobertaModel: its states differ by" in caplog.text


def test_rows_are_filled_evenly():
    mask = torch.arange(9)[None] < torch.tensor([9, 2, 5, 4, 1])[:, None]
    packed = PackedTexts.of(mask)
    assert packed.shape == (1, 21) and PackedTexts.of(mask, 11).shape == (2, 11)
    assert PackedTexts.of(torch.ones(3, 9).long()) is None
    numbers = torch.arange(45).reshape(5, 9)
    again = PackedTexts.of(mask, 11).unpacked(PackedTexts.of(mask, 11).packed(numbers))
    assert torch.equal(again[mask], numbers[mask])


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("llama", "packed", "layout 'packed' is not exact for LlamaForSequenceClassification: of encoders, bert"),
        ("deberta-v2", "packed", "layout 'packed' is not exact for DebertaV2ForSequenceClassification"),
        ("bert", "cached", "layout is 'cached'; give auto, packed, padded to a model with a head"),
    ],
)
def test_layouts_that_are_refused(name, layout, message):
    with pytest.raises(PromptTuningError, match=message):
        with_prompt(tiny_classifier(name)).use_layout(layout)

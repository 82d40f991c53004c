"""Base models behind a prompt: hidden states, pooled states and gradients equal each row alone, unpadded."""

import pytest
import torch

from tests.shared.classifiers import DECODERS, ENCODERS, hidden_by_hand, tiny_base_model
from tests.shared.head_rows import LENGTHS, batch_of, rows_of, with_prompt
from tests.shared.reference import relative_error
from tests.shared.tiny_models import H

NAMES = [*ENCODERS, *DECODERS]


def alone(model, rows, behind):
    """The hidden states of each row by hand, [n, H]."""
    return [
        hidden_by_hand(model.get_base_model(), model.prompt, row["input_ids"], behind, **types)
        for row in rows
        for types in [{name: value for name, value in row.items() if name == "token_type_ids"}]
    ]


@pytest.mark.parametrize(
    ("name", "position"),
    [(name, position) for name in NAMES for position in ("start", "after_bos")] + [("t5", "start"), ("umt5", "start")],
)
def test_features_are_those_of_each_row_alone(name, position):
    model, rows = with_prompt(tiny_base_model(name), position), rows_of(name)
    direction = torch.randn(H, generator=torch.Generator().manual_seed(0))
    for side in ("right", "left"):
        batch, expected = batch_of(rows, side), alone(model, rows, int(position != "start"))
        outputs = model(**batch)
        real, features = batch["attention_mask"].bool(), outputs.last_hidden_state
        assert features.shape[:2] == real.shape and not features[~real].any()
        assert relative_error(features[real].detach(), torch.cat(expected).detach()) < 1e-5
        assert (outputs.get("pooler_output") is not None) == (hasattr(model.get_base_model(), "pooler"))
        # A layer norm ends most models: the square of a state says nothing, its part in a direction does.
        ours, by_hand = ((states @ direction).square().sum() for states in (features[real], torch.cat(expected)))
        if (pooled := outputs.get("pooler_output")) is not None:
            first = [model.get_base_model().pooler(row[None])[0] for row in expected]
            assert relative_error(pooled.detach(), torch.stack(first).detach()) < 1e-5
            ours, by_hand = ours + pooled.sum(), by_hand + torch.stack(first).sum()
        weight = model.prompt_encoder["default"].embedding.weight
        gradients = [torch.autograd.grad(loss, weight)[0] for loss in (ours, by_hand)]
        assert relative_error(*gradients) < 1e-5


def test_a_call_without_a_prompt_is_the_backbones():
    backbone = tiny_base_model("bert")
    model, ids = with_prompt(backbone), torch.randint(4, 300, (2, 5))
    with torch.no_grad():
        expected = backbone(ids, output_hidden_states=True)
        ours = model(ids, adapter_names="__base__", output_hidden_states=True)
        torch.testing.assert_close(ours.last_hidden_state, expected.last_hidden_state)
        torch.testing.assert_close(ours.pooler_output, expected.pooler_output)
        torch.testing.assert_close(ours.hidden_states, expected.hidden_states)
        first = model(ids, return_dict=False)[0]
    assert torch.equal(first, model(ids).last_hidden_state) and not torch.allclose(first, expected.last_hidden_state)


def test_features_keep_the_backbones_dtype_and_the_gradient_fp32():
    model = with_prompt(tiny_base_model("modernbert").bfloat16())
    features = model(**batch_of(rows_of("modernbert"), "left")).last_hidden_state
    assert features.dtype == torch.bfloat16 and features.shape[:2] == (4, max(LENGTHS))
    features.float().square().sum().backward()
    gradient = model.prompt_encoder["default"].embedding.weight.grad
    assert gradient.dtype == torch.float32 and bool(gradient.isfinite().all()) and bool(gradient.any())

"""Mixtures of experts whose config or call asks for the routers' scores, from which their balance loss is made."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from tests.shared.architectures import tiny_backbone
from tests.shared.reference import greedy, pad, ragged_rows, require_exact, tiny_prompt_model
from tests.shared.versions import since

ROWS = ragged_rows([7, 3, 5])
LABELS = [[11, 2], [12, 13, 2]]


def balanced_model(name):
    backbone = tiny_backbone(name, router_aux_loss_coef=1.0, output_router_logits=True)
    return tiny_prompt_model(name, backbone=backbone).eval()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_labelled_tokens_are_packed_and_the_balance_loss_is_told_to_be_left_out(name, caplog):
    model = balanced_model(name)
    require_exact(model, ROWS)
    assert model.chosen_layouts == ["packed"]
    assert [record.getMessage()[:38] for record in caplog.records] == ["config.output_router_logits is True, a"]
    whole = model(**pad(ROWS, "right"))
    labelled = model(**pad(ROWS, "right"), only_labelled=True)
    assert whole.loss.item() == pytest.approx((labelled.loss + whole.aux_loss).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_generation_ranking_and_a_cache(name):
    model, batch = balanced_model(name), pad(ROWS, "left")
    batch.pop("labels")
    out = model.generate(**batch, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    scores = model(**batch, candidates=LABELS).scores
    ids = ROWS[0][0][None]
    with torch.no_grad():
        cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        continued = model(input_ids=ids[:, 4:], past_key_values=cache).logits
    model.get_base_model().config.output_router_logits = False
    assert out[:, 7:].tolist() == [greedy(model, ids, 3) for ids, _ in ROWS]
    torch.testing.assert_close(scores, model(**batch, candidates=LABELS).scores)
    torch.testing.assert_close(continued, model(input_ids=ids).logits[:, -3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("asked", [False, pytest.param(True, marks=since("5.18"))])  # an older Switch fails itself
def test_an_encoder_decoder_adds_both_halves_balance(asked):
    sizes = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=4)
    sparse = dict(num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, expert_capacity=64)
    tokens = dict(vocab_size=400, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)
    coefficients = dict(router_aux_loss_coef=1.0, router_z_loss_coef=0.5)
    config = AutoConfig.for_model("switch_transformers", **sizes, **sparse, **tokens, **coefficients)
    torch.manual_seed(0)
    backbone = AutoModelForSeq2SeqLM.from_config(config).eval()
    model, ids = tiny_prompt_model("switch", backbone=backbone).eval(), torch.arange(4, 14).view(2, 5)
    text = backbone.get_input_embeddings()(ids)
    embeds = torch.cat([model.prompt.expand(2, -1, -1), text], dim=1)
    expected = backbone(inputs_embeds=embeds, labels=ids, output_router_logits=asked).loss
    found = model(input_ids=ids, labels=ids, output_router_logits=asked).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)

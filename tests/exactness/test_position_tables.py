"""Backbones with a table of positions (learned vectors, MPT's biases): rows that are too long, and pads beyond it."""

import pytest
import torch
from torch.nn.functional import pad as padded
from transformers import AutoConfig, AutoModelForCausalLM

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.layouts.traits import max_positions
from tests.shared.reference import (
    greedy,
    pad,
    ragged_rows,
    reference_loss,
    relative_error,
    require_exact,
    tiny_prompt_model,
)
from tests.shared.tiny_models import BART_LIKE, VOCAB, H, scale_weights, tiny_model

TABLES = {
    "gpt2": {"n_positions": 16},
    "opt": {"max_position_embeddings": 16},
    "mpt": {"max_seq_len": 16},
    "bart": {"max_position_embeddings": 16},
}
BERT_LIKE = dict(hidden_size=H, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, is_decoder=True)
GPT1 = dict(n_embd=H, n_layer=2, n_head=4, n_positions=128)
XLNET = dict(d_model=H, d_inner=48, n_layer=2, n_head=4)
DECODERS = dict.fromkeys(("bart", "mvp", "blenderbot-small", "pegasus", "marian"), BART_LIKE)
OPTIONS = dict(max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0)


def model_with_table(name):
    """Behind 5 vectors there is room for 11 tokens."""
    return tiny_prompt_model(name, backbone=tiny_model(name, **TABLES[name])).eval()


def decoder_model(name, **values):
    """A tiny decoder, of a kind that is rarely one alone, behind 5 vectors."""
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, forced_eos_token_id=None)
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **{"vocab_size": VOCAB} | special | values)
    ).eval()
    scale_weights(backbone, 2.0)
    return tiny_prompt_model(name, backbone=backbone).eval()


def row(length):
    return torch.arange(4, 4 + length)[None]


def widened(rows, columns, side):
    """A batch with more pads than its longest row needs."""
    pads = (columns, 0) if side == "left" else (0, columns)
    return {key: padded(v, pads, value=-100 if key == "labels" else 0) for key, v in pad(rows, side).items()}


@pytest.mark.parametrize("layout", ["packed", "cached", "padded"])
@pytest.mark.parametrize("name", ["gpt2", "opt", "mpt"])
def test_a_row_that_is_too_long_is_refused_in_every_layout(name, layout):
    model = model_with_table(name)
    model.use_layout(layout, check=False)
    assert model(input_ids=row(11), labels=row(11), only_labelled=True).loss.isfinite()
    with pytest.raises(PromptTuningError, match=r"a row has 17 tokens with its prompt, and .* has positions for 16"):
        model(input_ids=row(12), labels=row(12), only_labelled=True)


@pytest.mark.parametrize("name", TABLES)
def test_calls_with_a_row_that_is_too_long(name):
    model = model_with_table(name)
    labels = {"labels": row(3)} if name == "bart" else {}
    assert model(input_ids=row(11), **labels).logits.isfinite().all()
    for call in (lambda: model(input_ids=row(12), **labels), lambda: model.generate(input_ids=row(12), **OPTIONS)):
        with pytest.raises(PromptTuningError, match=r"a row has 17 tokens .* shorten texts to 11 tokens"):
            call()


def test_new_tokens_behind_a_cache_that_are_too_many():
    model = model_with_table("gpt2")
    cache = model(input_ids=row(9), use_cache=True).past_key_values
    with pytest.raises(PromptTuningError, match="a row has 17 tokens with its prompt, and GPT2LMHeadModel"):
        model(input_ids=row(3), past_key_values=cache)


def test_an_encoder_decoders_targets_that_are_too_long():
    model = model_with_table("bart")
    for only_labelled in (False, True):
        assert model(input_ids=row(3), labels=row(16), only_labelled=only_labelled).loss.isfinite()
        with pytest.raises(PromptTuningError, match="targets of 17 tokens are given, and the decoder of Bart"):
            model(input_ids=row(3), labels=row(17), only_labelled=only_labelled)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_pads_beyond_the_table_change_nothing(name, side):
    """Rows of 7 and 3 tokens in 16 columns, as of a tokenizer that pads to `max_length`."""
    model, rows = model_with_table(name), ragged_rows([7, 3])
    batch = widened(rows, 9, side)
    loss = model(**batch).loss
    expected = reference_loss(model, rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = (torch.autograd.grad(value, model.prompt)[0] for value in (loss, expected))
    assert relative_error(*gradients) < 1e-5
    for layout in ("packed", "cached", "padded"):
        model.use_layout(layout, check=False)
        assert model(**batch, only_labelled=True).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    batch.pop("labels")
    out = model.generate(**batch, **OPTIONS)[:, 16:].tolist()
    assert out == [greedy(model, ids, 2) for ids, _ in rows]


def test_pads_beyond_a_table_without_positions_are_refused_by_name():
    model, rows = model_with_table("mpt"), ragged_rows([7, 3])
    with pytest.raises(PromptTuningError, match=r"rows have 21 columns .* positions for 16, which pads take, too"):
        model(**widened(rows, 9, "right"))


@pytest.mark.parametrize("name", DECODERS)
def test_the_decoder_of_an_encoder_decoder_alone(name):
    """They count columns, so pads in front would move the tokens. Some scale the embeddings of ids."""
    model, rows = decoder_model(name, **DECODERS[name]), ragged_rows([7, 3, 5])
    with model.disable_adapter(), torch.no_grad():
        ids = rows[0][0][None]
        torch.testing.assert_close(model(input_ids=ids).logits, model.get_base_model()(input_ids=ids).logits)
    if name != "mvp":  # which scales the ids' embeddings, and the reference does not
        require_exact(model, rows)
        require_exact(model, rows, only_labelled=False)
    for ids, _ in rows:
        assert model.generate(input_ids=ids[None], **OPTIONS)[0, len(ids) :].tolist() == greedy(model, ids, 2)
    batch = pad(rows, "left")
    batch.pop("labels")
    with pytest.raises(PromptTuningError, match=r"got rows of several lengths, and .* counts the pads in front"):
        model.generate(**batch, **OPTIONS)


def test_positions_that_begin_behind_the_pads_id(caplog):
    """As RoBERTa's. What is in its config needs no check."""
    model = decoder_model("roberta", max_position_embeddings=64, **BERT_LIKE)
    model.use_layout(check=False)
    require_exact(model, ragged_rows([7, 1, 12, 4]))
    assert model.chosen_layouts == ["padded"] and not caplog.records
    for layout in ("packed", "cached"):
        model.use_layout(layout, check=False)
        with pytest.raises(PromptTuningError, match="positions begin behind the pad's id"):
            model(input_ids=row(3), labels=row(3), only_labelled=True)


@pytest.mark.parametrize(("name", "values", "limit"), [("openai-gpt", GPT1, 128), ("xlnet", XLNET, None)])
def test_models_whose_generate_takes_no_embeddings(name, values, limit):
    model = decoder_model(name, **values)
    assert max_positions(model.get_base_model()) == limit
    with pytest.raises(PromptTuningError, match="takes no embedded tokens in its generate"):
        model.generate(input_ids=row(3), **OPTIONS)

"""Encoders that scale the vectors of token ids, and not those that they are given: the text is scaled for them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model
from hf_prompt_tuning.models.initialization import made_again
from tests.shared.tiny_models import BART_LIKE, scale_weights


@pytest.fixture(params=["blenderbot-small", "marian", "mvp", "pegasus"])
def backbone(request):
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=0)
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **BART_LIKE | special)
    model = AutoModelForSeq2SeqLM.from_config(config)
    scale_weights(model, 6.0)
    return model.eval()


def test_without_a_prompt_the_model_is_its_backbone(backbone):
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"))
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[9, 10, 2]])}
    with torch.no_grad():
        expected = backbone(**batch).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(**batch).logits, expected)
            torch.testing.assert_close(model(**batch, only_labelled=True).logits, expected[0])
        tokens = model.generate(
            input_ids=batch["input_ids"], adapter_names=["__base__"], max_new_tokens=4, do_sample=False
        )
        assert tokens.tolist() == backbone.generate(batch["input_ids"], max_new_tokens=4, do_sample=False).tolist()


def test_a_prompt_that_starts_from_tokens_is_those_tokens(backbone, tokenizer):
    config = PromptTuningConfig(
        num_virtual_tokens=3, prompt_tuning_init="TEXT", prompt_tuning_init_text="never came", tokenizer=tokenizer
    )
    model = get_prompt_tuning_model(backbone, config)
    start = (tokenizer("never came").input_ids * 3)[:3]
    labels = torch.tensor([[9, 10, 2]])
    with torch.no_grad():
        expected = backbone(input_ids=torch.tensor([[*start, 5, 6]]), labels=labels).logits
        torch.testing.assert_close(model(input_ids=torch.tensor([[5, 6]]), labels=labels).logits, expected)
    scale = backbone.get_encoder().embed_scale
    again = made_again(model.info.initialization, 3, model.word_embeddings, tokenizer, scale)
    assert scale > 1 and torch.equal(again, model.prompt)

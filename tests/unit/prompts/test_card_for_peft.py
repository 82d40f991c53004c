"""What a prompt's card says of plain PEFT is right, on every version of transformers and of PEFT."""

import re

import pytest
import torch

from tests.conformance.families import fresh
from tests.shared.architectures import tiny_backbone
from tests.shared.reference import greedy, tiny_prompt_model
from tests.shared.tiny_models import ENCODER_DECODERS, tiny_model

IDS = torch.arange(5, 13)[None]
OPTIONS = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
DECODERS = {"llama": 1, "gpt2": 1, "opt": 1, "qwen2": 1, "mpt": 1, "bloom": 4, "mamba": 1}
"""How much further the weights are enlarged, so that a model does not say one token only."""


def code_for_peft(model, folder):
    model.save_pretrained(folder)
    card = (folder / "README.md").read_text()
    return card, [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "peft" in code]


def loaded(code, folder, backbone, monkeypatch):
    monkeypatch.chdir(folder)
    names = {"backbone": backbone}
    exec(code, names)
    return names["model"].eval()


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT's own, of those of `generate`
@pytest.mark.parametrize("name", DECODERS)
def test_peft_generates_our_tokens_as_the_card_says(name, tmp_path, monkeypatch):
    model = tiny_prompt_model(name).eval()
    with torch.no_grad():
        model.prompt.mul_(DECODERS[name])
    card, [code] = code_for_peft(model, tmp_path)
    assert "`use_cache=False` and one text at a time" in card
    theirs = loaded(code, tmp_path, tiny_model(name), monkeypatch)
    expected = greedy(model, IDS[0], 6)
    found = theirs.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False, **OPTIONS)
    assert found[0, 8:].tolist() == expected == model.generate(input_ids=IDS, **OPTIONS)[0, 8:].tolist()


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoders_card_asks_for_no_option(name, tmp_path, monkeypatch):
    model = tiny_prompt_model(name).eval()
    card, [code] = code_for_peft(model, tmp_path)
    assert "use_cache" not in card
    theirs = loaded(code, tmp_path, tiny_model(name), monkeypatch)
    found = theirs.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **OPTIONS)
    assert torch.equal(found, model.generate(input_ids=IDS, **OPTIONS))


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma4_text", "marian", "pegasus"])
def test_the_card_is_silent_on_peft_where_it_cannot_be_right(name, tmp_path):
    """PEFT gives these models embeddings alone: neither ids for each layer's vectors, nor the scale of the ids."""
    backbone = tiny_backbone(name) if name.startswith("gemma") else fresh(name, "float32", "eager")
    card, codes = code_for_peft(tiny_prompt_model(name, backbone=backbone), tmp_path)
    assert codes == [] and "PEFT" not in card
    assert "load_prompt(" in card

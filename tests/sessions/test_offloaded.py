"""Backbones whose weights are elsewhere: offloaded by a `device_map`, on the meta device, or shared out by ZeRO-3."""

import contextlib
import sys
import types

import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForCausalLM

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, get_prompt_tuning_model
from hf_prompt_tuning.compat import accelerate
from hf_prompt_tuning.compat.accelerate import ACCELERATE
from tests.sessions.distributed_session import CLASSES, ROWS, curve, trainer
from tests.shared.reference import loss_and_gradient, pad, ragged_rows
from tests.shared.tiny_models import make_tokenizer, tiny_model

INITS = [
    {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Classify if the message is a complaint"},
    {"prompt_tuning_init": "SAMPLE_VOCAB"},
    {"prompt_tuning_init": "CLASS_LABELS"},
    {"prompt_tuning_init": "RANDOM"},
]


def prompted(backbone, **config):
    torch.manual_seed(7)
    config = PromptTuningConfig(num_virtual_tokens=5, **config)
    return get_prompt_tuning_model(backbone.eval(), config, make_tokenizer(), CLASSES)


pytestmark = pytest.mark.filterwarnings(
    # transformers' own (5.16, say): a backbone with its embedding on the disk has the meta device there.
    "ignore:You are calling .generate.. with the `input_ids` being on a device type different:UserWarning"
)
GEMMA = pytest.param("gemma", marks=pytest.mark.skipif(Version("1.15") > ACCELERATE, reason="refused"))


@pytest.fixture(params=["llama", GEMMA])
def offloaded(request, tmp_path):
    """A model with its embedding and a layer on disk, and the same one in memory."""
    tiny_model(request.param).save_pretrained(tmp_path / "backbone")
    places = {"model.embed_tokens": "disk", "model.layers.0": "disk", "lm_head": "disk"}
    places |= dict.fromkeys(("model.layers.1", "model.norm", "model.rotary_emb"), "cpu")
    options = {"device_map": places, "offload_folder": tmp_path / "offloaded"}
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone", **options)
    assert backbone.get_input_embeddings().weight.is_meta
    return backbone, AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")


@pytest.mark.parametrize("init", INITS, ids=lambda init: init["prompt_tuning_init"])
def test_a_prompt_starts_from_an_offloaded_embedding(init, offloaded):
    got, expected = (prompted(backbone, **init) for backbone in offloaded)
    assert got.prompt.device.type == "cpu" and torch.equal(got.prompt, expected.prompt)
    assert got.fingerprint == expected.fingerprint
    assert offloaded[0].get_input_embeddings().weight.is_meta  # it went back


def test_an_offloaded_backbone_computes_the_same(offloaded):
    got, expected = (prompted(backbone) for backbone in offloaded)
    batch = pad(ragged_rows([7, 3, 5]), "left")
    source = {key: batch[key] for key in ("input_ids", "attention_mask")}
    for layout in ("padded", "cached", "packed"):
        results = []
        for model in (got, expected):
            model.use_layout(layout)
            results.append(loss_and_gradient(model, model(**batch, only_labelled=True).loss))
            with torch.no_grad():
                results[-1] += (model(**source, candidates=[[5, 6], [7, 8, 9]]).scores,)
        assert results[0][0] == results[1][0]
        assert torch.equal(results[0][1], results[1][1]) and torch.equal(results[0][2], results[1][2])
    texts = [model.generate(**source, max_new_tokens=3, pad_token_id=0) for model in (got, expected)]
    assert torch.equal(*texts)


def test_an_output_layer_that_accelerate_reads_wrongly_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate, "ACCELERATE", Version("1.14.0"))
    tiny_model("gemma").save_pretrained(tmp_path)
    rest = dict.fromkeys(("model.layers.1", "model.norm", "model.rotary_emb"), "cpu") | {"model.layers.0": "disk"}
    for place in ("disk", "cpu"):
        places = rest | {"model.embed_tokens": place, "lm_head": place}
        options = {"device_map": places, "offload_folder": tmp_path / "offloaded"}
        backbone = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
        if place == "cpu":
            assert prompted(backbone).prompt.shape == (5, 32)
            continue
        with pytest.raises(PromptTuningError, match=r"accelerate 1\.14\.0 reads wrongly; install accelerate 1\.15"):
            prompted(backbone)


def test_a_trainer_tunes_behind_an_offloaded_backbone(offloaded, tmp_path):
    got, expected = (curve(trainer(tmp_path, ROWS, model=prompted(backbone))) for backbone in offloaded)
    assert got == expected and len(set(got["losses"])) > 1


def test_a_backbone_without_weights_has_nothing_to_start_from():
    with torch.device("meta"):
        backbone = tiny_model("llama")
    with pytest.raises(PromptTuningError, match="embedding is on the meta device"):
        prompted(backbone)


@pytest.fixture
def zero3(monkeypatch):
    """DeepSpeed's `GatheredParameters`, as far as it is used here: within it a parameter is whole, else empty."""
    shares: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def gathered(parameters, modifier_rank=None, fwd_module=None):
        mine = [parameter for parameter in parameters if id(parameter) in shares]
        for parameter in mine:
            parameter.data = shares[id(parameter)]
        yield
        for parameter in mine:
            parameter.data = torch.empty(0)

    zero = types.SimpleNamespace(GatheredParameters=gathered)
    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(zero=zero))
    monkeypatch.setattr("peft.utils.integrations.check_deepspeed_zero3_enabled", lambda: True)

    def share_out(backbone):
        weight = backbone.get_input_embeddings().weight
        shares[id(weight)], weight.data = weight.data, torch.empty(0)
        return backbone

    return share_out


@pytest.mark.parametrize("init", INITS, ids=lambda init: init["prompt_tuning_init"])
def test_a_prompt_starts_from_an_embedding_that_zero3_shares_out(init, zero3):
    got, expected = prompted(zero3(tiny_model("gemma")), **init), prompted(tiny_model("gemma"), **init)
    assert got.word_embeddings.weight.numel() == 0
    assert torch.equal(got.prompt, expected.prompt) and got.fingerprint == expected.fingerprint

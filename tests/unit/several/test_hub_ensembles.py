"""An ensemble of the Hub: its description and all of its prompts are of one commit, or it is refused."""

import time

import pytest
import torch

from hf_prompt_tuning import PromptLoadError, PromptTemplate, PromptTuningConfig, get_prompt_tuning_model
from hf_prompt_tuning.errors import HubUnavailableError
from hf_prompt_tuning.prompts.ensemble_info import EnsembleInfo
from hf_prompt_tuning.several.ensemble import load_ensemble
from tests.shared.hub_client import authorizations, contents, local_hub
from tests.shared.tiny_models import make_tokenizer, tiny_model

ID = "alice/ensemble"
FILES = ("ensemble.json", "adapter_config.json", "a/adapter_config.json", "b/prompt_tuning.json", "b/*.safetensors")


def repository(folder, source: str, seed: int) -> dict[str, bytes]:
    template = PromptTemplate(source, label_column="label", label_words={"1": "great", "2": "awful"})
    EnsembleInfo(["a", "b"], "a").write(folder)
    for place, own in ((folder, 0), (folder / "a", 0), (folder / "b", 1)):
        backbone, config = tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
        torch.manual_seed(seed + own)
        get_prompt_tuning_model(backbone, config, template=template).save_pretrained(place)
    return contents(folder)


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    return [repository(tmp_path_factory.mktemp("e"), f"{n} {{message}}", 10 * i) for i, n in enumerate("AB")]


@pytest.fixture
def hub(monkeypatch, tmp_path, versions):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.5)
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        server.put(ID, versions[0])
        yield server


def load(**options):
    ensemble = load_ensemble(ID, backbone=tiny_model("llama"), tokenizer=make_tokenizer(), **options)
    vectors = {name: ensemble.model.prompt_encoder[name].embedding.weight.detach() for name in ("default", "a", "b")}
    sources = {ensemble.model.prompt_info[name].template.source for name in ("default", "a", "b")}
    assert torch.equal(vectors["default"], vectors["a"]) and not torch.equal(vectors["a"], vectors["b"])
    assert len(sources) == 1
    return sources.pop(), vectors["b"]


@pytest.mark.parametrize("name", FILES)
def test_a_push_in_the_middle_of_a_load(hub, versions, name):
    hub.before(name, lambda: hub.put(ID, versions[1]))
    source, vectors = load()
    assert source == ("B {message}" if name == "ensemble.json" else "A {message}")
    again = load(revision=hub.commits(ID)[-1 if name == "ensemble.json" else -2][0])
    assert torch.equal(again[1], vectors)
    assert load()[0] == "B {message}"


@pytest.mark.parametrize("how", [{"status": 503}, {"status": 403}, {"drop": "before"}, {"delay": 30}])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_had(hub, name, how):
    hub.fail(name, **how)
    started = time.monotonic()
    with pytest.raises(
        PromptLoadError if how == {"status": 403} else HubUnavailableError, match="could not be loaded"
    ):
        load()
    assert time.monotonic() - started < 5


def test_the_cache_serves_when_the_server_cannot(hub, versions):
    old = load()
    hub.put(ID, versions[1])
    hub.fail("b/*", status=503)  # in the middle, when the description is the new one already
    with pytest.raises(HubUnavailableError):
        load()
    hub.fail("/*", status=503)
    source, vectors = load()
    assert source == old[0] and torch.equal(vectors, old[1])
    hub.requests.clear()
    assert load(local_files_only=True)[0] == old[0] and hub.requests == []
    hub.heal()
    assert load()[0] == "B {message}"


def test_no_token_is_sent_if_none_is_to_be(hub, monkeypatch):
    """Also for the members, and with one that the machine knows."""
    sent = authorizations(monkeypatch)
    load(token=False)
    assert len(sent) > 3 and set(sent) == {None}
    sent.clear()
    load()
    assert set(sent) == {"Bearer hf_alice"}


def test_a_prompt_is_no_ensemble(hub, versions):
    hub.put(ID, {"ensemble.json": None})
    with pytest.raises(PromptLoadError, match=r"has no ensemble\.json; one prompt is loaded by load_prompt"):
        load()

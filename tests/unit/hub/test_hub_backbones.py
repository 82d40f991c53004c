"""The backbone that a prompt was trained on is the one that a stranger gets: of the same commit, and whole."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_prompt_tuning import (
    PromptLoadError,
    PromptMismatchError,
    PromptTemplate,
    PromptTuningConfig,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone
from hf_prompt_tuning.errors import HubUnavailableError, PromptTuningError
from hf_prompt_tuning.hub.backbones import commit_of
from tests.shared.hub_client import authorizations, contents, local_hub
from tests.shared.hub_faults import LATER, WRONG
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.versions import TRIES_AGAIN

BACKBONE, ID = "alice/backbone", "alice/prompt"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("backbone")
    model = tiny_model("llama")
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return contents(folder)


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> dict[str, bytes]:
    """The same embeddings, and other layers."""
    folder = tmp_path_factory.mktemp("moved")
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.add_(0.1)
    model.save_pretrained(folder)
    return {WEIGHTS: (folder / WEIGHTS).read_bytes()}


@pytest.fixture
def hub(monkeypatch, tmp_path, repository):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.5)
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        server.put(BACKBONE, repository)
        yield server


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """From here on a stranger's machine, whose cache is empty."""
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "stranger"))


def saved(hub, backbone, folder, config=None, repo_id=ID):
    """A prompt of this backbone, pushed; what its two files say of the commit."""
    config = config or PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
    model = get_prompt_tuning_model(backbone, config, template=PromptTemplate("{a}", "{b}"))
    model.save_pretrained(folder)
    files = contents(folder)
    hub.put(repo_id, files)
    info, adapter = (json.loads(files[name]) for name in ("prompt_tuning.json", "adapter_config.json"))
    assert info["backbone"]["revision"] == adapter["revision"]
    return adapter["revision"]


def by_the_command(**options):
    return load_backbone(ModelArguments(BACKBONE, **options))[0]


def by_the_user(**options):
    return AutoModelForCausalLM.from_pretrained(BACKBONE, **options)


@pytest.mark.parametrize("load", [by_the_command, by_the_user])
@pytest.mark.parametrize("which", ["main", "older main", "branch", "commit"])
def test_the_commit_is_recorded_and_loaded_again(hub, moved, tmp_path, elsewhere, load, which):
    first = hub.commits(BACKBONE)[-1][0]
    second = hub.put(BACKBONE, moved | {"README.md": b"changed"})
    hub.repositories[BACKBONE].branches["try"] = hub.repositories[BACKBONE].at(first)
    if which == "older main":
        by_the_user()  # both are in the cache
    revision = {"main": None, "older main": first, "branch": "try", "commit": first}[which]
    name = "model_revision" if load is by_the_command else "revision"
    backbone = load(**{} if revision is None else {name: revision})
    expected = second if which == "main" else first
    assert commit_of(backbone) == expected
    assert saved(hub, backbone, tmp_path / "prompt") == expected
    hub.put(BACKBONE, moved if which != "main" else {WEIGHTS: hub.files(BACKBONE, first)[WEIGHTS]})
    elsewhere()
    again = load_prompt(ID)[0].base_model
    for name, weight in backbone.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    assert again.hub_commit == expected


def test_no_token_is_sent_if_none_is_to_be(hub, monkeypatch, tmp_path, elsewhere):
    """For the backbone and its tokenizer either."""
    saved(hub, by_the_user(), tmp_path / "prompt")
    elsewhere()
    sent = authorizations(monkeypatch)
    load_prompt(ID, token=False)
    assert len(sent) > 3 and set(sent) == {None}


def test_peft_loads_the_same_commit(hub, moved, tmp_path, elsewhere):
    backbone = by_the_command()
    saved(hub, backbone, tmp_path / "prompt")
    hub.put(BACKBONE, moved)
    elsewhere()
    theirs = AutoPeftModelForCausalLM.from_pretrained(ID).base_model
    assert torch.equal(theirs.model.layers[1].mlp.up_proj.weight, backbone.model.layers[1].mlp.up_proj.weight)


def test_several_threads_load_at_once(hub, tmp_path, elsewhere):
    saved(hub, by_the_command(), tmp_path / "prompt")
    elsewhere()
    tie_weights = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as pool:
        prompts = list(pool.map(lambda _: load_prompt(ID)[0].prompt, range(4)))
    assert PreTrainedModel.tie_weights is tie_weights  # transformers replaces it while it loads
    assert all(torch.equal(prompt, prompts[0]) for prompt in prompts)


def test_a_prompts_backbone_is_remembered_by_the_prompts_trained_on_it(hub, moved, tmp_path):
    first = saved(hub, by_the_command(), tmp_path / "first")
    hub.put(BACKBONE, moved)
    backbone = load_prompt(ID)[0].get_base_model()
    assert saved(hub, backbone, tmp_path / "second", repo_id="alice/second") == first


def test_a_backbone_that_was_changed_has_no_commit(hub, tmp_path, caplog):
    backbone = by_the_user()
    with torch.no_grad():
        backbone.model.layers[1].mlp.up_proj.weight.add_(1.0)
    assert commit_of(backbone) is None
    assert saved(hub, backbone, tmp_path / "prompt") is None
    assert "At which commit the backbone alice/backbone was loaded cannot be told" in caplog.text
    named = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM", revision="v1")
    assert saved(hub, backbone, tmp_path / "named", named) == "v1"


def test_the_commit_of_a_backbone_in_another_dtype(hub, tmp_path):
    sha = hub.commits(BACKBONE)[-1][0]
    assert commit_of(by_the_user(dtype=torch.bfloat16)) == sha
    by_the_user().save_pretrained(tmp_path / "folder")
    assert commit_of(AutoModelForCausalLM.from_pretrained(tmp_path / "folder")) is None
    assert commit_of(tiny_model("llama")) is None


def test_a_backbone_of_another_commit_is_told(hub, moved, tmp_path, caplog, elsewhere):
    first = saved(hub, by_the_command(), tmp_path / "prompt")
    second = hub.put(BACKBONE, moved)
    elsewhere()
    load_prompt(ID, backbone=by_the_user(revision=first))
    assert "Embeddings are compared" not in caplog.text
    for backbone in (by_the_user(), BACKBONE):
        caplog.clear()
        model = load_prompt(ID, backbone=backbone)[0]
        assert f"trained on {BACKBONE} at {first}, and the backbone given is of {second}" in caplog.text
        assert model.info.backbone["revision"] == first  # what it was trained on stays what it was


def test_another_embedding_is_another_backbone(hub, tmp_path, tmp_path_factory):
    saved(hub, by_the_command(), tmp_path / "prompt")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    hub.put(BACKBONE, {WEIGHTS: (tmp_path / "other" / WEIGHTS).read_bytes()})
    load_prompt(ID)
    with pytest.raises(PromptMismatchError):
        load_prompt(ID, backbone=BACKBONE)


def test_a_commit_that_is_gone(hub, tmp_path, elsewhere):
    backbone = by_the_command()
    backbone.hub_commit = "1" * 40
    saved(hub, backbone, tmp_path / "prompt")
    elsewhere()
    with pytest.raises(PromptLoadError, match=r"the backbone 'alice/backbone' could not be loaded: .* as backbone="):
        load_prompt(ID)
    assert load_prompt(ID, backbone=BACKBONE)[0].prompt.shape == (3, 32)


FILES = ("config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json")


def soon(call, kind):
    started = time.monotonic()
    with pytest.raises(kind) as error:
        call()
    assert time.monotonic() - started < 6
    message = str(error.value)
    assert "\n" not in message and "models--" not in message and "/cache" not in message
    return message


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in (*FILES, "/api/models/*")
        for how in ("403", "429", "503", "dropped", "cut off", "silent", "a sign-in page")
        if (name, how) != (WEIGHTS, "cut off")  # see below
    ],
)
def test_a_backbones_file_that_cannot_be_had(hub, tmp_path, elsewhere, name, how):
    """By `load_prompt`, and by the command; nothing is loaded with a tokenizer or settings that are not its own."""
    saved(hub, by_the_command(), tmp_path / "prompt")
    elsewhere()
    hub.fail(name, repo_id=BACKBONE, **WRONG[how])
    for load, kind in ((lambda: load_prompt(ID), PromptLoadError), (by_the_command, PromptTuningError)):
        message = soon(load, kind)
        assert "backbone" in message and "could not be loaded" in message
        if (status := WRONG[how].get("status", 200)) > 200:
            assert f"the server says {status}" in message and hub.faults[0].words in message
    hub.heal()
    model, tokenizer, _ = load_prompt(ID)
    assert model.generation_config.max_new_tokens == 7 and tokenizer.pad_token == "<pad>"


@pytest.mark.parametrize("how", [how for how in LATER if how not in ("500", "502")])
def test_the_cache_serves_a_backbone(hub, moved, tmp_path, how):
    saved(hub, by_the_command(), tmp_path / "prompt")
    model = load_prompt(ID)[0]
    hub.put(BACKBONE, moved)
    hub.fail("/*", **WRONG[how])
    started = time.monotonic()
    for again in (load_prompt(ID)[0].base_model, by_the_command()):
        assert torch.equal(again.lm_head.weight, model.base_model.lm_head.weight)
        assert again.generation_config.max_new_tokens == 7
    assert time.monotonic() - started < 10


def test_nobody_is_asked_offline(hub, tmp_path, monkeypatch):
    saved(hub, by_the_command(), tmp_path / "prompt")
    load_prompt(ID)
    hub.requests.clear()
    assert load_prompt(ID, local_files_only=True)[1] is not None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_prompt(ID)[1] is not None and by_the_command() is not None
    assert hub.requests == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(PromptLoadError, match="is not in the cache"):
        load_prompt(ID)
    with pytest.raises(PromptLoadError, match=r"the backbone 'alice/backbone' .*its config\.json is not in the cache"):
        load_prompt(tmp_path / "prompt")


def test_a_push_in_the_middle_of_a_backbones_load(hub, moved, tmp_path, elsewhere):
    first = hub.commits(BACKBONE)[-1][0]
    hub.before(WEIGHTS, lambda: hub.put(BACKBONE, moved))
    backbone = by_the_command()
    assert commit_of(backbone) == first
    assert torch.equal(backbone.state_dict()["model.layers.0.mlp.up_proj.weight"], _first(hub, first, tmp_path))


def _first(hub, sha, tmp_path):
    from safetensors.torch import load

    return load(hub.files(BACKBONE, sha)[WEIGHTS])["model.layers.0.mlp.up_proj.weight"]


def test_private_backbones(hub, tmp_path, elsewhere):
    hub.repositories[BACKBONE].private = True
    backbone = by_the_command(token="hf_alice")
    saved(hub, backbone, tmp_path / "prompt")
    elsewhere()
    assert "the backbone 'alice/backbone' could not be loaded" in soon(lambda: load_prompt(ID), PromptLoadError)
    assert load_prompt(ID, token="hf_alice")[1] is not None
    elsewhere()
    assert "could not be loaded" in soon(lambda: by_the_command(token="hf_bob"), PromptTuningError)


@pytest.mark.parametrize("token", ["hf_alice", None])
def test_a_backbone_with_code_or_pickles_is_refused(hub, repository, tmp_path, elsewhere, monkeypatch, token):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    saved(hub, by_the_command(), tmp_path / "prompt")
    config = json.loads(repository["config.json"])
    code = {"auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}, "model_type": "theirs"}
    code = {"config.json": json.dumps(config | code).encode(), "code.py": b"raise SystemExit('run')"}
    adapter = {"adapter_config.json": json.dumps({"base_model_name_or_path": "bob/x"}).encode(), "config.json": None}
    for change in ({WEIGHTS: None, "pytorch_model.bin": b"cos\nsystem\n"}, code, adapter):
        sha = hub.put(BACKBONE, change | {"README.md": repr(change).encode()})
        hub.put(ID, {"adapter_config.json": _naming(hub, sha), "prompt_tuning.json": None})
        elsewhere()
        assert "the backbone 'alice/backbone' could not be loaded" in soon(lambda: load_prompt(ID), PromptLoadError)
        hub.put(BACKBONE, repository | {"pytorch_model.bin": None, "code.py": None, "adapter_config.json": None})
    with pytest.raises(PromptLoadError, match=r"trust_remote_code is given .* no code from the Hub is run"):
        load_prompt(ID, trust_remote_code=True)


def _naming(hub, sha):
    return json.dumps(json.loads(hub.files(ID)["adapter_config.json"]) | {"revision": sha}).encode()


def test_weights_that_break_off_for_ever(hub, tmp_path, elsewhere, monkeypatch):
    """After some of them came: most versions of the client go on without end, each time from the start."""
    saved(hub, by_the_command(), tmp_path / "prompt")
    elsewhere()
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fail(WEIGHTS, method="GET", drop="within")
    told = "breaks off again and again" if TRIES_AGAIN else "the Hub does not answer (RemoteProtocolError"
    assert told in soon(lambda: load_prompt(ID), HubUnavailableError)


def test_tokenizers_are_of_the_same_commit(hub, repository, tmp_path, elsewhere):
    saved(hub, by_the_command(), tmp_path / "prompt")
    hub.put(BACKBONE, {"tokenizer_config.json": repository["tokenizer_config.json"].replace(b"<pad>", b"</s>")})
    elsewhere()
    assert AutoTokenizer.from_pretrained(BACKBONE).pad_token == "</s>"
    assert load_prompt(ID)[1].pad_token == "<pad>"

"""Loading from a Hub that fails: a file is missing where the server says so, and all else is one error, soon."""

import re
import time

import pytest
import torch

from hf_prompt_tuning import (
    PromptLoadError,
    PromptMismatchError,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningModelForCausalLM,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.errors import HubUnavailableError
from hf_prompt_tuning.prompts.files import CONFIG_FILE, START_FILE, WEIGHTS_FILE
from hf_prompt_tuning.prompts.info import INFO_FILE
from tests.shared.hub_client import contents, local_hub
from tests.shared.hub_faults import LATER, WRONG
from tests.shared.hub_repository import identity
from tests.shared.tiny_models import tiny_model
from tests.shared.versions import LISTS_FILES_IN_CACHE

ID = "alice/prompt"
FILES = (CONFIG_FILE, WEIGHTS_FILE, INFO_FILE, START_FILE)


def prompt_files(tmp_path_factory, template: str, seed: int) -> dict[str, bytes]:
    folder, backbone = tmp_path_factory.mktemp("prompt"), tiny_model("llama")
    torch.manual_seed(seed)
    model = get_prompt_tuning_model(
        backbone,
        PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"),
        template=PromptTemplate(template, "{label}"),
    )
    model.save_pretrained(folder)
    files = contents(folder)
    assert set(FILES) <= set(files)
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    return prompt_files(tmp_path_factory, "A {message}", 0)


@pytest.fixture(scope="module")
def newer(tmp_path_factory) -> dict[str, bytes]:
    return prompt_files(tmp_path_factory, "B {message}", 1)


@pytest.fixture
def hub(monkeypatch, tmp_path, files):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1.0)
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        server.put(ID, files)
        yield server


@pytest.fixture(scope="module")
def backbone():
    return tiny_model("llama")


def load(backbone, prompt=ID, **options):
    return PromptTuningModelForCausalLM.from_pretrained(backbone, prompt, **options)


def refused(backbone, kind=PromptLoadError, prompt=ID, **options) -> str:
    """The one message, soon."""
    started = time.monotonic()
    with pytest.raises(kind) as error:
        load(backbone, prompt, **options)
    assert time.monotonic() - started < 5
    message = str(error.value)
    assert "\n" not in message and "models--" not in message and "/cache" not in message
    return message


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_had_is_an_error(hub, backbone, name, how):
    hub.fail(name, **WRONG[how])
    message = refused(backbone, HubUnavailableError if how in LATER else PromptLoadError)
    assert ID in message
    if (status := WRONG[how].get("status", 200)) > 200:
        assert f"the prompt '{ID}' could not be loaded: the server says {status} " in message
        assert hub.faults[0].words in message
    if how == "429":
        assert "Try again in 3600 seconds" in message
    hub.heal()
    assert load(backbone).info.template.source == "A {message}"


@pytest.mark.parametrize("how", LATER)
@pytest.mark.parametrize("name", [*FILES, "*"])
def test_the_cache_serves_when_the_server_cannot(hub, backbone, newer, name, how, caplog):
    """Old vectors with the old template, though the repository has moved on and half of the new ones came."""
    old = load(backbone)
    sha = hub.commits(ID)[-1][0]
    hub.put(ID, newer)
    hub.fail(name, **WRONG[how])
    started = time.monotonic()
    again = load(backbone)
    assert time.monotonic() - started < 5
    assert torch.equal(again.prompt, old.prompt) and again.info.template == old.info.template
    assert f"the copy in the cache, of commit {sha}" in caplog.text
    hub.heal()
    assert load(backbone).info.template.source == "B {message}"


@pytest.mark.parametrize("how", ["401", "403", "gated", "no repository", "no revision"])
def test_the_cache_does_not_serve_what_the_server_refuses(hub, backbone, how):
    load(backbone)
    hub.fail("*", **WRONG[how])
    refused(backbone)


@pytest.mark.parametrize("lying", [False, True])
def test_contents_that_are_elsewhere(hub, backbone, newer, lying):
    """As a server does that sends them from another place, and (`lying`) tells the newest one's hash of each."""
    hub.elsewhere = True
    first = hub.commits(ID)[-1][0]
    hub.put(ID, newer)
    if lying:
        for name in FILES:
            etag = identity(name, hub.files(ID)[name])
            hub.fail(name, method="HEAD", headers={"ETag": f'"{etag}"'})
    assert load(backbone, revision=first).info.template.source == "A {message}"
    assert load(backbone).info.template.source == "B {message}"
    hub.heal()
    hub.fail(INFO_FILE, method="HEAD", status=503)
    assert "503 Service Unavailable" in refused(backbone, force_download=True)


@pytest.mark.parametrize("options", [{"subfolder": "../x"}, {"subfolder": "a/../../x"}, {"revision": "../main"}])
def test_what_would_lead_out_of_the_repository(hub, backbone, options):
    assert "; give one that is in it" in refused(backbone, **options)


def test_a_server_that_lists_nothing(hub, backbone, files):
    hub.put("alice/none", {"README.md": b""})
    hub.fail("/api/models/*", status=500)
    assert "has no adapter_config.json; a prompt's folder holds" in refused(backbone, prompt="alice/none")


def test_a_file_is_missing_where_the_server_says_so(hub, backbone, files):
    hub.put("alice/peft", {name: files[name] for name in (CONFIG_FILE, WEIGHTS_FILE)})
    for _ in range(2):
        model = load(backbone, "alice/peft")
        assert model.info.template is None
    assert "has no adapter_model.safetensors" in _without(hub, backbone, files, WEIGHTS_FILE)
    assert "has no adapter_config.json; a prompt's folder holds" in _without(hub, backbone, files, CONFIG_FILE)


def _without(hub, backbone, files, name):
    hub.put(f"alice/no-{name}", {other: content for other, content in files.items() if other != name})
    return refused(backbone, prompt=f"alice/no-{name}")


@pytest.mark.parametrize("name", FILES)
def test_a_push_in_the_middle_of_a_load(hub, backbone, newer, name):
    """Between any two requests: all files are of one commit, whichever it is."""
    hub.before(name, lambda: hub.put(ID, newer | {"adapter_config.json": newer["adapter_config.json"] + b"\n"}))
    model = load(backbone)
    expected = "B {message}" if name == CONFIG_FILE else "A {message}"
    assert model.info.template.source == expected
    again = load(backbone, revision=hub.commits(ID)[-1 if name == CONFIG_FILE else -2][0])
    assert torch.equal(again.prompt, model.prompt)
    newest = load(backbone)
    assert newest.info.template.source == "B {message}"
    assert torch.equal(newest.prompt, model.prompt) == (name == CONFIG_FILE)


@pytest.mark.parametrize("moment", ["weights are deleted", "description is deleted"])
def test_a_deletion_in_the_middle_of_a_load(hub, backbone, moment):
    gone = {WEIGHTS_FILE: None} if moment == "weights are deleted" else {INFO_FILE: None}
    hub.before(next(iter(gone)), lambda: hub.put(ID, gone))
    assert load(backbone).info.template.source == "A {message}"


def test_a_cache_without_the_description_does_not_serve(hub, backbone, files, monkeypatch):
    """PEFT's own loading leaves two files there; whether there is a third, the Hub alone could tell."""
    from huggingface_hub import hf_hub_download

    for name in (CONFIG_FILE, WEIGHTS_FILE):
        hf_hub_download(ID, name)
    for options in ({"local_files_only": True}, {}):
        hub.fail("*", status=503)
        assert "could not be loaded" in refused(backbone, **options)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert f"its {INFO_FILE} is not in the cache" in refused(backbone)


def test_what_was_downloaded_whole_serves_offline(hub, backbone, files, monkeypatch):
    from huggingface_hub import snapshot_download

    hub.put("alice/peft", {name: files[name] for name in (CONFIG_FILE, WEIGHTS_FILE)})
    for repo_id in (ID, "alice/peft"):
        snapshot_download(repo_id)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert load(backbone).info.template.source == "A {message}"
    if LISTS_FILES_IN_CACHE:
        assert load(backbone, "alice/peft").info.template is None
    else:
        assert f"its {INFO_FILE} is not in the cache" in refused(backbone, prompt="alice/peft")
    assert hub.requests == []


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
def test_nobody_is_asked_offline(hub, backbone, monkeypatch, how):
    options = {"local_files_only": True} if how == "local_files_only" else {}
    if not options:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(backbone, **options)
    assert "adapter_config.json is not in the cache" in message and "has no" not in message
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    online = load(backbone)
    if not options:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert torch.equal(load(backbone, **options).prompt, online.prompt)
    assert hub.requests == []


def test_a_commit_that_is_in_the_cache_needs_no_server(hub, backbone):
    sha = hub.commits(ID)[-1][0]
    load(backbone, revision=sha)
    hub.requests.clear()
    assert load(backbone, revision=sha).info.template.source == "A {message}"
    assert hub.requests == []
    assert "Check its revision" in refused(backbone, revision="0" * 40)


def test_a_wrong_backbone_is_refused_though_the_server_fails(hub):
    other = tiny_model("llama", seed=1)
    refused(other, PromptMismatchError)
    hub.fail(INFO_FILE, status=503)
    refused(other, PromptMismatchError)  # by the copy in the cache


def test_private_repositories(hub, backbone, monkeypatch):
    hub.repositories[ID].private = True
    for token in (False, "hf_bob"):
        assert f"the prompt '{ID}' could not be loaded" in refused(backbone, token=token)
    assert load(backbone, token="hf_alice").info.template.source == "A {message}"
    hub.fail(INFO_FILE, status=401, message="Invalid credentials in Authorization header")
    assert "Check that it may be read, and the token" in refused(backbone, token="hf_alice", force_download=True)


def test_folders_of_a_repository(hub, backbone, files, tmp_path):
    tasks = {f"{task}/{name}": content for task in ("first", "second") for name, content in files.items()}
    hub.put("alice/tasks", tasks | {"README.md": b""})
    message = refused(backbone, prompt="alice/tasks")
    assert "has no adapter_config.json, but prompts in 'first', 'second'; name one of these" in message
    assert "by subfolder=" in message
    assert load(backbone, "alice/tasks", subfolder="second").info.template.source == "A {message}"
    for name, content in tasks.items():
        (tmp_path / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tasks" / name).write_bytes(content)
    with pytest.raises(PromptLoadError, match="but prompts in 'first', 'second'"):
        load(backbone, tmp_path / "tasks")
    hub.fail("second/prompt_tuning.json", status=500)
    assert "could not be loaded: the server says 500" in refused(
        backbone, prompt="alice/tasks", subfolder="second", force_download=True
    )


@pytest.mark.parametrize("kind", ["LORA", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"])
def test_adapters_of_other_kinds(hub, backbone, files, kind):
    config = re.sub(b"PROMPT_TUNING", kind.encode(), files[CONFIG_FILE], count=1)
    hub.put("alice/other", {CONFIG_FILE: config, WEIGHTS_FILE: files[WEIGHTS_FILE]})
    message = refused(backbone, prompt="alice/other")
    assert message == (
        f"alice/other is a {kind} adapter, not a soft prompt (PROMPT_TUNING). Load it with PEFT's own class: "
        "PeftModel.from_pretrained(backbone, 'alice/other')."
    )


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, INFO_FILE])
def test_what_is_damaged_is_named_by_its_repository(hub, backbone, files, name):
    hub.put(ID, {name: b"{"})
    assert f"{ID}/{name} is not a" in refused(backbone)


def test_a_cache_that_cannot_be_written_to(hub, backbone, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = refused(backbone, cache_dir=tmp_path / "file")
    assert "the cache cannot be written to" in message


@pytest.mark.parametrize("how", ["cut off", "another content", "half a content"])
def test_nothing_unfinished_is_left_in_the_cache(hub, backbone, tmp_path, how):
    hub.fail(WEIGHTS_FILE, **WRONG[how])
    refused(backbone)
    left = [name for name in contents(tmp_path / "cache") if "incomplete" in name]
    assert left == []


def test_load_prompt_loads_by_the_same_door(hub, backbone):
    hub.fail(INFO_FILE, status=503, times=1)
    with pytest.raises(HubUnavailableError, match="the server says 503"):
        load_prompt(ID, backbone=backbone)
    assert load_prompt(ID, backbone=backbone)[2].source == "A {message}"
    hub.requests.clear()
    assert load_prompt(ID, backbone=backbone, local_files_only=True)[2].source == "A {message}"
    assert hub.requests == []
    model = load(backbone)
    hub.fail(INFO_FILE, status=503)
    with pytest.raises(HubUnavailableError):
        model.load_adapter(ID, "second", force_download=True, cache_dir="/nowhere")
    assert list(model.peft_config) == ["default"]

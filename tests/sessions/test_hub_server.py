"""The Hub on this machine, through the real client: what the other tests take for granted about it."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import HfApi, close_session, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.shared.hub_server import HubServer
from tests.shared.versions import HTTP, UPLOADS_AGAIN

CARD = b"---\nlicense: mit\n---\n# A prompt\n"
FILES = {"README.md": CARD, "adapter_config.json": b'{"a": 1}', "adapter_model.safetensors": bytes(range(256)) * 64}
FIRST = {".gitattributes": b""}


@pytest.fixture
def hub(monkeypatch):
    """With Xet off, as `environment` has it, and tokens that are this test's own."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer(tokens={"hf_alice": "alice", "hf_bob": "bob"}) as server:
        yield server
    close_session()


def client(hub: HubServer, token: str | bool = "hf_alice") -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def contents(path: str) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def push(hub: HubServer, path: Path, files: dict[str, bytes], repo_id: str = "alice/p", **options) -> str:
    """Creates the repository if it must; returns the new sha."""
    client(hub).create_repo(repo_id, exist_ok=True, private=options.pop("private", None))
    return client(hub).upload_folder(repo_id=repo_id, folder_path=folder(path, files), **options).oid


def test_a_folder_is_pushed_as_regular_and_lfs_files(hub, tmp_path):
    sha = push(hub, tmp_path / "run", FILES, commit_message="End of training")
    assert re.fullmatch("[0-9a-f]{40}", sha)
    assert hub.files("alice/p") == FIRST | FILES
    assert [title for _, title in hub.commits("alice/p")] == ["initial commit", "End of training"]
    assert hub.commits("alice/p")[-1][0] == sha
    puts = [path for method, path in hub.requests if method == "PUT"]
    assert len(puts) == 1 and puts[0].startswith("/lfs/")
    assert ("POST", "/api/models/alice/p/commit/main") in hub.requests
    stored = {file.path: file for file in client(hub).list_repo_tree("alice/p", recursive=True)}
    assert {name for name, file in stored.items() if file.lfs} == {"adapter_model.safetensors"}
    assert stored["adapter_model.safetensors"].lfs.size == len(FILES["adapter_model.safetensors"])


def test_a_large_file_is_lfs_whatever_its_name(hub, tmp_path):
    push(hub, tmp_path, {"tokenizer.json": b" " * 10_000_001, "small.json": b"{}"})
    assert len([path for method, path in hub.requests if method == "PUT"]) == 1
    assert len(hub.files("alice/p")["tokenizer.json"]) == 10_000_001


def test_creating_a_repository_twice(hub):
    assert client(hub).create_repo("alice/p").repo_id == "alice/p"
    assert client(hub).create_repo("alice/p", exist_ok=True).repo_id == "alice/p"
    with pytest.raises(HfHubHTTPError) as refused:
        client(hub).create_repo("alice/p")
    assert refused.value.response.status_code == 409
    with pytest.raises(HfHubHTTPError) as refused:
        client(hub, "hf_bob").create_repo("alice/q")
    assert refused.value.response.status_code == 403
    assert client(hub).model_info("alice/p").sha == hub.commits("alice/p")[0][0]


def test_every_revision_stays_what_it_was(hub, tmp_path):
    old = push(hub, tmp_path / "run", FILES)
    changed = FILES | {"adapter_model.safetensors": b"two", "sub/a b.json": b"{}"}
    new = push(hub, tmp_path / "run", changed)
    api = client(hub, token=False)
    for number, (revision, files) in enumerate({old: FILES, new: changed, "main": changed, None: changed}.items()):
        cache = tmp_path / f"cache{number}"
        assert contents(api.snapshot_download("alice/p", revision=revision, cache_dir=cache)) == FIRST | files
        one = api.hf_hub_download("alice/p", "adapter_model.safetensors", revision=revision, cache_dir=cache / "one")
        assert Path(one).read_bytes() == files["adapter_model.safetensors"]
        assert Path(one).parent.name == (revision if revision == old else new)
    assert hub.files("alice/p", revision=old) == FIRST | FILES
    assert api.model_info("alice/p", revision=old).sha == old
    assert {s.rfilename for s in api.model_info("alice/p").siblings} == set(FIRST | changed)


def test_what_has_not_changed_is_not_pushed_again(hub, tmp_path):
    first = push(hub, tmp_path, FILES)
    assert push(hub, tmp_path, FILES) == first
    assert len(hub.commits("alice/p")) == 2


def test_files_and_folders_are_deleted(hub, tmp_path):
    push(hub, tmp_path, FILES | {"sub/one.json": b"1", "sub/two.json": b"2", "sub.json": b"3"})
    client(hub).delete_folder("sub", "alice/p")
    assert hub.files("alice/p") == FIRST | FILES | {"sub.json": b"3"}
    client(hub).delete_file("sub.json", "alice/p")
    assert hub.files("alice/p") == FIRST | FILES


def test_a_branch_has_its_own_commits(hub, tmp_path):
    main = push(hub, tmp_path / "run", FILES)
    client(hub).create_branch("alice/p", branch="try/1")
    client(hub).create_branch("alice/p", branch="try/1", exist_ok=True)
    client(hub).create_branch("alice/p", branch="start", revision=hub.commits("alice/p")[0][0])
    made = push(hub, tmp_path / "run", {"README.md": CARD + b"more"}, revision="try/1")
    assert hub.commits("alice/p", "try/1")[:-1] == hub.commits("alice/p")
    assert hub.files("alice/p", "try/1")["README.md"] == CARD + b"more"
    assert (hub.files("alice/p"), hub.commits("alice/p")[-1][0]) == (FIRST | FILES, main)
    assert hub.files("alice/p", "start") == FIRST
    for revision in ("try/1", made):
        pulled = client(hub).hf_hub_download("alice/p", "README.md", revision=revision, cache_dir=tmp_path / "cache")
        assert Path(pulled).read_bytes() == CARD + b"more"
    with pytest.raises(HfHubHTTPError) as refused:
        client(hub).create_branch("alice/p", branch="try/1")
    assert refused.value.response.status_code == 409


@pytest.mark.parametrize(("token", "status"), [("hf_bob", 404), ("hf_unknown", 404), (False, 401)])
def test_a_private_repository_does_not_exist_for_others(hub, tmp_path, token, status):
    sha = push(hub, tmp_path / "run", FILES, private=True)
    assert client(hub).model_info("alice/p").private
    assert contents(client(hub).snapshot_download("alice/p", cache_dir=tmp_path / "own")) == FIRST | FILES
    other, cache = client(hub, token), tmp_path / "other"
    for reads in (
        lambda: other.model_info("alice/p"),
        lambda: other.snapshot_download("alice/p", cache_dir=cache),
        lambda: other.snapshot_download("alice/p", revision=sha, cache_dir=cache),
        lambda: other.hf_hub_download("alice/p", "README.md", cache_dir=cache),
        lambda: other.upload_file(path_or_fileobj=b"x", path_in_repo="x.json", repo_id="alice/p"),
    ):
        with pytest.raises(RepositoryNotFoundError) as refused:
            reads()
        assert refused.value.response.status_code == status
    assert hub.commits("alice/p")[-1][0] == sha


@pytest.mark.parametrize(("token", "status"), [("hf_bob", 403), ("hf_unknown", 403), (False, 401)])
def test_a_public_repository_is_written_by_its_owner_alone(hub, tmp_path, token, status):
    sha = push(hub, tmp_path / "run", FILES)
    other = client(hub, token)
    assert other.model_info("alice/p").sha == sha
    for writes in (
        lambda: other.upload_file(path_or_fileobj=b"x", path_in_repo="x.json", repo_id="alice/p"),
        lambda: other.create_branch("alice/p", branch="b"),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            writes()
        assert refused.value.response.status_code == status
    assert hub.files("alice/p") == FIRST | FILES


def test_tokens_have_names(hub):
    assert client(hub).whoami()["name"] == "alice"
    assert client(hub, "hf_bob").whoami()["name"] == "bob"
    with pytest.raises(HfHubHTTPError) as refused:
        client(hub, "hf_unknown").whoami()
    assert refused.value.response.status_code == 401


def test_what_is_missing(hub, tmp_path):
    sha = push(hub, tmp_path / "run", FILES)
    api, cache = client(hub), tmp_path / "cache"
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("alice/p", "none.json", cache_dir=cache)
    assert not api.file_exists("alice/p", "none.json") and api.file_exists("alice/p", "README.md")
    for revision in ("none", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.hf_hub_download("alice/p", "README.md", revision=revision, cache_dir=cache)
        with pytest.raises(RevisionNotFoundError):
            api.snapshot_download("alice/p", revision=revision, cache_dir=cache)
        with pytest.raises(RevisionNotFoundError):
            push(hub, tmp_path / "run", FILES, revision=revision)
    with pytest.raises(RevisionNotFoundError):  # a commit can be read, but only a branch is pushed to
        push(hub, tmp_path / "run", {"README.md": CARD + b"more"}, revision=sha)
    assert hub.files("alice/p") == FIRST | FILES
    with pytest.raises(RepositoryNotFoundError):
        api.snapshot_download("alice/none", cache_dir=cache)


@pytest.mark.parametrize("oid, size", [("ab" * 32, 3), (hashlib.sha256(b"abc").hexdigest(), 4)])
def test_an_lfs_file_must_be_what_was_announced(hub, oid, size):
    client(hub).create_repo("alice/p")
    announced = {"oid": oid, "size": size}
    with HTTP.Client(base_url=hub.endpoint, headers={"Authorization": "Bearer hf_alice"}) as http:
        batch = http.post("/alice/p.git/info/lfs/objects/batch", json={"objects": [announced]}).json()
        actions = batch["objects"][0]["actions"]
        assert http.put(actions["upload"]["href"], content=b"abc").status_code == 400
        assert http.post(actions["verify"]["href"], json=announced).status_code == 404
        lines = [{"key": "header", "value": {"summary": "t"}}, {"key": "lfsFile", "value": {"path": "m", "oid": oid}}]
        body = "\n".join(json.dumps(line) for line in lines)
        assert http.post("/api/models/alice/p/commit/main", content=body).status_code == 400
    assert hub.files("alice/p") == FIRST


@pytest.mark.parametrize("after", [0, 1])
def test_a_push_that_is_cut_off_leaves_the_old_revision_and_the_next_one_mends_it(hub, tmp_path, after):
    """Cut off within the LFS file, and between it and the commit."""
    old = push(hub, tmp_path / "run", FILES)
    changed = FILES | {"adapter_model.safetensors": b"two", "adapter_config.json": b"{}"}
    hub.requests.clear()
    hub.cut_uploads(after=after)
    uploads = (4 if UPLOADS_AGAIN else 2) if after == 0 else 1  # an LFS file that is there is not sent again
    for _ in range(2 - after):
        with pytest.raises(RuntimeError if after == 0 else HTTP.TransportError):
            push(hub, tmp_path / "run", changed)
    assert len([path for method, path in hub.requests if method == "PUT"]) == uploads
    assert (hub.files("alice/p"), hub.commits("alice/p")[-1][0]) == (FIRST | FILES, old)
    pulled = client(hub).snapshot_download("alice/p", cache_dir=tmp_path / "while_cut")
    assert contents(pulled) == FIRST | FILES
    hub.heal()
    new = push(hub, tmp_path / "run", changed)
    assert hub.files("alice/p") == FIRST | changed
    assert contents(client(hub).snapshot_download("alice/p", cache_dir=tmp_path / "mended")) == FIRST | changed
    assert [sha for sha, _ in hub.commits("alice/p")[1:]] == [old, new]


def test_a_hub_that_is_down(hub, tmp_path):
    push(hub, tmp_path / "run", FILES)
    api, cache = client(hub), tmp_path / "cache"
    kept = api.snapshot_download("alice/p", cache_dir=cache)
    hub.down = True
    for asks in (
        lambda: api.model_info("alice/p"),
        lambda: api.create_repo("alice/q"),
        lambda: api.upload_folder(repo_id="alice/p", folder_path=tmp_path / "run"),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            asks()
        assert refused.value.response.status_code == 503
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download("alice/p", "README.md", cache_dir=tmp_path / "none")
    assert api.snapshot_download("alice/p", cache_dir=cache) == kept
    hub.down = False
    assert api.model_info("alice/p").sha == hub.commits("alice/p")[-1][0]


def test_the_environment_is_all_that_a_process_needs(hub, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    strangers = hub.environment(tmp_path / "stranger")
    assert not {"HF_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"} & strangers.keys()
    assert strangers["HF_HUB_OFFLINE"] == "0" and not os.listdir(strangers["HF_HOME"])
    code = """
from huggingface_hub import create_repo, hf_hub_download, upload_folder
create_repo("p", private=True)
upload_folder(repo_id="alice/p", folder_path="run")
print(open(hf_hub_download("alice/p", "adapter_config.json")).read())
"""
    folder(tmp_path / "run", FILES)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=hub.environment(tmp_path / "home", token="hf_alice"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"a": 1}\n'
    assert hub.files("alice/p") == FIRST | FILES
    assert (tmp_path / "home" / "hub" / "models--alice--p").is_dir()


def test_nothing_is_left_of_a_hub_that_has_ended(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    before = set(threading.enumerate())
    with HubServer(tokens={"hf_alice": "alice"}) as server:
        client(server).whoami()  # the client keeps this connection
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive()
    with pytest.raises(HTTP.ConnectError):
        client(server).whoami()
    close_session()

"""The Hub on this machine fails as a test says, and as the real client sees it."""

import time

import pytest
from huggingface_hub import HfApi, close_session, constants
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tests.shared.hub_server import HubServer
from tests.shared.versions import HTTP

FILES = {"a.json": b'{"a": 1}', "b/c.safetensors": bytes(range(200))}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer(tokens={"hf_alice": "alice"}) as server:
        server.put("alice/p", FILES)
        server.put("alice/q", FILES)
        yield server
    close_session()


def get(hub, name="a.json", method="GET", repo_id="alice/p", **options):
    with HTTP.Client(base_url=hub.endpoint) as http:
        return http.request(method, f"/{repo_id}/resolve/main/{name}", **options)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 502, 503])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_any_status_on_any_file(hub, status, method):
    hub.fail("a.json", status=status, headers={"Retry_After": "7"})
    answer = get(hub, method=method)
    assert (answer.status_code, answer.headers["Retry-After"]) == (status, "7")
    assert answer.headers.get("X-Error-Code") == ("EntryNotFound" if status == 404 else None)
    assert get(hub, "b/c.safetensors", method).status_code == 200
    hub.heal()
    assert get(hub, method=method).status_code == 200


def test_what_a_fault_is_for(hub):
    hub.fail("*.json", repo_id="alice/q", method="GET", after=1, times=2, status=500)
    assert [get(hub, repo_id="alice/q").status_code for _ in range(4)] == [200, 500, 500, 200]
    hub.heal()
    hub.fail("*.json", repo_id="alice/q", method="GET", status=500)
    assert get(hub).status_code == get(hub, method="HEAD", repo_id="alice/q").status_code == 200
    assert get(hub, "b/c.safetensors", repo_id="alice/q").status_code == 200


def test_any_status_on_any_call(hub):
    api = HfApi(endpoint=hub.endpoint, token="hf_alice")
    hub.fail("/api/whoami-v2", status=400, message="It is too long")
    with pytest.raises(HfHubHTTPError, match="It is too long"):
        api.whoami()
    hub.fail("/api/models/alice/*", status=404, code="RepoNotFound", times=1)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("alice/p")
    hub.fail("/api/*", repo_id="alice/q", status=403, code="GatedRepo")
    with pytest.raises(GatedRepoError):
        api.model_info("alice/q")
    assert api.model_info("alice/p").sha == hub.commits("alice/p")[-1][0]


def test_a_missing_file_is_a_404(hub, tmp_path):
    hub.fail("a.json", status=404)
    with pytest.raises(EntryNotFoundError):
        HfApi(endpoint=hub.endpoint).hf_hub_download("alice/p", "a.json", cache_dir=tmp_path)


@pytest.mark.parametrize("drop", ["before", "within"])
def test_dropped_connections(hub, drop):
    hub.fail("a.json", drop=drop, times=1)
    with pytest.raises(HTTP.RemoteProtocolError):
        get(hub)
    assert get(hub).content == FILES["a.json"]


@pytest.mark.parametrize("how", ["delay", "stall"])
def test_slow_answers(hub, how):
    hub.fail("a.json", **{how: 0.5}, times=2)
    with pytest.raises(HTTP.ReadTimeout):
        get(hub, timeout=0.1)
    started = time.monotonic()
    assert get(hub).content == FILES["a.json"]
    assert time.monotonic() - started > 0.4


def test_other_contents(hub):
    right = get(hub).headers["ETag"]
    hub.fail("a.json", body=b"<html>sign in</html>", times=1)
    answer = get(hub)
    assert (answer.content, answer.headers["ETag"]) == (b"<html>sign in</html>", right)
    hub.fail("a.json", cut=3)
    assert get(hub).content == b'{"a'
    assert get(hub, method="HEAD").headers["Content-Length"] == "3"


def test_redirects(hub):
    hub.fail("a.json", redirect="/alice/q/resolve/main/b/c.safetensors")
    assert get(hub).status_code == 302
    assert get(hub, follow_redirects=True).content == FILES["b/c.safetensors"]


def test_a_push_in_the_middle_of_a_load(hub):
    old = hub.commits("alice/p")[-1][0]
    hub.before("b/c.safetensors", lambda: hub.put("alice/p", {"a.json": b"new", "b/c.safetensors": None}))
    assert get(hub).content == FILES["a.json"]
    assert get(hub, "b/c.safetensors").status_code == 404
    assert get(hub).content == b"new"
    assert hub.files("alice/p", old).keys() >= FILES.keys()

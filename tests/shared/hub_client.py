"""The real client, transformers and the package against the small Hub, within a test's own process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from huggingface_hub import HfApi, close_session, constants

from tests.shared.hub_server import Handler, HubServer
from tests.shared.versions import forget_lists_of_files


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, token: str | None = None) -> Iterator[HubServer]:
    """A Hub that every call of this process goes to, with an empty cache.

    huggingface_hub reads the endpoint when it is imported, so each place where it is kept is changed.
    """
    with HubServer(tokens={"hf_alice": "alice", "hf_bob": "bob"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
        monkeypatch.setattr(
            transformers.utils.hub, "_hf_api", HfApi(endpoint=hub.endpoint), raising=False
        )  # not in 5.6
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
            monkeypatch.setattr(constants, name, False)
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
            monkeypatch.setattr(constants, name, True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        close_session()  # of another test's Hub
        yield hub
        close_session()
    # Trees of commits that the client keeps in memory are of this Hub's repositories alone.
    forget_lists_of_files()


def authorizations(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """From here on a token of the machine's, and the list of what each request of a file sends as its token.

    transformers asks for the list of a tokenizer's files with the machine's token in any case.
    """
    sent: list[str | None] = []
    handle = Handler.handle_request

    def noted(request: Handler) -> None:
        if "/resolve/" in request.path:
            sent.append(request.headers.get("Authorization"))
        handle(request)

    for method in ("do_GET", "do_HEAD"):
        monkeypatch.setattr(Handler, method, noted)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return sent


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their paths in it."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def pulled(hub: HubServer, folder: Path, repo_id: str, revision: str = "main") -> Path:
    """What a branch holds, as a folder."""
    for name, content in hub.files(repo_id, revision).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder

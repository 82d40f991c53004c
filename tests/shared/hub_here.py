"""The Hub of `hub_server.py` for this very process, and prompts to push to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import close_session, constants

from tests.shared.hub_server import HubServer


@contextmanager
def hub_here(monkeypatch) -> Iterator[HubServer]:
    """The Hub that this process's client talks to, as alice."""
    with HubServer(tokens={"hf_alice": "alice", "hf_bob": "bob"}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        files = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        yield server
    close_session()


def pulled(hub: HubServer, folder: Path, repo_id: str, revision: str = "main") -> Path:
    """What a branch holds, as a folder."""
    for name, content in hub.files(repo_id, revision).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder

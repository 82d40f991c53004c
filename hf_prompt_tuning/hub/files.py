"""Files of a Hub repository, all of one commit: missing where the server says so, and an error for whatever else.

The clients that exist are made to go on: transformers takes a file that a server fails to give for one that is not
there, and huggingface_hub tries a server that is down for minutes. A prompt without its description is another
prompt, so here each file is asked for once. What has come stands in the client's own cache, laid out as the client
does it, and is read there when the server is down, again all of one commit.
"""

import logging
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub._tree_cache import read_tree_cache
from huggingface_hub.errors import EntryNotFoundError, RevisionResolutionError
from huggingface_hub.file_download import repo_folder_name

from ..errors import HubUnavailableError, PromptLoadError
from .errors import asking
from .requests import announced, downloaded, is_announced, timeout

logger = logging.getLogger(__name__)

OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
COMMIT = re.compile("[0-9a-f]{40}")
CACHED = re.compile(r"[^\s'\"]*models--(?P<repo_id>[^/\\\s]+)[/\\](?:snapshots[/\\][0-9a-f]{40,64}|blobs)[/\\]")

T = TypeVar("T")


class Folder:
    """A folder of this machine, by the same names as a repository of the Hub."""

    commit: str | None = None

    def __init__(self, path: str | Path, subfolder: str = ""):
        self.path = Path(path) / subfolder

    def find(self, name: str) -> Path | None:
        """Return the path of a file, None where there is none."""
        file = self.path / name
        return file if file.is_file() else None

    def names(self) -> list[str]:
        """Return the files in it and in the folders right below."""
        return [file.relative_to(self.path).as_posix() for file in (*self.path.glob("*"), *self.path.glob("*/*"))]

    def remember(self) -> None:
        """A folder has no revisions to remember."""


class HubFolder:
    """A repository of the Hub, or a folder in it, at one commit: the one that its first answer is of.

    Args:
        repo_id: the repository.
        kind: what it holds, for messages.
        revision: a branch, tag or commit; default main.
        token: as the client takes it.
        cache_dir: default the client's.
        subfolder: of the repository.
        local_files_only: ask no server; a file is missing only if the server said so before.
        force_download: read again what the cache has.
    """

    def __init__(
        self,
        repo_id: str,
        kind: str = "prompt",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        subfolder: str = "",
        local_files_only: bool = False,
        force_download: bool = False,
    ):
        self.repo_id, self.kind, self.token, self.subfolder = repo_id, kind, token, subfolder.strip("/")
        self.revision = revision or constants.DEFAULT_REVISION
        for what, path in (("subfolder", self.subfolder), ("revision", self.revision)):
            if ".." in path.split("/"):
                raise PromptLoadError(f"the {what} of {self} is {path!r}; give one that is in it.")
        self.cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()
        self.offline = local_files_only or constants.is_offline_mode()
        self.force = force_download and not self.offline
        self.commit = self._known_commit() if self.offline or COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        return f"the {self.kind} {self.repo_id!r}"

    def find(self, name: str) -> Path | None:
        """Return the path of a file in the cache, None where this commit has none of this name.

        Raises:
            HubUnavailableError: the server cannot answer now.
            PromptLoadError: it refuses to, or it may not be asked and the cache does not tell.
        """
        name = f"{self.subfolder}/{name}" if self.subfolder else name
        found = None if self.force or self.commit is None else self._cached(name)
        if found is not None:
            return Path(found) if isinstance(found, str) else None
        if self.offline:
            # What `hf download` has put there comes with a list of all that there is.
            listed = None if self.commit is None else read_tree_cache(str(self._storage()), self.commit)
            if listed is not None and name not in listed:
                return None
            raise PromptLoadError(
                f"{self} cannot be had: its {name} is not in the cache at {self.revision!r}, and the Hub may not be "
                "asked (local_files_only or HF_HUB_OFFLINE). Load it once with the Hub, or give a folder that holds "
                "all of it."
            )
        return self._download(name)

    def names(self) -> list[str]:
        """Return the files of this folder and those below it, as the server lists them."""
        with asking(str(self)):
            info = HfApi().model_info(
                self.repo_id, revision=self.commit or self.revision, token=self.token, timeout=timeout()
            )
        self._pin(info.sha)
        if not info.siblings:
            raise HubUnavailableError(f"{self} cannot be had: the server lists no files of it. Try again later.")
        before = f"{self.subfolder}/" if self.subfolder else ""
        names = [file.rfilename for file in info.siblings]
        return [name.removeprefix(before) for name in names if name.startswith(before)]

    def has(self, name: str) -> bool:
        """Return whether the file is in the cache."""
        return isinstance(self._cached(name), str)

    def probe(self, name: str) -> None:
        """Raise what the server says instead of a file that is to be downloaded by others."""
        with asking(str(self)):
            announced(self._url(name), self.token)

    def remember(self) -> None:
        """Note in the cache that the revision is this commit: once all of it is there, for what is loaded offline."""
        for name in () if self.commit is None or self.offline else {self.revision, self.commit}:
            if not COMMIT.fullmatch(name):
                with suppress(OSError):  # a cache that cannot be written to
                    _write(self._storage() / "refs" / name, self.commit.encode())

    def cached(self) -> "HubFolder | None":
        """Return the same, as the cache has it; None where it has nothing of this revision."""
        same = HubFolder(self.repo_id, self.kind, self.revision, self.token, self.cache, self.subfolder, True)
        return same if same.commit is not None and (self._storage() / "snapshots" / same.commit).is_dir() else None

    def _known_commit(self) -> str | None:
        with suppress(RevisionResolutionError):
            return (
                HfApi()
                .resolve_revision(self.repo_id, revision=self.revision, cache_dir=self.cache, local_files_only=True)
                .resolved
            )
        return None

    def _storage(self) -> Path:
        return self.cache / repo_folder_name(repo_id=self.repo_id, repo_type="model")

    def _cached(self, name: str) -> Any:
        return try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache, revision=self.commit)

    def _url(self, name: str) -> str:
        return hf_hub_url(self.repo_id, name, revision=self.commit or self.revision)

    def _download(self, name: str) -> Path | None:
        with asking(str(self)):
            try:
                told = announced(self._url(name), self.token)
            except EntryNotFoundError as error:
                if (commit := error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)) is not None:
                    self._pin(commit)
                    with suppress(OSError):
                        _write(self._storage() / ".no_exist" / str(self.commit) / name, b"")
                return None
            self._pin(told.commit_hash)
            file = self._storage() / "snapshots" / str(self.commit) / name
            if self.force or not file.is_file():
                content = downloaded(self._url(name), self.token)
                if not is_announced(content, told, name):
                    raise HubUnavailableError(
                        f"{self} cannot be had: what came for {name} ({len(content)} bytes) is not the file that the "
                        "server announced. Try again."
                    )
                _write(file, content)
        return file

    def _pin(self, commit: str | None) -> None:
        if self.commit is None and commit and commit.isalnum():
            self.commit = commit
        # One server gives commits of 64 digits, and 40 of them elsewhere.
        elif not (self.commit and commit and (self.commit.startswith(commit) or commit.startswith(self.commit))):
            raise HubUnavailableError(
                f"{self} cannot be had: the server was asked for the commit {self.commit}, and answered with another, "
                f"{commit}. Try again."
            )


Place = Folder | HubFolder


def read_whole(place: Place, read: Callable[[Place], T]) -> tuple[T, Place]:
    """Return what `read` makes of a place, and the place: its copy in the cache if the server cannot answer now.

    All files come from one commit, either way. `remember` is the caller's, once it has all that it needs.
    """
    try:
        return read(place), place
    except HubUnavailableError as error:
        copy = place.cached() if isinstance(place, HubFolder) and not place.force else None
        if copy is None:
            raise
        try:
            made = read(copy)
        except PromptLoadError:
            raise error from None
        logger.warning("%s In its place: the copy in the cache, of commit %s.", error, copy.commit)
        return made, copy


def named(text: object) -> str:
    """Return a path, or a text with paths in it, as messages give it: the cache's by their repositories."""
    return CACHED.sub(lambda found: found["repo_id"].replace("--", "/", 1) + "/", str(text))


def _write(file: Path, content: bytes) -> None:
    """Write a file whole, or not at all: another process may read or write the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.incomplete")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)

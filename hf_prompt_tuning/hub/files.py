"""Load the files of a Hub repository, all from one commit.

A file is missing only if the server says so. Any other failure is an error.

Other clients hide failures: transformers treats a file that the server fails to send as missing, and huggingface_hub
retries for minutes when a server is down. A prompt that loads without its description is a different prompt, so each
file is requested once here. Downloaded files go to the client's cache, in the client's layout. If the server is down,
the files are read from there, again all from one commit.
"""

import logging
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from ..compat.hub import files_listed_in_cache
from ..errors import HubUnavailableError, PromptLoadError, PromptTuningError
from .errors import asking
from .requests import announced, downloaded, is_announced, timeout

logger = logging.getLogger(__name__)

OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
COMMIT = re.compile("[0-9a-f]{40}")
CACHED = re.compile(r"[^\s'\"]*models--(?P<repo_id>[^/\\\s]+)[/\\](?:snapshots[/\\][0-9a-f]{40,64}|blobs)[/\\]")

T = TypeVar("T")


def hub_id(name_or_path: str | None) -> str | None:
    """Return the name if it is a valid Hub id; None for a local folder, an invalid name or no name."""
    if not name_or_path:
        return None
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return None
    # Check this last: `exists` fails for a path that is too long.
    return None if Path(name_or_path).exists() else name_or_path


class Folder:
    """A local folder with the same methods as `HubFolder`."""

    commit: str | None = None

    def __init__(self, path: str | Path, subfolder: str = ""):
        self.path = Path(path) / subfolder

    def find(self, name: str) -> Path | None:
        """Return the path of a file, or None if it is missing."""
        file = self.path / name
        return file if file.is_file() else None

    def names(self) -> list[str]:
        """Return the names of the files in the folder and its direct subfolders."""
        return [file.relative_to(self.path).as_posix() for file in (*self.path.glob("*"), *self.path.glob("*/*"))]

    def remember(self) -> None:
        """Do nothing: a local folder has no revision to record."""


class HubFolder:
    """A Hub repository, or a folder in it, at one commit: the commit of the first response.

    Args:
        repo_id: the repository.
        kind: what the repository holds, for messages.
        revision: a branch, tag or commit; default main.
        token: a Hub token, as the client accepts it.
        cache_dir: the cache folder; default the client's.
        subfolder: the folder in the repository.
        local_files_only: send no requests; a file is missing only if the server said so in an earlier request.
        force_download: download files that are in the cache again.
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
        """Return the path of a file in the cache, or None if this commit has no such file. Download it if needed.

        Raises:
            HubUnavailableError: the server is unavailable.
            PromptLoadError: the server rejects the request, or the place is offline and the cache does not tell
                whether the file exists.
        """
        name = f"{self.subfolder}/{name}" if self.subfolder else name
        cached = None if self.force or self.commit is None else self._cached(name)
        if cached is not None:
            return Path(cached) if isinstance(cached, str) else None
        if self.offline:
            listed = None if self.commit is None else files_listed_in_cache(self._storage(), self.commit)
            if listed is not None and name not in listed:
                return None
            raise PromptLoadError(
                f"{self} could not be loaded: its {name} is not in the cache at {self.revision!r}, and the Hub may "
                "not be asked (local_files_only or HF_HUB_OFFLINE). Load it once with the Hub, or give a folder that "
                "holds all of it."
            )
        return self._download(name)

    def names(self) -> list[str]:
        """Return the names of all files in this folder and its subfolders, as the server lists them."""
        with asking(str(self)):
            info = HfApi().model_info(
                self.repo_id, revision=self.commit or self.revision, token=self.token, timeout=timeout()
            )
        self._pin(info.sha)
        if not info.siblings:
            raise HubUnavailableError(f"{self} could not be loaded: the server lists no files of it. Try again later.")
        before = f"{self.subfolder}/" if self.subfolder else ""
        names = [file.rfilename for file in info.siblings]
        return [name.removeprefix(before) for name in names if name.startswith(before)]

    def has(self, name: str) -> bool:
        """Tell whether the file is in the cache."""
        return isinstance(self._cached(name), str)

    def probe(self, name: str) -> None:
        """Raise the server's error, if any, for a file that another library will download."""
        with asking(str(self)):
            announced(self._url(name), self.token)

    def remember(self) -> None:
        """Record in the cache that the revision is this commit, for offline loading. Call it after the last file."""
        for name in () if self.commit is None or self.offline else {self.revision, self.commit}:
            if not COMMIT.fullmatch(name):
                with suppress(OSError):  # the cache may be read-only
                    _write(self._storage() / "refs" / name, self.commit.encode())

    def cached(self) -> "HubFolder | None":
        """Return the same folder read from the cache only, or None if the cache has nothing of this revision."""
        same = HubFolder(self.repo_id, self.kind, self.revision, self.token, self.cache, self.subfolder, True)
        return same if same.commit is not None and (self._storage() / "snapshots" / same.commit).is_dir() else None

    def _known_commit(self) -> str | None:
        if COMMIT.fullmatch(self.revision):
            return self.revision
        ref = self._storage() / "refs" / self.revision
        return ref.read_text().strip() if ref.is_file() else None

    def _storage(self) -> Path:
        return self.cache / repo_folder_name(repo_id=self.repo_id, repo_type="model")

    def _cached(self, name: str) -> Any:
        return try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache, revision=self.commit)

    def _url(self, name: str) -> str:
        return hf_hub_url(self.repo_id, name, revision=self.commit or self.revision)

    def _download(self, name: str) -> Path | None:
        with asking(str(self)):
            try:
                metadata = announced(self._url(name), self.token)
            except EntryNotFoundError as error:
                if (commit := error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)) is not None:
                    self._pin(commit)
                    with suppress(OSError):
                        _write(self._storage() / ".no_exist" / str(self.commit) / name, b"")
                return None
            self._pin(metadata.commit_hash)
            file = self._storage() / "snapshots" / str(self.commit) / name
            if self.force or not file.is_file():
                content = downloaded(self._url(name), self.token)
                if not is_announced(content, metadata, name):
                    raise HubUnavailableError(
                        f"{self} could not be loaded: what came for {name} ({len(content)} bytes) is not the file "
                        "that the server announced. Try again."
                    )
                _write(file, content)
        return file

    def _pin(self, commit: str | None) -> None:
        if self.commit is None and commit and commit.isalnum():
            self.commit = commit
        # Some servers send a commit with 64 digits in one response and its first 40 in another.
        elif not (self.commit and commit and (self.commit.startswith(commit) or commit.startswith(self.commit))):
            raise HubUnavailableError(
                f"{self} could not be loaded: the server was asked for the commit {self.commit}, and answered with "
                f"another, {commit}. Try again."
            )


Place = Folder | HubFolder


def read_whole(place: Place, read: Callable[[Place], T]) -> tuple[T, Place]:
    """Return `read(place)` and the place. If the server is unavailable, use the copy in the cache instead.

    All files come from one commit in both cases. The caller calls `remember` when it has all files.
    """
    try:
        return read(place), place
    except PromptLoadError as error:
        unavailable = isinstance(error, HubUnavailableError) and isinstance(place, HubFolder) and not place.force
        copy = place.cached() if unavailable else None
        if copy is None:
            if isinstance(place, HubFolder) and place.commit is None:
                # Neither the server nor the cache knows a commit of it, so the name may be a mistyped path.
                error.args = (f"there is no file or folder {place.repo_id!r} on this machine, and {error}",)
            raise
        try:
            content = read(copy)
        except PromptLoadError:
            raise error from None
        logger.warning("%s In its place: the copy in the cache, of commit %s.", error, copy.commit)
        return content, copy


def named(text: object) -> str:
    """Return a path, or text with paths, for a message: replace a folder in the cache by its repository's id."""
    return CACHED.sub(lambda match: match["repo_id"].replace("--", "/", 1) + "/", str(text))


@contextmanager
def open_tensors(
    file: str | Path, fault: str = "is not a whole safetensors file", fix: str = ". Download or copy it again."
) -> Iterator[Any]:
    """Open a safetensors file (a `safe_open`).

    Raise PromptLoadError if it is missing or damaged, or lacks what is read from it in this context. The message says
    `fault` of the file, and ends with how to `fix` it.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except PromptTuningError:
        raise
    except Exception as error:  # safetensors raises its own error type, and others for damaged headers
        raise PromptLoadError(f"{named(file)} {fault}: {error}{fix}") from error


def _write(file: Path, content: bytes) -> None:
    """Write a file completely or not at all: another process may read or write the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.incomplete")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)

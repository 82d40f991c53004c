"""Push a prompt's files to a repository in one commit, and delete the files that they replace."""

import json
import logging
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id

from ..errors import PromptPushError, PromptTuningError
from ..hub.push_errors import explained
from .card import is_ours, repository_card
from .config import PromptTuningInit
from .ensemble_info import ENSEMBLE_FILE, EnsembleInfo
from .files import CONFIG_FILE
from .info import INFO_FILE
from .privacy import private_start
from .repository_files import CARD_FILE, CHECKPOINT, folders_of_prompts, inside, obsolete_files

logger = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")
LARGE = (".safetensors", ".png")
"""The extensions of files that are uploaded through LFS."""


@dataclass(frozen=True)
class Destination:
    """The repository and branch that a push goes to.

    Args:
        repo_id: the repository, created if it does not exist. Without a namespace it goes to the user's account.
        revision: the branch, created from main if it does not exist; default main.
        private: whether to create the repository as private. An existing repository keeps its visibility.
        token: a Hub token; default the token of `hf auth login`.

    Raises:
        PromptTuningError: the repository's name is invalid, or the revision is a commit.
    """

    repo_id: str
    revision: str | None = None
    private: bool | None = None
    token: str | bool | None = field(default=None, repr=False)

    def __post_init__(self):
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise PromptTuningError(
                f"the repository is to be called {self.repo_id!r:.120}; give NAME or NAMESPACE/NAME, of letters, "
                "digits, '-', '_' and '.' (for a Trainer as hub_model_id)."
            ) from error
        if self.revision is not None and COMMIT.fullmatch(self.revision):
            raise PromptTuningError(
                f"the revision {self.revision!r} is a commit, and a push goes to a branch; give its name."
            )


def checked_subfolder(subfolder: str | None) -> str | None:
    """Return a subfolder without slashes at its ends, or None for the root.

    Raise PromptTuningError if it leads out of the repository, or is a checkpoint's.
    """
    parts = [part for part in (subfolder or "").split("/") if part]
    if (
        any(part in (".", "..") for part in parts)
        or "\\" in (subfolder or "")
        or CHECKPOINT.fullmatch("/".join(parts))
    ):
        raise PromptTuningError(
            f"subfolder is {subfolder!r:.120}; give a folder of the repository, such as 'reviews' "
            "(last-checkpoint and checkpoint-N are for checkpoints)."
        )
    return "/".join(parts) or None


def push(
    folder: Path,
    to: Destination,
    commit_message: str,
    path_in_repo: str = "",
    commit_description: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Push all files of a folder (a prompt's, of several prompts in subfolders, or a checkpoint's) in one commit.

    Files of an earlier prompt in the same place are deleted (see `obsolete_files`), because a mix of both could not be
    loaded. In a repository with several prompts, the list of prompts in `README.md` is updated. The repository must
    exist. `create_pr` opens a pull request instead of committing to the branch. Raise PromptPushError if the Hub
    rejects the push or cannot be reached.
    """
    if not to.private:
        for start in {_start_from_rows(file) for file in folder.rglob(INFO_FILE)} - {None}:
            _warn_of_rows(to.repo_id, start)
    with explained(to.repo_id):
        if not create_pr:
            _make_branch(to)
        change = _Change(to, folder, path_in_repo.strip("/"))
        return change.commit(commit_message, commit_description, create_pr)


def make_repository(to: Destination) -> Destination:
    """Create the repository if it does not exist, and return the destination with its namespace.

    Raises:
        PromptPushError: the user may not create it, or the Hub cannot be reached.
        PromptTuningError: the prompt must be private, but the repository is public.
    """
    with explained(to.repo_id):
        api = HfApi(token=to.token)
        repo_id = api.create_repo(to.repo_id, private=to.private, exist_ok=True).repo_id
        public = bool(to.private) and not api.repo_info(repo_id).private
    if public:
        raise PromptTuningError(
            f"the prompt is to be private, and {repo_id!r} is public; push to another repository, or make that one "
            "private first (hf repos settings, or its page). A push changes no repository's visibility."
        )
    return replace(to, repo_id=repo_id)


def check_access(to: Destination) -> None:
    """Check, as far as possible before a push, that the Hub will accept it.

    Raises:
        PromptPushError: there is no valid token, the token may not write there, or the Hub cannot be reached.
        PromptTuningError: as in `make_repository`.
    """
    with explained(to.repo_id):
        try:
            who = HfApi(token=to.token).whoami()
        except HfHubHTTPError as error:
            if error.response.status_code == 404:
                return  # not huggingface.co; errors show up at the first push
            raise
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PromptPushError(
                f"the token of {who['name']!r} may only read; give one that may write (hf auth login, or hub_token)."
            )
        namespaces = {who["name"], *(org["name"] for org in who.get("orgs", []))}
        if "/" in to.repo_id and to.repo_id.split("/")[0] not in namespaces:
            make_repository(to)  # only the Hub knows whether the user may push there


def _start_from_rows(file: Path) -> str | None:
    """Return the hash of the start of the prompt that a file describes, if that, or an earlier one, is of rows."""
    initialization = json.loads(file.read_bytes()).get("initialization") or {}
    from_rows = private_start(initialization) == PromptTuningInit.EXAMPLES
    return str(initialization.get("hash")) if from_rows else None


@cache
def _warn_of_rows(repo_id: str, start: str) -> None:
    """Warn once of a prompt with this start: a run may push it many times."""
    logger.warning(
        "The prompt that is pushed to %r started from training rows (EXAMPLES), and whoever loads it can read their "
        "words in its vectors. If they are not for everyone, keep the repository private (private=True, "
        "hub_private_repo), or train from another start.",
        repo_id,
    )


def _make_branch(to: Destination) -> None:
    """Create the branch from main if it does not exist."""
    if to.revision is None or to.revision.startswith("refs/"):
        return
    api = HfApi(token=to.token)
    try:
        api.repo_info(to.repo_id, revision=to.revision)
    except RevisionNotFoundError:
        api.create_branch(to.repo_id, branch=to.revision, exist_ok=True)


class _Change:
    """The changes of a push: the files to add and the files to delete."""

    def __init__(self, to: Destination, folder: Path, path_in_repo: str):
        self.to = to
        self.api = HfApi(token=to.token)
        self.present = set(self.api.list_repo_files(to.repo_id, revision=to.revision))
        self.files: dict[str, Path | bytes] = {
            inside(path_in_repo, file.relative_to(folder).as_posix()): file
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        former = self._former_members(path_in_repo)
        self.obsolete = obsolete_files(set(self.files), self.present, path_in_repo, former)
        if folders := folders_of_prompts(self.files):
            self._list_prompts(folders)

    def _read(self, path: str) -> str:
        """Return the text of a small file of the repository."""
        url = hf_hub_url(self.to.repo_id, path, revision=self.to.revision, endpoint=self.api.endpoint)
        answer = get_session().get(url, headers=build_hf_headers(token=self.to.token))
        hf_raise_for_status(answer)
        return answer.text

    def _former_members(self, path_in_repo: str) -> list[str] | None:
        """Return the members of the ensemble that this push replaces, or None if there is no ensemble."""
        file = inside(path_in_repo, ENSEMBLE_FILE)
        if file not in self.present or inside(path_in_repo, CONFIG_FILE) not in self.files:
            return None
        try:
            return EnsembleInfo.from_json(json.loads(self._read(file))).members
        except (ValueError, AttributeError):  # a file of another program or of a later version
            return None

    def _list_prompts(self, pushed: set[str]) -> None:
        """Update the list of prompts in the repository's card, unless a prompt is at the root or a person wrote it."""
        folders = folders_of_prompts(self.present - self.obsolete | set(self.files))
        if "" in pushed:
            return
        if "" in folders:  # an earlier push put a prompt at the root; keep its card
            self.files.pop(CARD_FILE, None)
            return
        before = self._read(CARD_FILE) if CARD_FILE in self.present else None
        if not is_ours(before):
            self.files.pop(CARD_FILE, None)
            return
        configs = {folder: self.files[inside(folder, CONFIG_FILE)] for folder in pushed}
        bases = {folder: json.loads(file.read_bytes())["base_model_name_or_path"] for folder, file in configs.items()}
        self.files[CARD_FILE] = repository_card(self.to.repo_id, folders, bases, before).encode()

    def commit(self, message: str, description: str | None, create_pr: bool) -> CommitInfo:
        """Send all changes in one commit, so that nobody loads a half-pushed prompt."""
        added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in self.files.items()]
        where = {"repo_id": self.to.repo_id, "revision": self.to.revision, "create_pr": create_pr}
        for addition in added:
            if addition.path_in_repo.endswith(LARGE):
                # Upload one file at a time: for several the client starts threads, which fails while a process ends.
                self.api.preupload_lfs_files(additions=[addition], **where)
        deleted = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in sorted(self.obsolete)]
        return self.api.create_commit(
            operations=[*deleted, *added], commit_message=message, commit_description=description, **where
        )

"""What the small Hub of `hub_server.py` keeps: repositories, their branches and commits, and files' identities."""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple


class Refusal(Exception):
    """What the Hub says instead of an answer; the client chooses its exception by `code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, headers | ({"X_Error_Code": code} if code else {})


def is_lfs(name: str, size: int) -> bool:
    return name.endswith((".safetensors", ".bin", ".png")) or size > 10_000_000


def identity(name: str, content: bytes) -> str:
    """As the client computes it of its own file, to skip what has not changed."""
    if is_lfs(name, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Commit(NamedTuple):
    """A whole snapshot; a branch names one only once it is complete."""

    sha: str
    title: str
    files: dict[str, bytes]
    before: tuple["Commit", ...]


@dataclass
class Repository:
    owner: str
    private: bool
    branches: dict[str, Commit]
    lfs: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def new(cls, repo_id: str, private: bool) -> "Repository":
        """With its first commit, as the Hub makes it."""
        first = Commit(hashlib.sha1(repo_id.encode()).hexdigest(), "initial commit", {".gitattributes": b""}, ())
        return cls(repo_id.split("/")[0], private, {"main": first})

    def at(self, revision: str) -> Commit:
        by_sha = {commit.sha: commit for last in self.branches.values() for commit in (*last.before, last)}
        if (found := (by_sha | self.branches).get(revision)) is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return found

    def commit(self, branch: str, header: dict, *operations: dict) -> str:
        """All of the operations, or none; returns the new sha."""
        if (parent := self.branches.get(branch)) is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        files, title = dict(parent.files), header["value"]["summary"]
        for kind, value in ((operation["key"], operation["value"]) for operation in operations):
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.lfs:
                    raise Refusal(400, "LFS pointer pointed to a file that does not exist")
                files[value["path"]] = self.lfs[value["oid"]]
            else:  # deletedFile or deletedFolder
                gone = value["path"].rstrip("/") + "/"
                files = {name: content for name, content in files.items() if not f"{name}/".startswith(gone)}
        tree = sorted((name, identity(name, content)) for name, content in files.items())
        sha = hashlib.sha1(repr((parent.sha, title, tree)).encode()).hexdigest()
        self.branches[branch] = Commit(sha, title, files, (*parent.before, parent))
        return sha

    def put(self, branch: str, title: str, files: dict[str, bytes | None]) -> str:
        """A commit of files' contents, where None deletes one; returns the new sha."""
        operations = [
            {"key": "deletedFile", "value": {"path": name}}
            if content is None
            else {"key": "file", "value": {"path": name, "content": base64.b64encode(content).decode()}}
            for name, content in files.items()
        ]
        return self.commit(branch, {"value": {"summary": title}}, *operations)

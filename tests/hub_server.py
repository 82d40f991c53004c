"""A small Hub on this machine, for the real huggingface_hub client: repositories, revisions, LFS, tokens, privacy.

Only what the client (2.4) asks for when a model is pushed and pulled. Nothing of it is imported by the package.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS_ENDINGS = (".safetensors", ".bin", ".png")


@dataclass
class Commit:
    """A whole snapshot; `main` names one only once it is complete."""

    sha: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    owner: str
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.sha == revision), None)

    def add(self, title: str, files: dict[str, bytes]) -> Commit:
        sha = hashlib.sha1(f"{len(self.commits)}{title}{sorted(files)}".encode()).hexdigest()
        self.commits.append(Commit(sha, title, files))
        return self.commits[-1]


class HubServer:
    """Serves on 127.0.0.1 within a `with`; `down` makes every request fail, `cut_uploads` ends them half-way."""

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.down = False
        self._uploads_left: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """This process's environment with this Hub, an empty cache, and perhaps a token."""
        values = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
        values |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }
        return values | ({"HF_TOKEN": token} if token else {})

    def files(self, repo_id: str) -> dict[str, bytes]:
        """What `main` holds."""
        return dict(self.repositories[repo_id].commits[-1].files)

    def commits(self, repo_id: str) -> list[tuple[str, str]]:
        """(sha, title), oldest first."""
        return [(commit.sha, commit.title) for commit in self.repositories[repo_id].commits]

    def cut_uploads(self, after: int) -> None:
        """Ends the connection at every upload after so many more."""
        self._uploads_left = after

    def heal(self) -> None:
        """Uploads go through again."""
        self._uploads_left = None

    def takes_upload(self) -> bool:
        """Whether the next upload goes through."""
        if self._uploads_left is None:
            return True
        self._uploads_left -= 1
        return self._uploads_left >= 0


class Handler(BaseHTTPRequestHandler):
    """The client's requests, by path."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def answer(self, status: int, body: object = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def user(self) -> str | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def repository(self, repo_id: str, write: bool = False) -> Repository | None:
        """The repository, if this user may; otherwise the refusal is sent."""
        found, user = self.hub.repositories.get(repo_id), self.user()
        if found is not None and (user == found.owner or not (write or found.private)):
            return found
        if user is None:
            self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
        else:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return None

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.hub.down:
            self.answer(503, {"error": "down"})
            return
        for pattern, method in ROUTES:
            command, _, expression = pattern.partition(" ")
            if self.command in command.split("|") and (match := re.fullmatch(expression, path)):
                method(self, body, query, **match.groupdict())
                return
        self.answer(404, {"error": f"no such path: {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def whoami(self, body: bytes, query: dict) -> None:
        user = self.user()
        self.answer(200 if user else 401, {"name": user, "type": "user", "orgs": [], "auth": {}} if user else {})

    def create(self, body: bytes, query: dict) -> None:
        asked, user = json.loads(body), self.user()
        if user is None:
            self.answer(401)
            return
        repo_id = f"{asked.get('organization') or user}/{asked['name']}"
        exists = repo_id in self.hub.repositories
        if not exists:
            made = Repository(user, asked.get("private") or asked.get("visibility") == "private")
            made.add("initial commit", {".gitattributes": b""})
            self.hub.repositories[repo_id] = made
        self.answer(409 if exists else 200, {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id})

    def validate_yaml(self, body: bytes, query: dict) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, query: dict, repo_id: str, revision: str) -> None:
        if self.repository(repo_id, write=True) is None:
            return
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(LFS_ENDINGS) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for f in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, body: bytes, query: dict, repo_id: str) -> None:
        if self.repository(repo_id, write=True) is None:
            return
        objects = []
        for item in json.loads(body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}/{item['size']}"},
                    "verify": {"href": f"{self.hub.endpoint}/lfs-verify"},
                }
            objects.append(answer)
        content = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self.answer(200, content, Content_Type="application/vnd.git-lfs+json")

    def lfs_upload(self, body: bytes, query: dict, oid: str, size: str) -> None:
        if not self.hub.takes_upload():
            self.close_connection = True
            self.connection.close()
            return
        right = hashlib.sha256(body).hexdigest() == oid and len(body) == int(size)
        if right:
            self.hub.blobs[oid] = body
        self.answer(200 if right else 400)

    def lfs_verify(self, body: bytes, query: dict) -> None:
        self.answer(200 if json.loads(body)["oid"] in self.hub.blobs else 404)

    def commit(self, body: bytes, query: dict, repo_id: str, revision: str) -> None:
        found = self.repository(repo_id, write=True)
        if found is None:
            return
        if revision != "main":
            self.answer(404, {"error": "no such branch"}, X_Error_Code="RevisionNotFound")
            return
        files, title = self.hub.files(repo_id), ""
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        made = found.add(title, files)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{made.sha}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": made.sha})

    def info(self, body: bytes, query: dict, repo_id: str, revision: str = "main") -> None:
        found = self.repository(repo_id)
        if found is None:
            return
        commit = found.at(revision)
        if commit is None:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in commit.files]
        values = {"id": repo_id, "modelId": repo_id, "sha": commit.sha, "private": found.private, "tags": []}
        self.answer(200, values | {"siblings": siblings, "downloads": 0, "likes": 0})

    def tree(self, body: bytes, query: dict, repo_id: str, revision: str) -> None:
        found = self.repository(repo_id)
        if found is None:
            return
        commit = found.at(revision)
        if commit is None:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in commit.files.items()
        ]
        self.answer(200, entries)

    def history(self, body: bytes, query: dict, repo_id: str, revision: str) -> None:
        found = self.repository(repo_id)
        if found is not None:
            commits = [{"id": c.sha, "title": c.title, "message": "", "authors": []} for c in reversed(found.commits)]
            dated = [commit | {"date": "2026-01-01T00:00:00.000Z"} for commit in commits]
            self.answer(200, dated)

    def resolve(self, body: bytes, query: dict, repo_id: str, revision: str, name: str) -> None:
        found = self.repository(repo_id)
        if found is None:
            return
        commit = found.at(revision)
        if commit is None:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        elif name not in commit.files:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit.sha)
        else:
            content = commit.files[name]
            tag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=commit.sha)


REPO = r"(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET /api/whoami-v2", Handler.whoami),
    ("POST /api/repos/create", Handler.create),
    ("POST /api/validate-yaml", Handler.validate_yaml),
    (f"POST /api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    (f"POST /api/models/{REPO}/commit/{REVISION}", Handler.commit),
    (f"POST /{REPO}\\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT /lfs/(?P<oid>[0-9a-f]+)/(?P<size>[0-9]+)", Handler.lfs_upload),
    ("POST /lfs-verify", Handler.lfs_verify),
    (f"GET /api/models/{REPO}/revision/{REVISION}", Handler.info),
    (f"GET /api/models/{REPO}/tree/{REVISION}", Handler.tree),
    (f"GET /api/models/{REPO}/commits/{REVISION}", Handler.history),
    (f"GET /api/models/{REPO}", Handler.info),
    (f"GET|HEAD /{REPO}/resolve/{REVISION}/(?P<name>.+)", Handler.resolve),
]

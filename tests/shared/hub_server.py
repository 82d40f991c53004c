"""A small Hub on this machine, for the real huggingface_hub client: repositories, revisions, LFS, tokens, privacy.

Only what the client (2.4) asks for when a model is pushed and pulled. Nothing of it is imported by the package.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import socket
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from tests.shared.hub_faults import Failing, Fault
from tests.shared.hub_repository import Refusal, Repository, identity, is_lfs


class HubServer(Failing, ThreadingHTTPServer):
    """Serves on 127.0.0.1 within a `with`; `down` makes every request fail, `cut_uploads` what is pushed.

    Any other fault, of any file or request: `fail` (`hub_faults.py` says which).
    """

    request_queue_size = 64  # a snapshot is fetched by several threads at once

    def __init__(self, tokens: dict[str, str]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = tokens
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.organizations: dict[str, set[str]] = {}  # and who is in them
        self.roles: dict[str, str] = {}  # of users' tokens, where they may not write
        self.repositories: dict[str, Repository] = {}
        self.links: dict[str, tuple[Repository, str, int]] = {}  # where LFS files are put: repository, sha256, size
        self.requests: list[tuple[str, str]] = []
        self.down = False
        self.elsewhere = False  # whether files are sent from another place, which tells nothing of them
        self.faults: list[Fault] = []
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.lost_uploads = itertools.repeat(False)
        self.connections: list[socket.socket] = []

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        # The client keeps its connections open, and their threads would wait on them for ever.
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: socket.socket, client_address: tuple) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone, as those do that a fault has made give up, is no news."""

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """This process's environment with this Hub, an empty cache, and perhaps a token."""
        home.mkdir(parents=True, exist_ok=True)
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")  # another token, another cache, offline mode
        values = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        values |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        values |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return values | ({"HF_TOKEN": token} if token else {})

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a branch or a commit holds."""
        return dict(self.repositories[repo_id].at(revision).files)

    def commits(self, repo_id: str, revision: str = "main") -> list[tuple[str, str]]:
        """(sha, title), oldest first."""
        last = self.repositories[repo_id].at(revision)
        return [(commit.sha, commit.title) for commit in (*last.before, last)]

    def may_write(self, user: str | None, owner: str) -> bool:
        """Whether a user's token writes to an owner's repositories."""
        belongs = user == owner or user in self.organizations.get(owner, ())
        return user is not None and belongs and self.roles.get(user) != "read"

    def cut_uploads(self, after: int = 0) -> None:
        """Every LFS file and commit is lost with its connection, after so many more that are not."""
        self.lost_uploads = itertools.chain(itertools.repeat(False, after), itertools.repeat(True))

    def put(self, repo_id: str, files: dict[str, bytes | None], branch: str = "main", title: str = "put") -> str:
        """A commit by somebody else, without the client; a file that is None is deleted. Returns its sha."""
        found = self.repositories.setdefault(repo_id, Repository.new(repo_id, private=False))
        with self.lock:
            return found.put(branch, title, files)

    def heal(self) -> None:
        """Everything is right again."""
        self.lost_uploads = itertools.repeat(False)
        self.faults.clear()


class Handler(BaseHTTPRequestHandler):
    """The client's requests, by path."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes, and the second would wait 40 ms

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def handle_request(self) -> None:
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.user = self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        self.server.requests.append((self.command, path))
        self.fault = self.server.fault(self.command, path)
        try:
            if self.fault is not None and self.goes_wrong(self.fault):
                return
            if self.server.down:
                # The client tries some requests six times: every second if told so, for 23 s if not.
                raise Refusal(503, "The Hub is down", Retry_After="0")
            for pattern, method in ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    method(self, **{name: unquote(part) for name, part in match.groupdict().items()})
                    return
            raise Refusal(404, "There is no such path here")
        except Refusal as refusal:
            self.answer(refusal.status, {"error": str(refusal)}, **refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def goes_wrong(self, fault: Fault) -> bool:
        """Whether nothing more is to be said to this request."""
        if fault.action is not None:
            fault.action()
        self.server.ended.wait(fault.delay)
        if fault.status is not None:
            raise Refusal(fault.status, fault.words, None, **fault.said)
        if fault.redirect is not None:
            self.answer(302, b"", Location=fault.redirect)
        if fault.drop == "before":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        return fault.drop == "before" or fault.redirect is not None

    def cut_off(self) -> bool:
        """Whether this upload is lost: nothing of it is kept, and nobody is told."""
        lost = next(self.server.lost_uploads)
        self.close_connection |= lost
        return lost

    def answer(self, status: int, body: object, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fault = self.fault if status < 300 else None
        if fault is not None:
            content = (content if fault.body is None else fault.body)[: fault.cut]
            headers |= fault.headers or {}
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            half = len(content) // 2
            self.wfile.write(content[:half])
            if fault is not None and fault.drop == "within":
                self.close_connection = True
                return
            self.server.ended.wait(fault.stall if fault is not None else 0)
            self.wfile.write(content[half:])

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        """The repository, if this user may; a private one does not exist for others."""
        found = self.server.repositories.get(repo_id)
        public = found is not None and not found.private
        if found is not None and (self.server.may_write(self.user, found.owner) or (public and not write)):
            return found
        if public and "Authorization" in self.headers:
            raise Refusal(403, "Only its owner may write to this repository")
        # Without the code the client would take a 401 for a missing repository only over https.
        raise Refusal(404 if "Authorization" in self.headers else 401, "Repository not found", "RepoNotFound")

    def whoami(self) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        orgs = [{"name": name} for name, members in self.server.organizations.items() if self.user in members]
        auth = {"accessToken": {"role": self.server.roles.get(self.user, "write")}}
        self.answer(200, {"name": self.user, "type": "user", "orgs": orgs, "auth": auth})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user
        if self.user is None or not self.server.may_write(self.user, owner):
            raise Refusal(403 if self.user else 401, "You may not create a repository here")
        repo_id = f"{owner}/{asked['name']}"
        made = Repository.new(repo_id, asked.get("visibility") == "private")
        exists = self.server.repositories.setdefault(repo_id, made) is not made
        self.answer(409 if exists else 200, {"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id})

    def branch(self, repo_id: str, name: str) -> None:
        found = self.repository(repo_id, write=True)
        if name in found.branches:
            raise Refusal(409, "Reference already exists")
        found.branches[name] = found.at(json.loads(self.body).get("startingPoint", "main"))
        self.answer(201, {})

    def preupload(self, repo_id: str, revision: str) -> None:
        here, files = self.repository(repo_id, write=True).at(revision).files, []
        for asked in json.loads(self.body)["files"]:
            name, mode = asked["path"], "lfs" if is_lfs(asked["path"], asked["size"]) else "regular"
            oid = identity(name, here[name]) if name in here else None
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": files})

    def lfs_batch(self, repo_id: str) -> None:
        found, objects, here = self.repository(repo_id, write=True), [], self.server.endpoint
        for oid, size in ((asked["oid"], asked["size"]) for asked in json.loads(self.body)["objects"]):
            self.server.links[link := uuid.uuid4().hex] = found, oid, size
            hrefs = {"upload": f"{here}/lfs/{link}", "verify": f"{here}/{repo_id}.git/info/lfs/verify"}
            actions = {"actions": {action: {"href": href} for action, href in hrefs.items()}}
            objects.append({"oid": oid, "size": size} | ({} if oid in found.lfs else actions))
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, link: str) -> None:
        """A link is good for one time: the client would try one that is cut off six times, for 23 s."""
        if link not in self.server.links:
            raise Refusal(403, "Request has expired")
        found, *announced = self.server.links.pop(link)
        if self.cut_off():
            return
        if [hashlib.sha256(self.body).hexdigest(), len(self.body)] != announced:
            raise Refusal(400, "The content is not what was announced")
        found.lfs[announced[0]] = self.body
        self.answer(200, {})

    def lfs_verify(self, repo_id: str) -> None:
        known = json.loads(self.body)["oid"] in self.repository(repo_id, write=True).lfs
        self.answer(200 if known else 404, {})

    def commit(self, repo_id: str, revision: str) -> None:
        found = self.repository(repo_id, write=True)
        if self.cut_off():
            return
        url, made = f"{self.server.endpoint}/{repo_id}", {}
        with self.server.lock:
            if "create_pr=1" in urlsplit(self.path).query:
                number = sum(name.startswith("refs/pr/") for name in found.branches) + 1
                found.branches[f"refs/pr/{number}"], revision = found.at(revision), f"refs/pr/{number}"
                made = {"pullRequestUrl": f"{url}/discussions/{number}"}
            sha = found.commit(revision, *map(json.loads, self.body.splitlines()))
        self.answer(200, {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha} | made)

    def info(self, repo_id: str, revision: str = "main") -> None:
        found = self.repository(repo_id)
        commit = found.at(revision)
        about = {"id": repo_id, "modelId": repo_id, "author": found.owner, "sha": commit.sha, "private": found.private}
        self.answer(200, about | {"siblings": [{"rfilename": name} for name in commit.files], "tags": []})

    def tree(self, repo_id: str, revision: str) -> None:
        entries = []
        for name, content in self.repository(repo_id).at(revision).files.items():
            named = {"oid": identity(name, content), "size": len(content)}
            lfs = {"lfs": named | {"pointerSize": 130}} if is_lfs(name, len(content)) else {}
            entries.append({"type": "file", "path": name} | named | lfs)
        self.answer(200, entries)

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        commit = self.repository(repo_id).at(revision)
        if (content := commit.files.get(name)) is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
        if self.server.elsewhere and self.command == "GET":
            self.answer(302, b"", Location=f"/elsewhere/{repo_id}/{commit.sha}/{quote(name)}")
            return
        self.answer(200, content, ETag=f'"{identity(name, content)}"', X_Repo_Commit=commit.sha)

    def content(self, repo_id: str, revision: str, name: str) -> None:
        """By a link that is as good as a token."""
        self.answer(200, self.server.repositories[repo_id].at(revision).files[name])


REPO, REVISION = r"(?P<repo_id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = {
    "GET /api/whoami-v2": Handler.whoami,
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": lambda handler: handler.answer(200, {"errors": [], "warnings": []}),
    f"POST /api/models/{REPO}/branch/(?P<name>[^/]+)": Handler.branch,
    f"POST /api/models/{REPO}/preupload/{REVISION}": Handler.preupload,
    f"POST /api/models/{REPO}/commit/{REVISION}": Handler.commit,
    f"POST /{REPO}[.]git/info/lfs/objects/batch": Handler.lfs_batch,
    f"POST /{REPO}[.]git/info/lfs/verify": Handler.lfs_verify,
    "PUT /lfs/(?P<link>[0-9a-f]+)": Handler.lfs_upload,
    f"GET /api/models/{REPO}": Handler.info,
    f"GET /api/models/{REPO}/revision/{REVISION}": Handler.info,
    f"GET /api/models/{REPO}/tree/{REVISION}": Handler.tree,
    f"(?:GET|HEAD) /{REPO}/resolve/{REVISION}/(?P<name>.+)": Handler.resolve,
    f"GET /elsewhere/{REPO}/{REVISION}/(?P<name>.+)": Handler.content,
}

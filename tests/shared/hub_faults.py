"""What goes wrong on the Hub of `hub_server.py`, as a test says it: which requests, how, and how often.

    hub.fail("prompt_tuning.json", status=503)                   every request for this file, GET and HEAD
    hub.fail("*.safetensors", method="GET", drop="within")       the connection is closed in the middle of the body
    hub.fail("/api/models/*/commit/*", status=403, times=1)      a request by its path; the second one is answered
    hub.fail("/*", drop="before")                                everything: closed before a byte is sent
    hub.before("prompt_tuning.json", lambda: push(...))          something else happens first; then it is answered
    hub.heal()                                                   everything is right again

A file is named by its path in the repository, a request by its path, which starts with "/"; both may have wildcards.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

FILE = re.compile(r"/(?:datasets/)?(?P<repo_id>[^/]+/[^/]+)/resolve/[^/]+/(?P<name>.+)")
API = re.compile(r"/(?:api/\w+/)?(?P<repo_id>[^/]+/[^/.]+)(?:[./].*)?")
SAID = {
    400: "This request is not understood",
    401: "Invalid credentials in Authorization header",
    403: "Access to this resource is restricted",
    404: "Entry not found",
    429: "We had to rate limit your IP",
    500: "Internal error: we are looking into it",
    502: "Bad gateway",
    503: "The Hub is down for maintenance",
}
CODES = {404: "EntryNotFound"}


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        what: a file's path in its repository, or a request's path (with a "/" in front); wildcards may stand in both.
        method: of the requests that it is for, default all.
        repo_id: of the repository, default all.
        after: so many requests that fit go through first.
        times: then so many are wrong, and those after them are right again; None is for ever.
        status: what the server says. A 404 is a missing file unless `code` says otherwise (`RepoNotFound`,
            `RevisionNotFound`, `GatedRepo` as a 403).
        message: the server's words; default what the real one says, in short.
        code: the `X-Error-Code`, by which the client chooses its exception.
        headers: more of them, or others (`Retry_After="60"`, with "_" for "-").
        drop: "before" closes the connection before a byte is sent; "within" in the middle of the body, whose headers
            were right.
        delay: seconds before the answer.
        stall: seconds in the middle of the body.
        body: another content, with headers that are true of it but for the ETag, which is the right one's.
        cut: only so many bytes of the content, said to be all.
        redirect: the URL that is sent in its place, with a 302.
        action: called first, on the server's thread.
    """

    what: str
    method: str | None = None
    repo_id: str | None = None
    after: int = 0
    times: int | None = None
    status: int | None = None
    message: str | None = None
    code: str | None = None
    headers: dict[str, str] | None = None
    drop: str | None = None
    delay: float = 0.0
    stall: float = 0.0
    body: bytes | None = None
    cut: int | None = None
    redirect: str | None = None
    action: Callable[[], object] | None = None

    def fits(self, method: str, path: str) -> bool:
        """Whether a request is one of those that this fault is for; counts it if so."""
        found = (FILE if not self.what.startswith("/") else API).fullmatch(path)
        name = path if self.what.startswith("/") else found and found["name"]
        if name is None or not fnmatchcase(unquote(name), self.what) or self.method not in (None, method):
            return False
        if self.repo_id is not None and (found is None or found["repo_id"] != self.repo_id):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return self.times is None or self.times >= 0

    @property
    def words(self) -> str:
        """What the server says with its status."""
        return self.message or SAID.get(self.status or 0) or HTTPStatus(self.status or 500).phrase

    @property
    def said(self) -> dict[str, str]:
        """The headers that go with the status."""
        code = self.code or CODES.get(self.status or 0)
        return (self.headers or {}) | ({"X_Error_Code": code} if code else {})


class Failing:
    """What a server that is to fail has beside what it does."""

    faults: list[Fault]
    lock: threading.Lock

    def fail(self, what: str, **how: Any) -> Fault:
        """From now on something goes wrong with a file or a request; how, `Fault` says."""
        self.faults.append(fault := Fault(what, **how))
        return fault

    def before(self, what: str, action: Callable[[], object], times: int | None = 1, **which: Any) -> Fault:
        """Something else happens before the next request for this is answered, a push in the middle of a load say."""
        return self.fail(what, action=action, times=times, **which)

    def fault(self, method: str, path: str) -> Fault | None:
        """What is wrong with this request."""
        with self.lock:
            return next((fault for fault in self.faults if fault.fits(method, path)), None)


WRONG = {
    "400": {"status": 400},
    "401": {"status": 401},
    "403": {"status": 403},
    "gated": {"status": 403, "code": "GatedRepo", "message": "Access to alice/prompt is restricted"},
    "no repository": {"status": 404, "code": "RepoNotFound", "message": "Repository not found"},
    "no revision": {"status": 404, "code": "RevisionNotFound", "message": "Invalid rev id"},
    "429": {"status": 429, "headers": {"Retry_After": "3600"}},
    "500": {"status": 500},
    "502": {"status": 502},
    "503": {"status": 503},
    "dropped": {"drop": "before"},
    "cut off": {"drop": "within", "method": "GET"},
    "silent": {"delay": 30},
    "stalled": {"stall": 30, "method": "GET"},
    "a sign-in page": {"status": 200},
    "another content": {"body": b"<html>sign in</html>"},
    "half a content": {"cut": 20},
}
LATER = ("429", "500", "502", "503", "dropped", "cut off", "silent", "stalled", "a sign-in page")

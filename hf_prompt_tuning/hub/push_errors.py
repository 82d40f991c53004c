"""Why a push failed, in one line: the Hub's own words, and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import PromptPushError, PromptTuningError, first_line

LONGEST = 300
"""Characters of what the Hub says; a proxy's answer may be a page."""
TEMPORARY = (408, 425, 429)
"""With the statuses from 500 on, those that may be otherwise in a while."""
OTHER = "Mend what it names, and push again."
ADVICE = {
    401: "Log in with a token of yours that is valid (hf auth login, HF_TOKEN or hub_token).",
    403: "Give a token that may write to {namespace}, or push to a repository of your own (hf auth whoami says who "
    "you are, and of which organisations).",
    404: "Check the name, and whether the token may see the repository.",
    409: "Something else changes the repository, or is in the way there: look at it, and push again.",
    412: "Another push came in between: push again.",
    413: "A file is larger than the Hub takes: leave it out (the tokenizer, say).",
    429: "You have made too many requests{wait}: push again later.",
}


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns whatever the Hub's client raises within this context into one `PromptPushError`."""
    try:
        yield
    except PromptTuningError:
        raise
    except Exception as error:  # the client, the network and the disk raise many kinds
        raise PromptPushError(
            f"the push to {repo_id!r} failed: {reason(error, repo_id)}", temporary=is_temporary(error)
        ) from error


def reason(error: BaseException, repo_id: str) -> str:
    """What went wrong, and what to do, as sentences of one line."""
    answered = _cause(error, HfHubHTTPError)
    if answered is not None:
        status = answered.response.status_code
        return f"the Hub answers {status} ({_words(answered)}). {_advice(answered, repo_id)}"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token. Log in with one that may write (hf auth login), or give HF_TOKEN or hub_token."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it, and push again."
    if isinstance(error, TimeoutError) or _cause(error, HTTPError) is not None:
        return f"the Hub cannot be reached ({first_line(error).rstrip('.')}). Push again when it can."
    return f"{first_line(error).rstrip('.')}. {OTHER}"


def is_temporary(error: BaseException) -> bool:
    """Whether the same push may go through later: the Hub is down, busy or out of reach."""
    answered = _cause(error, HfHubHTTPError)
    if answered is not None:
        return answered.response.status_code in TEMPORARY or answered.response.status_code >= 500
    return not isinstance(error, LocalTokenNotFoundError | ValueError)


def _cause(error: BaseException | None, kind: type[Exception]) -> Any:
    """The error of this kind behind an error: the client wraps what happens while a file is uploaded."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def _words(answered: HfHubHTTPError) -> str:
    """What the Hub says itself, in its header or its answer's body; else the status's name."""
    cause = answered.__cause__
    said = answered.server_message or getattr(cause, "server_message", None)
    if said is None:
        status = answered.response.status_code
        said = HTTPStatus(status).phrase if status in HTTPStatus else "no more than that"
    return " ".join(said.split())[:LONGEST].rstrip(". ")


def _advice(answered: HfHubHTTPError, repo_id: str) -> str:
    status = answered.response.status_code
    if isinstance(answered, RevisionNotFoundError):
        return "A push goes to a branch: give the name of one, not of a tag or a commit."
    if isinstance(answered, RepositoryNotFoundError):
        status = 404
    if status >= 500:
        return "The Hub has trouble of its own: push again later."
    seconds = answered.response.headers.get("Retry-After", "")
    wait = f" (the Hub asks to wait {seconds} s)" if seconds.isdigit() else ""
    namespace = repr(repo_id.split("/")[0]) if "/" in repo_id else "your account"
    return ADVICE.get(status, OTHER).format(namespace=namespace, wait=wait)

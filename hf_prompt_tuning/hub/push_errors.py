"""Explain in one line why a push failed: the Hub's message, and how to fix it."""

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
from .errors import is_temporary_status

LONGEST = 300
"""The longest part of the Hub's message that is shown, in characters; a proxy's response may be a whole page."""
OTHER = "Correct what it names, and push again."
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
    """Turn any error that the Hub's client raises in this context into a `PromptPushError`."""
    try:
        yield
    except PromptTuningError:
        raise
    except Exception as error:  # the client, the network and the disk raise many types
        raise PromptPushError(
            f"the push to {repo_id!r} failed: {reason(error, repo_id)}", temporary=is_temporary(error)
        ) from error


def reason(error: BaseException, repo_id: str) -> str:
    """Return what went wrong and how to fix it, in one line."""
    refusal = _cause(error, HfHubHTTPError)
    if refusal is not None:
        status = refusal.response.status_code
        return f"the Hub answers {status} ({_words(refusal)}). {_advice(refusal, repo_id)}"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token. Log in with one that may write (hf auth login), or give HF_TOKEN or hub_token."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it, and push again."
    if isinstance(error, TimeoutError) or _cause(error, HTTPError) is not None:
        return f"the Hub cannot be reached ({first_line(error).rstrip('.')}). Push again when it can."
    return f"{first_line(error).rstrip('.')}. {OTHER}"


def is_temporary(error: BaseException) -> bool:
    """Tell whether the same push may succeed later: the Hub is down, busy or unreachable."""
    refusal = _cause(error, HfHubHTTPError)
    if refusal is not None:
        return is_temporary_status(refusal.response.status_code)
    return not isinstance(error, LocalTokenNotFoundError | ValueError)


def _cause(error: BaseException | None, kind: type[Exception]) -> Any:
    """Return the first error of this type among an error and its causes: the client wraps errors of an upload."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def _words(refusal: HfHubHTTPError) -> str:
    """Return the Hub's message, from its header or the response's body, else the name of the status code."""
    message = refusal.server_message or getattr(refusal.__cause__, "server_message", None)
    if message is None:
        status = refusal.response.status_code
        message = HTTPStatus(status).phrase if status in HTTPStatus else "no more than that"
    return " ".join(message.split())[:LONGEST].rstrip(". ")


def _advice(refusal: HfHubHTTPError, repo_id: str) -> str:
    status = refusal.response.status_code
    if isinstance(refusal, RevisionNotFoundError):
        return "A push goes to a branch: give the name of one, not of a tag or a commit."
    if isinstance(refusal, RepositoryNotFoundError):
        status = 404
    if status >= 500:
        return "The Hub has trouble of its own: push again later."
    seconds = refusal.response.headers.get("Retry-After", "")
    wait = f" (the Hub asks to wait {seconds} s)" if seconds.isdigit() else ""
    namespace = repr(repo_id.split("/")[0]) if "/" in repo_id else "your account"
    return ADVICE.get(status, OTHER).format(namespace=namespace, wait=wait)

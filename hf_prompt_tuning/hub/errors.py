"""Turn failed Hub requests into this package's errors, with the server's message and advice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import HubUnavailableError, PromptLoadError, PromptTuningError, first_line


def is_temporary_status(status: int) -> bool:
    """Tell whether a request with this HTTP status is worth a retry later."""
    return status in (408, 425, 429) or status >= 500


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn any error of a request into one of this package's errors. The message starts with `what` is requested.

    Raises:
        HubUnavailableError: the server is unavailable or cannot be reached.
        PromptLoadError: the server rejects the request, or the cache cannot be written.
    """
    try:
        yield
    except PromptTuningError:
        raise
    except HfHubHTTPError as error:
        raise refused(what, error) from error
    except OSError as error:
        if error.errno is None:  # not an error of a local file
            raise _unanswered(what, error) from error
        raise PromptLoadError(
            f"{what} could not be loaded: the cache cannot be written to ({os.strerror(error.errno)}). Make room "
            "there, or give another cache_dir."
        ) from error
    except Exception as error:  # an error of the HTTP library that huggingface_hub uses
        raise _unanswered(what, error) from error


def refused(what: str, error: HfHubHTTPError) -> PromptLoadError:
    """Return the error for a response that is not a success."""
    status, wait = error.response.status_code, error.response.headers.get("Retry-After", "")
    message = _server_message(error)
    if is_temporary_status(status):
        when = f"in {wait} seconds" if wait.isdigit() and int(wait) else "later"
        return HubUnavailableError(f"{what} could not be loaded: the server says {message}. Try again {when}.")
    advice = "Check that it may be read, and the token that is given for it."
    if isinstance(error, GatedRepoError):
        advice = "Ask for access on its page, and give the token of the account that has it."
    elif isinstance(error, RevisionNotFoundError):
        advice = "Check its revision; a prompt's backbone may be given as backbone=…."
    elif isinstance(error, RepositoryNotFoundError):
        advice = "Check its name, its revision and your access to it (token)."
    return PromptLoadError(f"{what} could not be loaded: the server says {message}. {advice}")


def _server_message(error: HfHubHTTPError) -> str:
    message = error.server_message or "nothing more"
    return " ".join(f"{error.response.status_code} {error.response.reason_phrase} ({message})".split())[:300]


def words(error: BaseException) -> str:
    """Return another library's error in one line: the server's message if it is the cause, else its first line."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return f"the server says {_server_message(cause)}."
    return first_line(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause's cause, …"""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def raise_fault(what: str, error: BaseException) -> None:
    """Raise this package's error if a Hub request caused an error of transformers.

    The cause may be a response of the server, or no response at all. Return if there is no such cause.
    """
    for cause in _causes(error):
        if isinstance(cause, PromptTuningError):
            raise cause
        if isinstance(cause, HfHubHTTPError) and not isinstance(cause, EntryNotFoundError):
            raise refused(what, cause) from error
        if isinstance(cause, HTTPError) and not isinstance(cause, HfHubHTTPError):
            raise _unanswered(what, cause) from error


def _unanswered(what: str, error: Exception) -> HubUnavailableError:
    return HubUnavailableError(
        f"{what} could not be loaded: the Hub does not answer ({type(error).__name__}: {first_line(error)}). "
        "Check your connection, or try again later."
    )

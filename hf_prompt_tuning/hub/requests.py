"""Single requests for files of the Hub: each is made once, within a bound, and what comes is looked at."""

import hashlib
import json
from contextlib import suppress
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.file_download import HfFileMetadata
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import HubUnavailableError, PromptLoadError

MAX_BYTES = 2**30
"""Of one file that is read by way of memory; backbones' weights are not."""


def timeout() -> float:
    """Return how many seconds a server may be silent, by the client's settings."""
    return min(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)


def announced(url: str, token: str | bool | None) -> HfFileMetadata:
    """Return what the server tells of a file; of its contents, which may lie elsewhere, nothing is asked.

    Raises:
        EntryNotFoundError: there is no such file.
        HfHubHTTPError: the server refuses, with its words.
        HubUnavailableError: it is no Hub that answers.
    """
    try:
        told = get_hf_file_metadata(url, token=token, timeout=timeout())
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        raise _in_words(url, token, error) from None
    if told.commit_hash is None:
        raise HubUnavailableError(
            f"{url} cannot be had: what answers is not a Hub. Check HF_ENDPOINT, or whether a proxy or a sign-in page "
            "answers in the Hub's place."
        )
    return told


def downloaded(url: str, token: str | bool | None) -> bytes:
    """Return the contents of a file.

    Raises:
        HfHubHTTPError: the server refuses.
        PromptLoadError: it is too large to be a prompt's.
    """
    content = bytearray()
    with _opened(url, token) as answer:
        hf_raise_for_status(answer)
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > MAX_BYTES:
                raise PromptLoadError(
                    f"{url} cannot be had: it has more than {MAX_BYTES} bytes. Take one that is a prompt's."
                )
    return bytes(content)


def is_announced(content: bytes, told: HfFileMetadata, name: str) -> bool:
    """Return whether this is the file that was announced: a broken one in the cache would be read for ever.

    Its hash tells. Where a server's ETag is no hash of it, its size does, and whether it is whole as files of its kind
    are.
    """
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if told.etag in (git, hashlib.sha256(content).hexdigest()):
        return True
    if told.size not in (None, len(content)):
        return False
    try:
        if name.endswith(".json"):
            json.loads(content)
        elif name.endswith(".safetensors"):
            # The length of a header, the header, and the numbers.
            start = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:start])
            ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"]
            return start + max(ends) == len(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return True


def _opened(url: str, token: str | bool | None) -> Any:
    # Not compressed, for then the size would not be the file's.
    headers = build_hf_headers(token=token, library_name="hf_prompt_tuning") | {"Accept-Encoding": "identity"}
    return get_session().stream("GET", url, headers=headers, timeout=timeout(), follow_redirects=True)


def _in_words(url: str, token: str | bool | None, error: HfHubHTTPError) -> HfHubHTTPError:
    """The same refusal with the server's words, which an answer without a body has no room for."""
    with suppress(Exception), _opened(url, token) as answer:
        try:
            hf_raise_for_status(answer)
        except HfHubHTTPError as again:
            return again if again.response.status_code == error.response.status_code else error
    return error

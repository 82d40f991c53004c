"""Request a file from the Hub: once, with a time limit and a size limit, and check the content."""

import hashlib
import json
from contextlib import suppress
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.file_download import HfFileMetadata
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from safetensors import SafetensorError, deserialize

from ..errors import HubUnavailableError, PromptLoadError

MAX_BYTES = 2**30
"""The largest size of a file that is read into memory. Backbone weights are not read this way."""


def timeout() -> float:
    """Return the number of seconds to wait for data from a server, from the client's settings."""
    return min(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)


def announced(url: str, token: str | bool | None) -> HfFileMetadata:
    """Return the metadata of a file. Do not request its content, which may be on another server.

    Raises:
        EntryNotFoundError: the file does not exist.
        HfHubHTTPError: the server rejects the request; the error has its message.
        HubUnavailableError: the server that responds is not a Hub.
    """
    try:
        metadata = get_hf_file_metadata(url, token=token, timeout=timeout())
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        raise _in_words(url, token, error) from None
    if metadata.commit_hash is None:
        raise HubUnavailableError(
            f"{url} could not be loaded: what answers is not a Hub. Check HF_ENDPOINT, or whether a proxy or a "
            "sign-in page answers in the Hub's place."
        )
    return metadata


def downloaded(url: str, token: str | bool | None) -> bytes:
    """Download a file and return its content.

    Raise HfHubHTTPError if the server rejects the request, and PromptLoadError if the file is larger than `MAX_BYTES`.
    """
    content = bytearray()
    with _opened(url, token) as answer:
        hf_raise_for_status(answer)
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > MAX_BYTES:
                raise PromptLoadError(
                    f"{url} could not be loaded: it has more than {MAX_BYTES} bytes. Take one that is a prompt's."
                )
    return bytes(content)


def is_announced(content: bytes, metadata: HfFileMetadata, name: str) -> bool:
    """Tell whether the content matches the file's metadata. A damaged file in the cache would be read every time.

    Compare the hash with the server's ETag. If the ETag is not a hash of the content, compare the size, and check that
    a json or safetensors file is complete.
    """
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if metadata.etag in (git, hashlib.sha256(content).hexdigest()):
        return True
    if metadata.size not in (None, len(content)):
        return False
    try:
        if name.endswith(".json"):
            json.loads(content)
        elif name.endswith(".safetensors"):
            deserialize(content)
    except (ValueError, RecursionError, SafetensorError):
        return False
    return True


def _opened(url: str, token: str | bool | None) -> Any:
    # Ask for uncompressed data: the size of compressed data is not the file's size.
    headers = build_hf_headers(token=token, library_name="hf_prompt_tuning") | {"Accept-Encoding": "identity"}
    return get_session().stream("GET", url, headers=headers, timeout=timeout(), follow_redirects=True)


def _in_words(url: str, token: str | bool | None, error: HfHubHTTPError) -> HfHubHTTPError:
    """Return the same error with the server's message: request the file with a body, because HEAD has none."""
    with suppress(Exception), _opened(url, token) as answer:
        try:
            hf_raise_for_status(answer)
        except HfHubHTTPError as again:
            return again if again.response.status_code == error.response.status_code else error
    return error

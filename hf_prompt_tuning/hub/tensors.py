"""Open safetensors files, which may come from anyone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..errors import PromptLoadError, PromptTuningError
from .files import named


@contextmanager
def open_tensors(
    file: str | Path, fault: str = "is not a whole safetensors file", fix: str = ". Download or copy it again."
) -> Iterator[Any]:
    """Open a safetensors file (a `safe_open`).

    Args:
        file: the file.
        fault: what the message says of a file that cannot be read.
        fix: what to do, at the end of the message.

    Raises:
        PromptLoadError: the file is missing or damaged, or lacks what is read from it in this context.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except PromptTuningError:
        raise
    except Exception as error:  # safetensors raises its own error type, and others for damaged headers
        raise PromptLoadError(f"{named(file)} {fault}: {error}{fix}") from error

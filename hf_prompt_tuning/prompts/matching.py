"""Check that a saved prompt was trained on the backbone that it is loaded for."""

import logging
from typing import Any

from ..errors import PromptMismatchError
from .files import SavedPrompt
from .fingerprint import differences

logger = logging.getLogger(__name__)


def check_match(saved: SavedPrompt, width: int, known: dict[str, Any], ignore_mismatch: bool) -> None:
    """Raise PromptMismatchError if the prompt was trained on another backbone.

    Args:
        saved: the prompt.
        width: the width of the backbone's embeddings.
        known: the backbone's fingerprint.
        ignore_mismatch: only warn about another backbone. Another width is an error all the same.
    """
    name = saved.backbone["name_or_path"] or "another backbone"
    advice = f"The prompt was trained on {name}; load that one."
    if saved.vectors.shape[1] != width:
        raise PromptMismatchError(
            f"{saved.source} holds vectors of width {saved.vectors.shape[1]}, and this backbone's embeddings have "
            f"{width}. {advice}"
        )
    different = differences(saved.backbone, known)
    if different:
        message = f"{saved.source} is not a prompt of this backbone: {'; '.join(different)}. {advice}"
        if not ignore_mismatch:
            raise PromptMismatchError(f"{message} Or give ignore_mismatch=True.")
        logger.warning(message)

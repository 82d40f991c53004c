"""Tell the Hub's names from folders of this machine."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def hub_id(name_or_path: str | None) -> str | None:
    """A name that the Hub would take; None for a folder of this machine and for no name."""
    if not name_or_path:
        return None
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return None
    # Only now, because a path may be too long to be asked for.
    return None if Path(name_or_path).exists() else name_or_path

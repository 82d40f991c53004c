"""Tell Hub ids from local folders."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def hub_id(name_or_path: str | None) -> str | None:
    """Return the name if it is a valid Hub id; None for a local folder, an invalid name or no name."""
    if not name_or_path:
        return None
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return None
    # Check this last: `exists` fails for a path that is too long.
    return None if Path(name_or_path).exists() else name_or_path

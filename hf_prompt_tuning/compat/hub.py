"""What differs between versions of huggingface_hub."""

from collections.abc import Container
from pathlib import Path

try:
    from huggingface_hub._tree_cache import read_tree_cache
except ImportError:  # before 1.22

    def read_tree_cache(tree_cache_folder: str, commit_hash: str) -> None:
        """Return None: downloads do not write down which files a commit has."""


def files_listed_in_cache(storage: Path, commit: str) -> Container[str] | None:
    """Return the names of all files of a commit, as `hf download` writes them to the cache; None if it wrote none.

    Before huggingface_hub 1.22 it never does.
    """
    return read_tree_cache(str(storage), commit)

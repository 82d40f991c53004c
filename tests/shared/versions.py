"""What the tests themselves need of the libraries, by version. The package's own differences are in `compat`."""

from importlib import import_module
from importlib.util import find_spec

import huggingface_hub
from huggingface_hub import get_session
from packaging.version import Version

HUB = Version(huggingface_hub.__version__)
HTTP = import_module(type(get_session()).__module__.partition(".")[0])
"""The HTTP library of huggingface_hub: httpx2 from 2.0, httpx before."""

LISTS_FILES_IN_CACHE = find_spec("huggingface_hub._tree_cache") is not None
"""Whether `hf download` writes to the cache which files a commit has: huggingface_hub from 1.22."""

TRIES_AGAIN = Version("1.20") <= HUB
"""Whether a download that breaks off is tried again: huggingface_hub from 1.20."""


def forget_lists_of_files() -> None:
    """Forget the lists that huggingface_hub has read from a cache and keeps in memory."""
    if LISTS_FILES_IN_CACHE:
        import_module("huggingface_hub._tree_cache")._IN_MEMORY_TREE_CACHE.clear()

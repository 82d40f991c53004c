"""Tell whether libraries are newer than the newest that this package was tested with."""

import logging
from importlib.metadata import version

from packaging.version import Version

logger = logging.getLogger(__name__)

NEWEST_TESTED = {"transformers": "5.24.0", "peft": "0.21.2", "accelerate": "1.15.0"}


def log_untested() -> None:
    """Log one line if any of them is newer. Where one was built makes no difference (5.24.0+cpu)."""
    installed = {name: Version(version(name)) for name in NEWEST_TESTED}
    newer = [name for name, tested in NEWEST_TESTED.items() if Version(installed[name].public) > Version(tested)]
    if newer:
        logger.warning(
            "hf_prompt_tuning was tested with %s at the newest, and %s is installed.",
            ", ".join(f"{name} {NEWEST_TESTED[name]}" for name in newer),
            ", ".join(f"{name} {installed[name]}" for name in newer),
        )

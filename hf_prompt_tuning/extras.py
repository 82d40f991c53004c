"""The libraries that a part of the package needs: those of the extra `train`, or of another."""

from collections.abc import Sequence
from importlib.util import find_spec

from .errors import PromptTuningError

TRAIN = ("evaluate", "matplotlib", "rouge_score", "scipy", "sklearn")


def check_installed(purpose: str, modules: Sequence[str] = TRAIN, extra: str = "train") -> None:
    """Raise PromptTuningError if a module of an extra is missing."""
    if missing := [name for name in modules if not _is_installed(name)]:
        raise PromptTuningError(
            f"{purpose} needs {', '.join(missing)}, not installed here. Run pip install 'hf_prompt_tuning[{extra}]'."
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False

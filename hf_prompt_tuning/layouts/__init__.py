"""How prompts and examples are laid out in the rows that the backbone sees."""

from .base import Examples, LabelledLogits, Layout
from .padded import PaddedLayout

__all__ = ["Examples", "LabelledLogits", "Layout", "PaddedLayout"]

"""Lay out prompts and examples in the rows that the backbone sees."""

from .base import Candidates, ComputedPrompt, Examples, LabelledLogits, Layout, Prompts
from .cached import CachedLayout
from .choose import check_layout_name, check_row_budget, choose
from .packed_ranking import PackedLayout
from .padded import PaddedLayout

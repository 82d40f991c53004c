"""Check that a run can learn from pictures."""

from typing import Any

from ..data.processors import is_processor
from ..errors import PromptTuningError


def check_pictures(processing_class: Any, teacher: Any) -> None:
    """Raise PromptTuningError for a processor in a run with a teacher, who reads texts alone."""
    if is_processor(processing_class) and teacher is not None:
        raise PromptTuningError(
            f"processing_class is a {type(processing_class).__name__}, and a teacher reads texts alone; give its "
            "tokenizer, and rows without pictures."
        )

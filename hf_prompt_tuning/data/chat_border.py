"""Warn of a chat template whose text before an answer merges with the answer's beginning."""

import logging
from functools import cache

logger = logging.getLogger(__name__)


@cache
def warn_of_border(before: str) -> None:
    """Warn once of a text before the answer: a run makes several renderers with one template."""
    logger.warning(
        "The chat template writes %r before the assistant's text. This tokenizer merges its end with the beginning of "
        "some texts: it is a part of their first token in training, and a token of its own in use. Give a "
        "chat_template that ends with a special token there, which merges with nothing.",
        before,
    )

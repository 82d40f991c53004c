"""Refuse backbones whose files lack weights that read a text: transformers draws them anew in each load."""

import logging
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from ..errors import PromptLoadError

logger = logging.getLogger(__name__)

READERS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""The task types of backbones of whose files the base model is compared with the model's weights."""


def check_whole(backbone: PreTrainedModel, loading: Mapping[str, Any], what: str) -> None:
    """Raise PromptLoadError if the files of a backbone, called `what` in messages, lack weights of its base model.

    `loading` is what `from_pretrained` tells of the load (`output_loading_info`). A head's own weights are saved with
    the prompt. A base model gives hidden states without its pooler, so this is taken away, with a warning.
    """
    base = backbone.base_model
    prefix = "" if base is backbone else f"{backbone.base_model_prefix}."
    # Of weights whose sizes differ, each entry is a name with both sizes.
    missing = [*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])]
    lacking = sorted(name for name in missing if name.startswith(prefix))
    if base is backbone and any(_is_of_pooler(name) for name in lacking):
        backbone.pooler = None
        lacking = [name for name in lacking if not _is_of_pooler(name)]
        logger.warning(
            "The files of %s have no pooler, and transformers would draw a random one, another in each load: its "
            "pooler_output is None. Take the mean of last_hidden_state, or its first token.",
            what,
        )
    if lacking:
        raise PromptLoadError(
            f"{what} could not be loaded: its files have no {lacking[0]}, which a {type(backbone).__name__} reads, so "
            "that it would be random, and another in each load. Save the model once as it is loaded by its Auto class "
            "(save_pretrained), and give that folder; or use another backbone."
        )


def _is_of_pooler(name: str) -> bool:
    return name.startswith("pooler.")

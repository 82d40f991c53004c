"""Tell which base models, which have no head, give exactly the same hidden states of a text behind a prompt."""

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING_NAMES,
)

from ..errors import PromptTuningError
from ..hub.auto_classes import ENCODERS_OF_PAIRS
from .classifiers import ENCODERS, GENERIC, is_plain

FEATURES = "FEATURE_EXTRACTION"
HEADS = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
)
BASE_MODELS = frozenset(
    kind for kinds in MODEL_MAPPING_NAMES.values() for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
)
EXACT = (*ENCODERS, "gpt2", *ENCODERS_OF_PAIRS)


def is_base_model(backbone: PreTrainedModel) -> bool:
    """Tell whether a model gives hidden states of a text alone: one of AutoModel, or an encoder-decoder's encoder."""
    names = {kind.__name__ for kind in type(backbone).__mro__}
    if names & set(MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.values()):
        return True
    # Not told by the config: a model of T5's encoder alone writes into it that there is no decoder.
    return bool(names & BASE_MODELS) and not hasattr(backbone, "decoder")


def check_features_are_of_text(backbone: PreTrainedModel) -> None:
    """Raise PromptTuningError if a base model is not known to give exactly the same hidden states behind a prompt."""
    kind = backbone.config.model_type
    has_generic_head = any(issubclass(mapping.get(type(backbone.config), object), GENERIC) for mapping in HEADS)
    if kind not in EXACT and not (has_generic_head and is_plain(backbone)):
        raise PromptTuningError(
            f"the backbone is a {type(backbone).__name__} (model_type {kind!r}), whose hidden states are not known to "
            f"be the same behind a prompt; use one of {', '.join(EXACT)}, or a decoder for which transformers has its "
            "generic heads."
        )

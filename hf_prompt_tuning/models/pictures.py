"""Put pictures among embedded texts, as the backbone itself does.

A backbone that sees finds the places of pictures by their token's id, and puts features of its own there. So its own
`forward` is run on ids and pictures, without a prompt, and a stand-in takes the place of its language model and keeps
the embedded tokens that this one is given. From there on a picture is embedded tokens like others, which every layout
can move.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..compat.transformers import CACHE_NAMES
from ..data.processors import is_processor
from ..errors import PromptTuningError, first_line, sentence
from ..layouts.sharing import calling, is_sharded, with_part
from ..layouts.traits import takes

MERGING = ("gemma3", "idefics2", "idefics3", "llava", "qwen2_5_vl", "qwen2_vl", "smolvlm")
"""Models whose language model gets the pictures as embedded tokens, and nothing else of them. Tests cover each."""

NOTHING_SEEN = ("attention_mask", *CACHE_NAMES, "position_ids", "use_cache", "return_dict", "input_ids")
"""What a language model is called with that tells nothing of pictures."""


def merges(backbone: PreTrainedModel) -> bool:
    """Tell whether `with_pictures` serves this backbone. Processes that share one must make the same passes."""
    return backbone.config.model_type in MERGING and not is_sharded(backbone)


def check_not_spread(backbone: PreTrainedModel, arguments: Mapping[str, Any]) -> None:
    """Raise PromptTuningError for pictures, if only the spread of the backbone's weights keeps them from the texts."""
    given = [name for name, value in arguments.items() if value is not None]
    if given and backbone.config.model_type in MERGING:
        raise PromptTuningError(
            f"{given[0]} is given with only_labelled or candidates, and the weights of {type(backbone).__name__} are "
            "spread over processes, which then put no pictures among texts; use DDP, or rows of token ids."
        )


def check_sees(backbone: PreTrainedModel, processing_class: Any) -> None:
    """Raise PromptTuningError for a processor, if the backbone's pictures cannot be put among texts here."""
    if is_processor(processing_class) and not merges(backbone):
        raise PromptTuningError(
            f"processing_class is a {type(processing_class).__name__}, and pictures are not put among texts here for "
            f"{type(backbone).__name__} (they are for {', '.join(MERGING)}, whose weights are not spread over "
            "processes); give its tokenizer, for texts alone, or rows of token ids with what the backbone takes."
        )


def read_with_pictures(backbone: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Return the arguments of a backbone that its language model does not take: what pictures are made of, and how."""
    inner = backbone.base_model
    language = _owner(inner, backbone.get_input_embeddings())
    return [name for name in names if takes(inner, name) and not takes(language, name)]


def with_pictures(backbone: PreTrainedModel, input_ids: Tensor, media: Mapping[str, Any]) -> Tensor:
    """Return the embedded texts with their pictures, [B, T, H].

    `input_ids` are [B, T] long, with the tokens of pictures, masked ones, too; `media` are the backbone's arguments
    that make features of them. The backbone is not changed.

    Raises:
        PromptTuningError: the backbone refuses the pictures (they do not fit to the ids, perhaps), or its language
            model is told more of them than embedded tokens.
    """
    given: list[dict[str, Any]] = []
    inner = backbone.base_model
    language = _owner(inner, backbone.get_input_embeddings())

    def keep(*args: Any, **arguments: Any) -> BaseModelOutputWithPast:
        given.append(arguments | ({"arguments without names": args} if args else {}))
        return BaseModelOutputWithPast(last_hidden_state=arguments.get("inputs_embeds"))

    places = {"position_ids": torch.arange(input_ids.shape[1], device=input_ids.device)[None].expand_as(input_ids)}
    options = places if takes(inner, "position_ids") else {}
    try:
        with_part(inner, language, calling(language, keep))(input_ids=input_ids, use_cache=False, **media, **options)
    except torch.OutOfMemoryError:  # Accelerate looks for a smaller batch
        raise
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise PromptTuningError(
            f"{', '.join(media)}: {type(backbone).__name__} refuses them: {sentence(first_line(error))} Give what "
            "it asks for, as its processor makes it of the same rows, or the text alone."
        ) from error
    return _only_embeddings(backbone, given, next(iter(media)))


def _only_embeddings(backbone: PreTrainedModel, given: list[dict[str, Any]], name: str) -> Tensor:
    """Return the embedded tokens that a language model was called with, once, if it was told nothing else."""
    told = [
        key
        for call in given
        for key, value in call.items()
        if value is not None and value is not False and key not in NOTHING_SEEN and not key.startswith("output_")
    ]
    if told != ["inputs_embeds"]:
        raise PromptTuningError(
            f"{name} is given, and {type(backbone).__name__} tells its language model of it by "
            f"{', '.join(told) or 'nothing that is known'}; give the text alone."
        )
    return given[0]["inputs_embeds"]


def _owner(model: nn.Module, embedding: nn.Module) -> nn.Module:
    """Return the module that the word embedding is a part of: the language model."""
    name = next(name for name, module in model.named_modules() if module is embedding)
    return model.get_submodule(name.rpartition(".")[0])

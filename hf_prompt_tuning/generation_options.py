"""What a caller asks of `generate`, read and said anew in words that hold behind a prompt."""

import copy
from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

from .errors import PromptTuningError

DEFAULT_NEW_TOKENS = 20
"""How many transformers generates where no one says a number."""

SPECULATIVE = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def resolved(backbone: PreTrainedModel, options: dict[str, Any], columns: int) -> tuple[GenerationConfig, dict]:
    """What the options come to, for us to read, and the options with lengths said as new tokens.

    The backbone is given other columns than the caller's T, so a length that counts columns would be another.
    """
    config = copy.deepcopy(options.get("generation_config") or GenerationConfig())
    # As `generate` does: what the caller says, else what the model's own config says.
    config.update(**backbone.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
    config.update(**{name: value for name, value in options.items() if hasattr(config, name)})
    # Said aloud because a finished Trainer leaves the config's `use_cache` False.
    said = {"use_cache": options.get("use_cache", True)}
    if config.max_new_tokens is None and config.max_length is not None:
        if config.max_length <= columns:
            raise PromptTuningError(
                f"max_length is {config.max_length}, and input_ids have {columns} columns already. "
                "Give max_new_tokens, or a larger max_length (a prompt's virtual tokens do not count)."
            )
        said |= {"max_new_tokens": config.max_length - columns, "max_length": None}
    if config.min_new_tokens is None and config.min_length:
        said |= {"min_new_tokens": max(config.min_length - columns, 0) or None, "min_length": None}
    config.update(**said)
    return config, saying(options, **said)


def speculative(config: GenerationConfig, options: dict[str, Any]) -> str:
    """The option that asks for drafts, empty where none does."""
    return next((name for name in SPECULATIVE if options.get(name) or getattr(config, name, None)), "")


def copies(config: GenerationConfig) -> int:
    """How many rows `generate` makes of each."""
    return max(config.num_beams or 1, config.num_return_sequences or 1)


def saying(options: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The options with other settings, said where the caller says his: in a config or beside it."""
    if options.get("generation_config") is None:
        return options | values
    config = copy.deepcopy(options["generation_config"])
    config.update(**values)
    return {name: value for name, value in options.items() if name not in values} | {"generation_config": config}


def without_pads(options: dict[str, Any], config: GenerationConfig, pads: Tensor) -> dict[str, Any]:
    """The options with a repetition penalty that leaves out each row's `pads` ([B] long) first ids.

    Left to itself, transformers counts them in the mask, which has a prompt's columns as well.
    """
    if config.repetition_penalty in (None, 1.0) or not bool(pads.any()):
        return options
    penalty = RepetitionPenaltyLogitsProcessor(
        config.repetition_penalty, prompt_ignore_length=pads.repeat_interleave(copies(config))
    )
    processors = LogitsProcessorList([penalty, *(options.get("logits_processor") or ())])
    return saying(options, repetition_penalty=1.0) | {"logits_processor": processors}

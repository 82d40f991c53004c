"""Adapt `generate` to rows with a prompt in front: its options, and a backbone that takes no embedded tokens."""

import copy
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ModelOutput

from ..compat.transformers import cache_name, repetition_penalty
from ..errors import PromptTuningError
from ..layouts.sharing import calling
from ..layouts.traits import takes

DEFAULT_NEW_TOKENS = 20
"""The number of tokens that transformers generates by default."""

SPECULATIVE = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def in_new_tokens(backbone: PreTrainedModel, options: dict[str, Any], columns: int) -> tuple[GenerationConfig, dict]:
    """Return the resulting generation config, and the options with all lengths given as new tokens.

    The backbone gets other columns than the caller's T, so a length that counts columns would mean something else.
    """
    config = generation_config(backbone, options)
    # Always set, because a finished Trainer leaves `use_cache` False in the config.
    settings = {"use_cache": options.get("use_cache", True)}
    if config.max_new_tokens is None and config.max_length is not None:
        if config.max_length <= columns:
            raise PromptTuningError(
                f"max_length is {config.max_length}, and input_ids have {columns} columns already. "
                "Give max_new_tokens, or a larger max_length (a prompt's virtual tokens do not count)."
            )
        settings |= {"max_new_tokens": config.max_length - columns, "max_length": None}
    if config.min_new_tokens is None and config.min_length:
        settings |= {"min_new_tokens": max(config.min_length - columns, 0) or None, "min_length": None}
    config.update(**settings)
    return config, with_settings(options, **settings)


def generation_config(backbone: PreTrainedModel, options: dict[str, Any]) -> GenerationConfig:
    """Return the config that `generate` would use: the caller's options first, then the model's own config.

    Raise PromptTuningError if the caller's `generation_config` is not a GenerationConfig.
    """
    given = options.get("generation_config")
    if given is not None and not isinstance(given, GenerationConfig):
        raise PromptTuningError(
            f"generation_config is a {type(given).__name__}; give a transformers GenerationConfig, or its settings."
        )
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    config.update(**backbone.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
    config.update(**{name: value for name, value in options.items() if hasattr(config, name)})
    return config


def model_arguments(backbone: PreTrainedModel, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the options into arguments of the backbone's `forward` and arguments of `generate`.

    A cache counts as an argument of `generate`. `forward` arguments that are None are left out. Raise
    PromptTuningError if a name is neither, or `logits_to_keep` is a tensor.
    """
    config = generation_config(backbone, options)
    own = {*inspect.signature(backbone.generate).parameters, "tokenizer", "assistant_tokenizer", cache_name(backbone)}
    ours = {name: value for name, value in options.items() if name in own or hasattr(config, name)}
    if callable(options.get("custom_generate")):
        names = inspect.signature(options["custom_generate"]).parameters
        ours |= {name: value for name, value in options.items() if name in names}
    given = {name: value for name, value in options.items() if name not in ours and value is not None}
    # The number of logits columns in a pass does not change what is generated.
    if isinstance(given.get("logits_to_keep"), int):
        del given["logits_to_keep"]
    elif "logits_to_keep" in given:
        raise PromptTuningError("logits_to_keep is given to generate as a tensor; leave it out.")
    for name, value in given.items():
        try:
            backbone._validate_model_kwargs({name: value})
        except ValueError as error:
            raise PromptTuningError(
                f"{name} is given to generate, which {type(backbone).__name__} does not take; leave it out."
            ) from error
    return given, ours


def from_inputs(input_ids: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """Return the ids, which the caller may also give as `inputs`, not as both. Remove `inputs` from the options."""
    inputs = options.pop("inputs", None)
    if inputs is not None and input_ids is not None:
        raise PromptTuningError("inputs and input_ids are given, which are one; leave one out.")
    return input_ids if inputs is None else inputs


def inferred_mask(backbone: PreTrainedModel, options: dict[str, Any], input_ids: Tensor) -> Tensor | None:
    """Return the mask that transformers' `generate` would infer from the pad token, [B, T], zero on pads; else None.

    It infers a mask if the ids contain the pad token and the pad token is not an end token.
    """
    config = generation_config(backbone, options)
    ends = config.eos_token_id
    ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
    pad = config.pad_token_id if config.pad_token_id is not None else next(iter(ends), None)
    if pad is None or int(pad) in ends or not takes(backbone, "attention_mask"):
        return None
    mask = input_ids != int(pad)
    return None if bool(mask.all()) else mask.long()


def ends_of_text(
    config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] = ()
) -> list[int]:
    """Return the tokens that end a text: the backbone's own (Llama 3 has three), EOS, and `end_ids`."""
    own = [] if config.eos_token_id is None else torch.as_tensor(config.eos_token_id).flatten().tolist()
    return list(dict.fromkeys([*own, tokenizer.eos_token_id, *end_ids]))


def drafting_option(config: GenerationConfig, options: dict[str, Any]) -> str:
    """Return the name of the option that asks for drafts, or an empty string."""
    return next((name for name in SPECULATIVE if options.get(name) or getattr(config, name, None)), "")


def copies(config: GenerationConfig) -> int:
    """Return how many rows `generate` makes from each row."""
    return max(config.num_beams or 1, config.num_return_sequences or 1)


def with_settings(options: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Change settings where the caller gave them: in the config if there is one, else in the options."""
    if options.get("generation_config") is None:
        return options | settings
    config = copy.deepcopy(options["generation_config"])
    config.update(**settings)
    return {name: value for name, value in options.items() if name not in settings} | {"generation_config": config}


def with_encoder_ids(options: dict[str, Any], config: GenerationConfig, ids: Tensor, real: Tensor) -> dict[str, Any]:
    """Replace the options that use a text's ids by logits processors: given embeddings, transformers ignores them.

    `ids` [B, T] are the text's, and `real` [B, T] bool is False on pads.
    """
    settings: dict[str, Any] = {}
    order = real.long().argsort(dim=1, stable=True)
    ids, real, processors = ids.gather(1, order), real.gather(1, order), []
    doubled = torch.where(real, ids, ids[:, -1:])
    if (penalty := config.encoder_repetition_penalty) not in (None, 1.0):
        each = doubled.repeat_interleave(copies(config), dim=0)  # a row for each that it writes
        processors.append(EncoderRepetitionPenaltyLogitsProcessor(penalty, each))
        settings["encoder_repetition_penalty"] = 1.0
    if size := config.encoder_no_repeat_ngram_size:
        # The id -1 is in no n-gram of real tokens.
        padded = doubled if size == 1 else ids.masked_fill(~real, -1)
        processors.append(EncoderNoRepeatNGramLogitsProcessor(size, padded))
        settings["encoder_no_repeat_ngram_size"] = 0
    if not settings:
        return options
    processors = LogitsProcessorList([*processors, *(options.get("logits_processor") or ())])
    return with_settings(options, **settings) | {"logits_processor": processors}


def without_pads(options: dict[str, Any], config: GenerationConfig, pads: Tensor) -> dict[str, Any]:
    """Make the repetition penalty skip the first `pads` ([B] long) ids of each row.

    Otherwise transformers counts pads from the mask. That mask also has the prompts' columns, and a shorter prompt's
    are partly masked.
    """
    if config.repetition_penalty in (None, 1.0):
        return options
    penalty = repetition_penalty(config.repetition_penalty, pads.repeat_interleave(copies(config)))
    processors = LogitsProcessorList([penalty, *(options.get("logits_processor") or ())])
    return with_settings(options, repetition_penalty=1.0) | {"logits_processor": processors}


def prepares_embeddings(backbone: PreTrainedModel, handed_on: bool) -> bool:
    """Tell whether the model's `prepare_inputs_for_generation` takes embeddings.

    `handed_on` also accepts a method that passes on all its keyword arguments, if the model has a cache: without one
    (GPT-1, XLNet) it passes the ids on beside them.
    """
    names = inspect.signature(backbone.prepare_inputs_for_generation).parameters
    return "inputs_embeds" in names or (handed_on and "kwargs" in names and cache_name(backbone) is not None)


def generating_with(backbone: PreTrainedModel, per_layer_inputs: Tensor | None) -> PreTrainedModel:
    """Return a model whose `generate` takes embeddings: the backbone itself, or a stand-in for it.

    `generate` passes on only the arguments that the outermost `forward` names, and Gemma 3n's does not name the
    per-layer vectors ([B, N, layers, D], or None). `generate` also refuses embeddings for models (Bamba, Falcon-H1,
    Nemotron-H, Zamba2) whose `prepare_inputs_for_generation` does not name them, although it passes them on.
    """
    named = prepares_embeddings(backbone, handed_on=False)
    if per_layer_inputs is None and named:
        return backbone

    @functools.wraps(backbone.forward)
    def forward(*args: Any, **kwargs: Any) -> ModelOutput:
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and per_layer_inputs is not None:
            copies = len(embeds) // len(per_layer_inputs)  # beams, or several returned sequences
            kwargs["per_layer_inputs"] = per_layer_inputs.repeat_interleave(copies, dim=0)
        return backbone(*args, **kwargs)

    def prepare(input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        return backbone.prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    writer = calling(backbone, forward)
    if not named:
        vars(writer)["prepare_inputs_for_generation"] = prepare
    return writer

"""Generation behind prompts: through what was computed of them before, where that is exact, or all anew.

For P = 2 and two texts, of four and of two tokens (in brackets: from the cache; `·` is a masked column):

    continued   (p0 p1) a0 a1 a2 a3 | new         anew   p0 p1 a0 a1 a2 a3 | new
                (q0 q1) ·  ·  b0 b1 | new                ·  ·  q0 q1 b0 b1 | new

A masked column between a prompt and its text is harmless where positions are given or counted in the mask. Models
that count columns (windows, chunks, MPT's ALiBi) are continued where there is no such column, or no row is as long as
a window; and recurrent ones never. Both ways give the same tokens.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StaticCache,
)

from .backbone import generating_with
from .errors import PromptTuningError
from .inference import can_be_continued
from .layouts import Examples, Prompts
from .layouts.base import token_inputs
from .layouts.computed import cache_of, in_rows
from .layouts.padded import padded_rows
from .layouts.traits import ignores_masked_columns

DEFAULT_NEW_TOKENS = 20
"""How many transformers generates where no one says a number."""

ONE_ROW_ONLY = ("rwkv",)
"""Models whose own `generate` is wrong in transformers for more rows than one."""

SPECULATIVE = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def generate(
    backbone: PreTrainedModel,
    prompts: Prompts,
    examples: Examples,
    input_ids: Tensor | None,
    options: dict[str, Any],
    computed: Callable[[Prompts, Examples], Prompts],
) -> Any:
    """What `backbone.generate` gives behind each row's prompt.

    Args:
        backbone: a causal model.
        prompts: of the B rows.
        examples: the embedded batch.
        input_ids: [B, T] long, the same batch, with which the result then starts; None: it is the new tokens alone.
        options: `generate`'s other arguments.
        computed: adds what was computed of the prompts to them.
    """
    config, options = _resolved(backbone, options, examples.embeds.shape[1])
    if backbone.config.model_type in ONE_ROW_ONLY and len(examples.mask) * _copies(config) > 1:
        raise PromptTuningError(
            f"got {len(examples.mask)} rows and {_copies(config)} sequences for each, and {type(backbone).__name__} "
            "generates right for one alone. Give one row at a time, without beams."
        )
    width = int(examples.mask.sum(1).max())
    ids = None if input_ids is None else _at_the_right(input_ids, examples, width)
    if ids is not None:
        options = _without_pads(options, config, width - examples.mask.sum(1))
    if ids is not None and _can_continue(backbone, prompts, examples, config, options):
        result = _continued(backbone, computed(prompts, examples), examples, ids, config, options)
    else:
        if speculative := [name for name in SPECULATIVE if options.get(name) or getattr(config, name, None)]:
            raise PromptTuningError(
                f"{speculative[0]} is given, and {type(backbone).__name__} cannot go on from a computed prompt here, "
                "without which drafts are checked at the wrong places. Leave it out."
            )
        result = _anew(backbone, prompts, examples, ids, options)
    return result if input_ids is None else _starting_with(input_ids, result, width)


def _resolved(backbone: PreTrainedModel, options: dict[str, Any], columns: int) -> tuple[GenerationConfig, dict]:
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
    return config, _saying(options, **said)


def _saying(options: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The options with other settings, said where the caller says his: in a config or beside it."""
    if options.get("generation_config") is None:
        return options | values
    config = copy.deepcopy(options["generation_config"])
    config.update(**values)
    return {name: value for name, value in options.items() if name not in values} | {"generation_config": config}


def _without_pads(options: dict[str, Any], config: GenerationConfig, pads: Tensor) -> dict[str, Any]:
    """The options with a repetition penalty that leaves out each row's `pads` ([B] long) first ids.

    Left to itself, transformers counts them in the mask, which has a prompt's columns as well.
    """
    if config.repetition_penalty in (None, 1.0) or not bool(pads.any()):
        return options
    penalty = RepetitionPenaltyLogitsProcessor(
        config.repetition_penalty, prompt_ignore_length=pads.repeat_interleave(_copies(config))
    )
    processors = LogitsProcessorList([penalty, *(options.get("logits_processor") or ())])
    return _saying(options, repetition_penalty=1.0) | {"logits_processor": processors}


def _can_continue(
    backbone: PreTrainedModel, prompts: Prompts, examples: Examples, config: GenerationConfig, options: dict[str, Any]
) -> bool:
    """Whether what was computed of the prompts gives what computing all anew gives, states and attentions too."""
    if not can_be_continued(backbone) or not config.use_cache or options.get("past_key_values") is not None:
        return False
    if config.cache_implementation not in (None, "dynamic", "static", "hybrid"):
        return False
    if config.output_attentions or config.output_hidden_states or not bool(examples.mask.any(1).all()):
        return False
    lengths = prompts.lengths() + examples.mask.sum(1)
    if bool((lengths == lengths[0]).all()) and len(set(prompts.lengths().tolist())) == 1:
        return True
    columns = int(prompts.lengths().max() + examples.mask.sum(1).max())
    return ignores_masked_columns(backbone, columns + (config.max_new_tokens or DEFAULT_NEW_TOKENS))


def _continued(
    backbone: PreTrainedModel,
    prompts: Prompts,
    examples: Examples,
    ids: Tensor,
    config: GenerationConfig,
    options: dict[str, Any],
) -> Any:
    mask = _mask_at_the_right(examples, ids.shape[1])
    if any(prompt is not None for prompt in prompts.computed):
        copies = _copies(config)
        layers, seen = in_rows(prompts.computed, prompts.of.repeat_interleave(copies))
        mask = torch.cat([seen[::copies], mask], dim=1)
        cache: Cache = cache_of(layers)
        if config.cache_implementation == "static":
            new = config.max_new_tokens or DEFAULT_NEW_TOKENS
            cache = StaticCache(backbone.config, max_cache_len=mask.shape[1] + new)
            for i, (keys, values) in enumerate(layers):
                cache.update(keys, values, i)
        options = options | {"past_key_values": cache}
        if config.cache_implementation is not None:
            options["cache_implementation"] = None  # transformers takes a cache or its name
    return backbone.generate(input_ids=ids, attention_mask=mask.long(), **options)


def _anew(
    backbone: PreTrainedModel,
    prompts: Prompts,
    examples: Examples,
    ids: Tensor | None,
    options: dict[str, Any],
) -> Any:
    embeds, mask = padded_rows(prompts, examples.select(torch.arange(len(examples.mask))), pads="left")
    inputs = token_inputs(backbone, embeds)
    if ids is not None:
        options = options | {"input_ids": ids}
    with generating_with(backbone, inputs.pop("per_layer_inputs", None)):
        return backbone.generate(**inputs, attention_mask=mask, **options)


def _copies(config: GenerationConfig) -> int:
    """How many rows `generate` makes of each."""
    return max(config.num_beams or 1, config.num_return_sequences or 1)


def _mask_at_the_right(examples: Examples, width: int) -> Tensor:
    return examples.mask[:, :width].flip(1)


def _at_the_right(input_ids: Tensor, examples: Examples, width: int) -> Tensor:
    """Each row's real tokens at the right of as few columns as there are real tokens in the longest row."""
    if examples.order is not None:
        input_ids = input_ids.gather(1, examples.order)
    order = torch.argsort(examples.mask[:, :width], dim=1, stable=True)
    return input_ids[:, :width].gather(1, order)


def _starting_with(input_ids: Tensor, result: Any, width: int) -> Any:
    """The result (sequences, or an output that has them) with the caller's ids in front, instead of `width` others."""
    sequences = result if isinstance(result, Tensor) else result.sequences
    given = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    sequences = torch.cat([given, sequences[:, width:]], dim=1)
    if isinstance(result, Tensor):
        return sequences
    result.sequences = sequences
    return result

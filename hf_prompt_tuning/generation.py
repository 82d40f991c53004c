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
from transformers import Cache, GenerationConfig, PreTrainedModel, StaticCache

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

IGNORES_MASKS = ("rwkv",)

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
    width = int(examples.mask.sum(1).max())
    ids = None if input_ids is None else _at_the_right(input_ids, examples, width)
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
    given = options.get("generation_config")
    if given is None:
        return config, options | said
    given = copy.deepcopy(given)
    given.update(**said)
    return config, {name: value for name, value in options.items() if name not in said} | {"generation_config": given}


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
        copies = max(config.num_beams or 1, config.num_return_sequences or 1)
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
    if backbone.config.model_type in IGNORES_MASKS and not bool(mask.all()):
        raise PromptTuningError(
            f"the rows have several lengths, and {type(backbone).__name__} takes pads for tokens. "
            "Generate for rows of one length at a time (with their prompts)."
        )
    inputs = token_inputs(backbone, embeds)
    if ids is not None:
        options = options | {"input_ids": ids}
    with generating_with(backbone, inputs.pop("per_layer_inputs", None)):
        return backbone.generate(**inputs, attention_mask=mask, **options)


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

"""Generate after prompts: continue from a computed prompt if that is exact, or compute all tokens again.

For P = 2 and two texts, of four and of two tokens (in brackets: from the cache; `·` is a masked column):

    continued   (p0 p1) a0 a1 a2 a3 | new      a batch of the texts after the prompts
                (q0 q1) ·  ·  b0 b1 | new

    packed      (p0 p1) (q0 q1) a0 a1 a2 a3 b0 b1      the texts in one row, without pads; the resulting cache is
                                                       then spread over the rows of a batch:
                (p0 p1 a0 a1 a2 a3) | new
                (·  ·  q0 q1 b0 b1) | new

    anew        p0 p1 a0 a1 a2 a3 | new        the reference, for every model
                ·  ·  q0 q1 b0 b1 | new

`packed` has the requirements of the packed layout. `continued` has masked columns between a prompt and its text. They
are harmless if positions are counted in the mask (BLOOM, Falcon). A model that counts columns (MPT) uses `continued`
only if there are no such columns. Recurrent models use `anew`. All three ways generate the same tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from ..errors import PromptTuningError
from ..layouts import Examples, PackedLayout, Prompts
from ..layouts.base import token_inputs
from ..layouts.computed import cache_of, in_rows
from ..layouts.padded import padded_rows, row_mask
from ..layouts.traits import ignores_masked_columns, text_positions
from ..stand_ins import calling
from .backbone import generating_with, prepares_embeddings
from .call_arguments import fitted, told_of
from .continuing import Behind, checked, columns_in, mark
from .generation_options import (
    DEFAULT_NEW_TOKENS,
    copies,
    model_arguments,
    resolved,
    speculative,
    with_encoder_ids,
    without_pads,
)
from .outputs import check_even, first_came_back
from .prompt_cache import can_be_continued

ONE_ROW_ONLY = ("rwkv",)
"""Models whose `generate` in transformers is wrong for more than one row."""


def generate(
    backbone: PreTrainedModel,
    prompts: Prompts,
    examples: Examples,
    input_ids: Tensor | None,
    options: dict[str, Any],
    computed: Callable[[Prompts, Examples], Prompts],
    layout: PackedLayout | None,
) -> Any:
    """Return the result of `backbone.generate` with each row's prompt in front.

    Args:
        backbone: a causal model.
        prompts: of the B rows.
        examples: the embedded batch.
        input_ids: [B, T] long, the ids of the same batch; the result starts with them. None: the result is only the
            new tokens.
        options: `generate`'s other arguments.
        computed: adds to the prompts what was computed of them before.
        layout: the packed layout, or None if texts may not be packed.
    """
    given, options = model_arguments(backbone, options)
    given = fitted(backbone, given, input_ids, prompts, examples, pads="left")
    own = options.get("past_key_values")
    if columns_in(own):
        _check_own(own, prompts, examples)
    config, options = resolved(backbone, options, examples.embeds.shape[1])
    if not bool(row_mask(prompts, examples).all()):
        check_even(config, backbone.config)
    if backbone.config.model_type in ONE_ROW_ONLY and len(examples.mask) * copies(config) > 1:
        raise PromptTuningError(
            f"got {len(examples.mask)} rows and {copies(config)} sequences for each, and {type(backbone).__name__} "
            "generates right for one alone. Give one row at a time, without beams."
        )
    if config.token_healing:
        raise PromptTuningError(
            "token_healing is on, which writes a text's last tokens anew after the texts were computed; leave it out."
        )
    width = int(examples.mask.sum(1).max())
    ids = None if input_ids is None else _at_the_right(input_ids, examples, width)
    if ids is not None:
        options = with_encoder_ids(options, config, ids, _mask_at_the_right(examples, width))
        options = without_pads(options, config, width - examples.mask.sum(1))
    # With images or token types, rows are computed as a whole.
    needs_rows = bool(given.keys() - {"position_ids"})
    way = "anew" if needs_rows else _way(backbone, prompts, examples, ids, config, options, layout)
    if way != "anew":
        prompts = computed(prompts, examples)
    elif name := speculative(config, options):
        raise PromptTuningError(
            f"{name} is given, and {type(backbone).__name__} cannot go on from a computed prompt here, "
            "without which drafts are checked at the wrong places. Leave it out."
        )
    if way == "anew" and not prepares_embeddings(backbone, handed_on=not needs_rows):
        raise PromptTuningError(
            f"{type(backbone).__name__} takes no embedded tokens in its generate, and with "
            f"{next(iter(given), 'these rows and settings')} a prompt's vectors are given so. Leave it out, or call "
            "forward for each token."
        )
    if way == "packed":
        result = _packed(backbone, layout, prompts, examples, ids, config, options)
    elif way == "continued":
        result = _continued(backbone, prompts, examples, ids, config, options)
    else:
        # Chunks would be cut from the ids, but rows are given as embeddings. The result without chunks is the same.
        with told_of(backbone, given):
            result = _anew(backbone, prompts, examples, ids, given | options | {"prefill_chunk_size": None})
        if not isinstance(result, Tensor) and result.get("hidden_states"):
            result.hidden_states = first_came_back(result.hidden_states, prompts, examples)
    cache = own if isinstance(result, Tensor) else result.get("past_key_values")
    lengths = prompts.lengths() + examples.mask.sum(1)
    if not needs_rows and columns_in(cache) and bool((lengths == width + max(map(len, prompts.vectors))).all()):
        # Rows without pads have the same columns in each of the three ways.
        names = tuple(name for name in prompts.row_names() for _ in range(copies(config)))
        seen = examples.mask.new_ones(len(names), columns_in(cache))
        mark(cache, Behind(names, seen, max(map(len, prompts.vectors))))
    return result if input_ids is None else _starting_with(input_ids, result, width)


def _check_own(cache: Cache, prompts: Prompts, examples: Examples) -> None:
    """Refuse a filled cache of other rows, and padded rows, whose columns may differ from those in the cache."""
    behind = checked(cache, prompts.row_names())
    lengths = prompts.lengths() + examples.mask.sum(1)
    if not bool(behind.mask.all()) or not bool((lengths == lengths[0]).all()):
        raise PromptTuningError(
            "past_key_values holds padded rows, or rows of several lengths are given with it; generate from one row, "
            "or from rows of one length, or without a cache."
        )


def _way(
    backbone: PreTrainedModel,
    prompts: Prompts,
    examples: Examples,
    ids: Tensor | None,
    config: GenerationConfig,
    options: dict[str, Any],
    layout: PackedLayout | None,
) -> str:
    """Return the fastest way that gives the same result as `anew`, including hidden states and attentions."""
    if ids is None or not can_be_continued(backbone) or not config.use_cache:
        return "anew"
    if options.get("past_key_values") is not None or config.output_attentions or config.output_hidden_states:
        return "anew"
    if config.cache_implementation not in (None, "dynamic", "static", "hybrid") or not bool(
        examples.mask.any(1).all()
    ):
        return "anew"
    one_call = not (config.prefill_chunk_size or speculative(config, options) or options.get("custom_generate"))
    if layout is not None and one_call and len(ids) * copies(config) > 1 and config.cache_implementation != "static":
        return "packed"
    lengths = prompts.lengths() + examples.mask.sum(1)
    if bool((lengths == lengths[0]).all()) and len(set(prompts.lengths().tolist())) == 1:
        return "continued"
    columns = int(prompts.lengths().max() + examples.mask.sum(1).max())
    columns += config.max_new_tokens or DEFAULT_NEW_TOKENS
    return "continued" if ignores_masked_columns(backbone, columns) else "anew"


def _packed(
    backbone: PreTrainedModel,
    layout: PackedLayout,
    prompts: Prompts,
    examples: Examples,
    ids: Tensor,
    config: GenerationConfig,
    options: dict[str, Any],
) -> Any:
    states, logits, mask = layout.states(backbone, prompts, examples, copies(config))
    cache = cache_of(states)
    options = options | {"past_key_values": cache}
    if config.cache_implementation is not None:
        options["cache_implementation"] = None  # transformers takes a cache or its name
    known = CausalLMOutputWithPast(logits=logits[:, None], past_key_values=cache)
    more = text_positions(backbone, mask) | options
    return giving_first(backbone, known).generate(input_ids=ids, attention_mask=mask.long(), **more)


def giving_first(backbone: PreTrainedModel, output: ModelOutput) -> PreTrainedModel:
    """Return a stand-in for the backbone. Its first call returns an output that is already computed."""
    known = [output]

    @functools.wraps(backbone.forward)
    def forward(*args: Any, **kwargs: Any) -> ModelOutput:
        return known.pop() if known else backbone(*args, **kwargs)

    return calling(backbone, forward)


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
        layers, seen = in_rows(prompts.computed, prompts.of_row.repeat_interleave(copies(config)))
        mask = torch.cat([seen[:: copies(config)], mask], dim=1)
        cache: Cache = cache_of(layers)
        if config.cache_implementation == "static":
            new = config.max_new_tokens or DEFAULT_NEW_TOKENS
            cache = StaticCache(backbone.config, max_cache_len=mask.shape[1] + new)
            for i, (keys, values) in enumerate(layers):
                cache.update(keys, values, i)
        options = options | {"past_key_values": cache}
        if config.cache_implementation is not None:
            options["cache_implementation"] = None  # transformers takes a cache or its name
    return backbone.generate(input_ids=ids, attention_mask=mask.long(), **text_positions(backbone, mask), **options)


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
    writer = generating_with(backbone, inputs.pop("per_layer_inputs", None))
    return writer.generate(**inputs, attention_mask=mask, **options)


def _mask_at_the_right(examples: Examples, width: int) -> Tensor:
    return examples.mask[:, :width].flip(1)


def _at_the_right(input_ids: Tensor, examples: Examples, width: int) -> Tensor:
    """Move each row's real tokens to the right, in as many columns as the longest row has real tokens."""
    if examples.order is not None:
        input_ids = input_ids.gather(1, examples.order)
    order = torch.argsort(examples.mask[:, :width], dim=1, stable=True)
    return input_ids[:, :width].gather(1, order)


def _starting_with(input_ids: Tensor, result: Any, width: int) -> Any:
    """Replace the first `width` columns of the result (sequences, or an output with sequences) by the caller's ids."""
    sequences = result if isinstance(result, Tensor) else result.sequences
    given = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    sequences = torch.cat([given, sequences[:, width:]], dim=1)
    if isinstance(result, Tensor):
        return sequences
    result.sequences = sequences
    return result

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
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from ..compat.transformers import (
    CACHE,
    COUNTS_CHUNKS_ON,
    NO_CHUNKS,
    as_cache,
    cache_in,
    check_drafts,
    check_static_chunks,
)
from ..errors import PromptTuningError
from ..layouts import Examples, PackedLayout, Prompts
from ..layouts.computed import cache_of, can_be_continued, in_rows
from ..layouts.padded import row_inputs
from ..layouts.sharing import calling
from ..layouts.traits import (
    counts_pads,
    ignores_masked_columns,
    sees_chunks,
    text_positions,
    without_router_scores,
)
from .call_arguments import CallArguments, explained_media_errors
from .caller_functions import FUNCTIONS, seeing_callers_ids
from .continuing import CacheContent, check_holds, columns_in, content_of, mark
from .generation_options import (
    DEFAULT_NEW_TOKENS,
    copies,
    drafting_option,
    generating_with,
    in_new_tokens,
    prepares_embeddings,
    with_encoder_ids,
    without_pads,
)
from .heads import RowHeads
from .outputs import check_no_attentions_of_steps, first_step_in_caller_columns

logger = logging.getLogger(__name__)

ONE_ROW_ONLY = ("rwkv",)
"""Models whose `generate` in transformers is wrong for more than one row."""

GROWING_CACHE_ONLY = ("gpt_neo",)
"""Models that take a cache's length for the number of tokens, so that one of fixed size gives them wrong tokens."""


@dataclass(frozen=True)
class _Call:
    """Hold one call of `generate`.

    Attributes:
        backbone: a causal model.
        prompts: of the B rows.
        examples: the embedded batch.
        ids: [B, N] long, each row's real tokens at the right; None if the caller embedded the texts. N is the longest
            row's number of real tokens.
        config: the resulting generation config.
        given: what the caller gave beside the texts; of it, pictures are among the embedded texts already.
        options: options of `generate`.
    """

    backbone: PreTrainedModel
    prompts: Prompts
    examples: Examples
    ids: Tensor | None
    config: GenerationConfig
    given: CallArguments
    options: dict[str, Any]

    @property
    def lengths(self) -> Tensor:
        """Return the number of virtual and real tokens of each row, [B] long."""
        return self.prompts.lengths() + self.examples.mask.sum(1)

    @property
    def has_pads(self) -> bool:
        """Tell whether rows `[prompt | text]` differ in length."""
        columns = max(map(len, self.prompts.vectors)) + self.examples.mask.shape[1]
        return not bool((self.lengths == columns).all())

    @property
    def columns(self) -> int:
        """Return the number of columns of rows `[prompt | text]` without pads that no row needs."""
        return max(map(len, self.prompts.vectors)) + int(self.examples.mask.sum(1).max())

    @property
    def needs_whole_rows(self) -> bool:
        """Tell whether the backbone is given more than texts, with which rows are computed as a whole."""
        return bool(self.given.beside or self.given.others)


def generate(
    backbone: PreTrainedModel,
    prompts: Prompts,
    examples: Examples,
    input_ids: Tensor | None,
    given: CallArguments,
    options: dict[str, Any],
    computed: Callable[[Prompts, Examples], Prompts],
    packed_layout: Callable[[], PackedLayout | None],
    heads: RowHeads | None = None,
) -> Any:
    """Return the result of `backbone.generate` with each of B rows' prompt in front.

    The result starts with `input_ids` [B, T]; without them it is only the new tokens. `given` is what the caller gave
    beside them, and `options` are `generate`'s other arguments. `computed` adds to the prompts what was computed of
    them before. `packed_layout` returns the packed layout, or None if texts may not be packed. `heads` are those that
    were taken off the caller's rows, or None.
    """
    cache = cache_in(options)
    if cache is not None and columns_in(cache):
        _check_cache(cache, prompts, examples)
    columns = examples.embeds.shape[1] if heads is None else heads.columns
    config, options = in_new_tokens(backbone, options, columns)
    options = without_router_scores(backbone, given.others) | options
    ids, width = None, int(examples.mask.sum(1).max())
    if input_ids is not None:
        ids = _at_the_right(input_ids, examples, width)
        if any(options.get(name) for name in FUNCTIONS):
            own = (input_ids, examples.caller_mask()) if heads is None else (heads.ids, heads.real)
            options = seeing_callers_ids(options, *own, ids)
        options = with_encoder_ids(options, config, ids, _mask_at_the_right(examples, width))
        options = without_pads(options, config, width - examples.mask.sum(1))
    call = _Call(backbone, prompts, examples, ids, config, given, options)
    _check(call)
    layout = packed_layout() if len(examples.mask) * copies(config) > 1 else None
    way = _way(call, layout)
    if way == "anew":
        result = _anew(call)
    else:
        call = replace(call, prompts=computed(prompts, examples))
        result = _continued(call) if way == "continued" else _packed(call, layout)
    cache = cache if isinstance(result, Tensor) else cache_in(result)
    if cache is not None and columns_in(cache) and not (call.needs_whole_rows or call.given.media):
        _mark_cache(call, cache)
    if heads is not None:
        heads.complete(result, cache, width)
        input_ids = heads.ids
    return result if input_ids is None else _starting_with(input_ids, result, width)


def _check(call: _Call) -> None:
    """Raise PromptTuningError for rows or settings with which no way gives the right tokens."""
    if call.has_pads:
        check_no_attentions_of_steps(call.config, call.backbone.config)
    if option := drafting_option(call.config, call.options):
        check_drafts(option)
    rows, each = len(call.examples.mask), copies(call.config)
    if call.backbone.config.model_type in ONE_ROW_ONLY and rows * each > 1:
        raise PromptTuningError(
            f"got {rows} rows and {each} sequences for each, and {type(call.backbone).__name__} "
            "generates right for one alone. Give one row at a time, without beams."
        )
    if counts_pads(call.backbone) and not bool((call.lengths == call.lengths[0]).all()):
        raise PromptTuningError(
            f"got rows of several lengths, and {type(call.backbone).__name__} counts the pads in front of the shorter "
            "ones as positions, with a prompt or without. Give rows of one length, or one row at a time."
        )
    kind = "static" if isinstance(cache_in(call.options), StaticCache) else call.config.cache_implementation
    if call.backbone.config.model_type in GROWING_CACHE_ONLY and kind in ALL_STATIC_CACHE_IMPLEMENTATIONS:
        raise PromptTuningError(
            f"the cache is {kind}, and {type(call.backbone).__name__} reads the wrong places of one, with a prompt or "
            "without. Give a dynamic one, or none."
        )
    if (cache := cache_in(call.options)) is not None:
        if each > 1 and columns_in(cache):
            raise PromptTuningError(
                f"past_key_values holds {rows} rows, and {each} sequences are asked for each; leave out num_beams and "
                "num_return_sequences, or the cache."
            )
        new = (call.config.max_new_tokens or DEFAULT_NEW_TOKENS) - 1  # the last one is not computed
        check_holds(cache, call.columns + new)
    if sees_chunks(call.backbone) and kind in ALL_STATIC_CACHE_IMPLEMENTATIONS:
        check_static_chunks(call.backbone, kind)
    if call.config.token_healing:
        raise PromptTuningError(
            "token_healing is on, which writes a text's last tokens anew after the texts were computed; leave it out."
        )


def _check_cache(cache: Cache, prompts: Prompts, examples: Examples) -> None:
    """Refuse a filled cache of other rows, rows without a new token, and padded rows, whose columns may differ."""
    content = content_of(cache, prompts.row_names())
    lengths = prompts.lengths() + examples.mask.sum(1)
    if not bool(content.mask.all()) or not bool((lengths == lengths[0]).all()):
        raise PromptTuningError(
            "past_key_values holds padded rows, or rows of several lengths are given with it; generate from one row, "
            "or from rows of one length, or without a cache."
        )
    if int(lengths[0]) <= columns_in(cache):
        raise PromptTuningError(
            f"past_key_values holds {columns_in(cache)} columns, and rows have {int(lengths[0])} with their prompt, "
            "so that no token is new; give the whole text so far, and what stands behind it."
        )


def _mark_cache(call: _Call, cache: Cache) -> None:
    """Mark a cache that this call filled, unless its rows have pads: their columns differ between the three ways."""
    rows, each = call.examples.mask, copies(call.config)
    if bool((call.lengths == call.columns).all()):
        mask = rows.new_ones(each * len(rows), columns_in(cache))
        mark(cache, CacheContent.behind(call.prompts, mask, each))


def _way(call: _Call, layout: PackedLayout | None) -> str:
    """Return the fastest way that gives the same result as `anew`, including hidden states and attentions."""
    backbone, config, options = call.backbone, call.config, call.options
    if call.needs_whole_rows or call.ids is None or not can_be_continued(backbone) or not config.use_cache:
        return "anew"
    if cache_in(options) is not None or config.output_attentions or config.output_hidden_states:
        return "anew"
    if config.cache_implementation not in (None, "dynamic", "static", "hybrid"):
        return "anew"
    if not bool(call.examples.mask.any(1).all()):
        return "anew"
    one_pass = not (config.prefill_chunk_size or drafting_option(config, options) or options.get("custom_generate"))
    if layout is not None and one_pass and config.cache_implementation != "static":
        return "packed"
    if call.given.media:  # texts that go on from a cache are given as ids, which do not tell pictures
        return "anew"
    lengths, prompt_lengths = call.lengths, call.prompts.lengths()
    if bool((lengths == lengths[0]).all()) and bool((prompt_lengths == prompt_lengths[0]).all()):
        return "continued"
    columns = int(prompt_lengths.max()) + call.ids.shape[1] + (config.max_new_tokens or DEFAULT_NEW_TOKENS)
    return "continued" if ignores_masked_columns(backbone, columns) else "anew"


def _packed(call: _Call, layout: PackedLayout) -> Any:
    states, logits, mask = layout.states(call.backbone, call.prompts, call.examples, copies(call.config))
    cache = cache_of(states)
    output = CausalLMOutputWithPast(logits=logits[:, None], **{CACHE: cache})
    options = text_positions(call.backbone, mask) | _with_cache(call, cache)
    return _giving_first(call.backbone, output).generate(input_ids=call.ids, attention_mask=mask.long(), **options)


def _giving_first(backbone: PreTrainedModel, output: ModelOutput) -> PreTrainedModel:
    """Return a stand-in for the backbone. Its first call returns an output that is already computed."""
    outputs = [output]

    @functools.wraps(backbone.forward)
    def forward(*args: Any, **kwargs: Any) -> ModelOutput:
        return outputs.pop() if outputs else backbone(*args, **kwargs)

    return calling(backbone, forward)


def _continued(call: _Call) -> Any:
    backbone, prompts, each = call.backbone, call.prompts, copies(call.config)
    mask, options = _mask_at_the_right(call.examples, call.ids.shape[1]), call.options
    if any(prompt is not None for prompt in prompts.computed):
        layers, seen = in_rows(prompts.computed, prompts.of_row.repeat_interleave(each))
        mask = torch.cat([seen[::each], mask], dim=1)
        cache: Cache = cache_of(layers)
        if call.config.cache_implementation == "static":
            new = call.config.max_new_tokens or DEFAULT_NEW_TOKENS
            cache = StaticCache(backbone.config, max_cache_len=mask.shape[1] + new)
            for i, (keys, values) in enumerate(layers):
                cache.update(keys, values, i)
        options = _with_cache(call, cache) | ({} if COUNTS_CHUNKS_ON else _in_one_piece(call, NO_CHUNKS))
    options = text_positions(backbone, mask) | options
    return backbone.generate(input_ids=call.ids, attention_mask=mask.long(), **options)


def _in_one_piece(call: _Call, reason: str) -> dict[str, Any]:
    """Return the option for a first pass in one piece, whose result is that of chunks; log the reason, once."""
    if call.config.prefill_chunk_size:
        _log_once(f"prefill_chunk_size is given and has no effect: {reason}.")
    return {"prefill_chunk_size": None}


@functools.cache
def _log_once(message: str) -> None:
    logger.warning(message)


def _with_cache(call: _Call, cache: Cache) -> dict[str, Any]:
    """Return the options with a cache. transformers takes a cache or the name of one, not both."""
    named = {} if call.config.cache_implementation is None else {"cache_implementation": None}
    return call.options | as_cache(call.backbone, cache) | named


def _anew(call: _Call) -> Any:
    backbone, examples, name = call.backbone, call.examples, type(call.backbone).__name__
    if option := drafting_option(call.config, call.options):
        raise PromptTuningError(
            f"{option} is given, and {name} cannot go on from a computed prompt here, "
            "without which drafts are checked at the wrong places. Leave it out."
        )
    beside = {**call.given.media, **call.given.beside, **call.given.others}
    if not prepares_embeddings(backbone, handed_on=not call.given.others):
        raise PromptTuningError(
            f"{name} takes no embedded tokens in its generate, and with "
            f"{next(iter(beside), 'these rows and settings')} a prompt's vectors are given so. Leave it out, "
            "or call forward for each token."
        )
    whole = examples.select(torch.arange(len(examples.mask)))
    inputs = row_inputs(backbone, call.prompts, whole, pads="left") | call.given.others
    inputs |= {} if call.ids is None else {"input_ids": call.ids}
    options = call.options | _in_one_piece(call, "chunks are cut from ids, and rows are embeddings here")
    writer = generating_with(backbone, inputs.pop("per_layer_inputs", None))
    goes_on = columns_in(cache_in(call.options)) > 0
    with explained_media_errors(backbone, beside):
        result = writer.generate(**inputs, **options)
    # Behind a filled cache the first step has the new tokens alone, and rows without pads.
    if not isinstance(result, Tensor) and result.get("hidden_states") and not goes_on:
        result.hidden_states = first_step_in_caller_columns(result.hidden_states, call.prompts, examples)
    return result


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

"""Run a backbone's class on rows with a prompt, while its head reads the text's columns alone."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..layouts.base import take_columns
from ..layouts.packed_texts import PackedTexts
from ..layouts.sharing import calling, with_part, with_values
from ..layouts.traits import takes
from .class_labels import problem_type
from .text_columns import TextColumns
from .text_rows import TextCall


def read(
    backbone: PreTrainedModel,
    head: nn.ModuleDict | None,
    call: TextCall,
    in_order: TextColumns,
    labels: Tensor | None = None,
    ends: Tensor | None = None,
) -> ModelOutput:
    """Run the backbone's class on rows with a prompt, and let a head read the text's columns of the hidden states.

    The backbone's own `forward` is called on a stand-in of it, whose base model gives the hidden states of the text in
    place of those of whole rows. The backbone is not changed.

    Args:
        backbone: with its own head.
        head: the modules to use in place of the backbone's; None for its own.
        call: the arguments of the base model, and the texts' columns, [B, T] as in the caller's batch.
        in_order: the same columns in the order in which the head reads them.
        labels: as transformers' loss takes them; or None.
        ends: [B, T] long in that order, 1 at the EOS that a decoder's head reads; None for other heads.
    """
    base = backbone.base_model
    like = None if head is None else next(head.parameters())

    def hidden_states_of_text(*args: Any, **kwargs: Any) -> ModelOutput:
        outputs = hidden_states(base, call, in_order)
        for name in ("last_hidden_state", "pooler_output"):
            if outputs.get(name) is not None:
                outputs[name] = in_dtype_of(like, outputs[name])
        return outputs

    called = with_part(backbone, base, calling(base, hidden_states_of_text))
    for name, part in ({} if head is None else head).items():
        called = with_part(called, called._modules[name], part)
    called = with_values(called, {"config": config_of_call(backbone.config, labels)})
    # Heads tell pads, or EOS, by their ids: here every real token (or every EOS) has the id 1, and a pad 0.
    ids = in_order.mask.long() if ends is None else ends
    given = {} if labels is None else {"labels": labels}
    return called(input_ids=ids, attention_mask=in_order.mask.long(), return_dict=True, **given)


def hidden_states(base: PreTrainedModel, call: TextCall, in_order: TextColumns) -> ModelOutput:
    """Run a base model on rows with a prompt, and return the hidden states of the text's columns alone.

    Arguments are those of `read`. The last hidden states are in the order of `in_order`, those of all layers in the
    caller's. A pooler reads the text's first token.
    """
    rows = call.rows if call.packed is None else call.packed.inputs(base, call.rows)
    outputs = base(**rows, **({"use_cache": False} if takes(base, "use_cache") else {}))
    values = dict(outputs.items())
    if call.packed is not None:
        for name in ("last_hidden_state", "hidden_states"):
            if values.get(name) is not None:
                values[name] = _unpacked(call.packed, values[name])
    last = values["last_hidden_state"]
    values["last_hidden_state"] = take_columns(last, in_order.columns)
    if values.get("pooler_output") is not None:
        values["pooler_output"] = base.pooler(take_columns(last, call.tokens.at_the_left().columns))
    if values.get("hidden_states") is not None:
        values["hidden_states"] = tuple(take_columns(x, call.tokens.columns) for x in values["hidden_states"])
    values.pop("encoder_last_hidden_state", None)  # which has columns of the prompt
    return type(outputs)(**values)


def _unpacked(packed: PackedTexts, states: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """Return states of packed rows as those of padded rows."""
    return tuple(map(packed.unpacked, states)) if isinstance(states, tuple) else packed.unpacked(states)


def in_dtype_of(like: Tensor | None, states: Tensor) -> Tensor:
    """Return hidden states in the dtype and on the device of a head's weight; unchanged for None."""
    return states if like is None else states.to(like)


def config_of_call(config: PreTrainedConfig, labels: Tensor | None) -> PreTrainedConfig:
    """Return a copy of a backbone's config in which a pad has the id 0 and EOS 1, and the problem type is written."""
    own = copy.copy(config)
    own.pad_token_id, own.eos_token_id = 0, 1
    if labels is not None:
        own.problem_type = problem_type(config, labels)
    return own

"""Run a backbone's class on rows with a prompt, while its head reads the text's columns alone."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..layouts.base import take_columns
from ..layouts.sharing import calling, with_part, with_values
from ..layouts.traits import takes
from .class_labels import problem_type
from .text_columns import TextColumns


def read(
    backbone: PreTrainedModel,
    head: nn.ModuleDict | None,
    rows: dict[str, Any],
    tokens: TextColumns,
    in_order: TextColumns,
    labels: Tensor | None = None,
) -> ModelOutput:
    """Run the backbone's class on rows with a prompt, and let a head read the text's columns of the hidden states.

    The backbone's own `forward` is called on a stand-in of it, whose base model gives the hidden states of the text in
    place of those of whole rows. The backbone is not changed.

    Args:
        backbone: with its own head.
        head: the modules to use in place of the backbone's; None for its own.
        rows: the arguments of the base model.
        tokens: the texts' columns in the rows, [B, T] as in the caller's batch.
        in_order: the same in the order in which the head reads them.
        labels: as transformers' loss takes them; or None.
    """
    base = backbone.base_model
    like = None if head is None else next(head.parameters())

    def hidden_states_of_text(*args: Any, **kwargs: Any) -> ModelOutput:
        outputs = hidden_states(base, rows, tokens, in_order)
        for name in ("last_hidden_state", "pooler_output"):
            if outputs.get(name) is not None:
                outputs[name] = in_dtype_of(like, outputs[name])
        return outputs

    called = with_part(backbone, base, calling(base, hidden_states_of_text))
    for name, part in ({} if head is None else head).items():
        called = with_part(called, called._modules[name], part)
    called = with_values(called, {"config": config_of_call(backbone.config, labels)})
    # To a decoder's head a token is a pad by its id: here every real token has the id 1, and a pad 0.
    ids = in_order.mask.long()
    given = {} if labels is None else {"labels": labels}
    return called(input_ids=ids, attention_mask=ids, return_dict=True, **given)


def hidden_states(
    base: PreTrainedModel, rows: dict[str, Any], tokens: TextColumns, in_order: TextColumns
) -> ModelOutput:
    """Run a base model on rows with a prompt, and return the hidden states of the text's columns alone.

    Arguments are those of `read`. The last hidden states are in the order of `in_order`, those of all layers in the
    caller's. A pooler reads the text's first token.
    """
    if takes(base, "use_cache"):
        rows = rows | {"use_cache": False}
    outputs = base(**rows)
    values, last = dict(outputs.items()), outputs.last_hidden_state
    values["last_hidden_state"] = take_columns(last, in_order.columns)
    if values.get("pooler_output") is not None:
        values["pooler_output"] = base.pooler(take_columns(last, tokens.at_the_left().columns))
    if values.get("hidden_states") is not None:
        values["hidden_states"] = tuple(take_columns(x, tokens.columns) for x in values["hidden_states"])
    return type(outputs)(**values)


def in_dtype_of(like: Tensor | None, states: Tensor) -> Tensor:
    """Return hidden states in the dtype and on the device of a head's weight; unchanged for None."""
    return states if like is None else states.to(like)


def config_of_call(config: PreTrainedConfig, labels: Tensor | None) -> PreTrainedConfig:
    """Return a copy of a backbone's config in which a pad has the id 0, and the labels' problem type is written."""
    own = copy.copy(config)
    own.pad_token_id = 0
    if labels is not None:
        own.problem_type = problem_type(config, labels)
    return own

"""Read from a backbone's config and signature how it reads a row."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..compat.transformers import CHECKPOINTS_ACTIVATIONS
from ..errors import PromptTuningError
from .base import ROUTER_SCORES, asks_for_router_scores
from .masks import Reach
from .sharing import embedded

REACHES: dict[str, Callable[[Any], Reach]] = {
    "full_attention": lambda config: Reach(),
    "sliding_attention": lambda config: Reach(window=config.sliding_window),
    "chunked_attention": lambda config: Reach(chunk=config.attention_chunk_size),
}
ALIBI_BY_MASK = ("bloom", "falcon")
"""Models whose ALiBi counts a row's real tokens. Other models count columns."""


POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""What models call their table of position vectors."""

RELATIVE_TABLES = ("mpt", "roformer")
"""Models with a table by which only the distance of two positions counts."""

SCALES_IDS = ("blenderbot-small", "marian", "mvp", "pegasus")
"""Models whose encoder scales looked-up embeddings itself; in other models the embedding module does. The caller must
scale the `inputs_embeds` of these models. Of their decoders alone (`MvpForCausalLM`), MVP's scales ids, and the others
scale both or neither.
"""


def takes(backbone: PreTrainedModel, argument: str) -> bool:
    """Tell whether the model's `forward` names that argument."""
    return argument in inspect.signature(backbone.forward).parameters


def token_types(backbone: PreTrainedModel) -> int:
    """Return how many token types a model tells apart; 0 if it reads none."""
    return getattr(backbone.config, "type_vocab_size", 0) if takes(backbone, "token_type_ids") else 0


def is_recurrent(backbone: PreTrainedModel) -> bool:
    """Tell whether some layers pass a state from token to token."""
    return bool(backbone._is_stateful) or any(kind not in REACHES for kind in _layer_types(backbone))


def state_of_choice(backbone: PreTrainedModel) -> tuple:
    """Return what the choice of a layout depends on besides the backbone itself. It may change between batches."""
    state = (getattr(backbone, CHECKPOINTS_ACTIVATIONS), backbone.config._attn_implementation)
    if not is_recurrent(backbone):
        return state
    # Recurrent layers have several kernels: one for training, and one for each device.
    device = backbone.device.type
    return *state, backbone.training, device, backbone.dtype, torch.is_autocast_enabled(device)


def reaches(backbone: PreTrainedModel) -> dict[str, Reach]:
    """Return how far each kind of layer sees, by its name in the config's `layer_types`; usually there is one kind."""
    config, kinds = backbone.config.get_text_config(), _layer_types(backbone)
    if not kinds:
        # Models without `layer_types` have one kind of layer, with a window if the config has one.
        return {"full_attention": Reach(window=getattr(config, "sliding_window", None))}
    return {kind: REACHES[kind](config) for kind in kinds}


def sees_chunks(backbone: PreTrainedModel) -> bool:
    """Tell whether some layers see only the tokens in the same chunk (Llama 4)."""
    return "chunked_attention" in _layer_types(backbone)


def has_local_layers(backbone: PreTrainedModel) -> bool:
    """Tell whether some layers limit how many columns, rather than positions, a token sees back (GPT-Neo)."""
    return "local" in (getattr(backbone.config.get_text_config(), "attention_layers", None) or ())


def ignores_masked_columns(backbone: PreTrainedModel, columns: int) -> bool:
    """Tell whether masked columns between a row's tokens change nothing, in rows of `columns` columns.

    They change nothing if positions are given, or are counted in the mask, and no window is shorter than the row.
    Windows are cut by columns.
    """
    config = backbone.config.get_text_config()
    if is_recurrent(backbone):
        return False
    if config.model_type not in ALIBI_BY_MASK and (
        getattr(config, "alibi", False) or not takes(backbone, "position_ids")
    ):
        return False
    limits = [reach.window or reach.chunk for reach in reaches(backbone).values()]
    if has_local_layers(backbone):
        limits.append(config.window_size)
    return all(limit is None or columns <= limit for limit in limits)


def with_own_positions(backbone: PreTrainedModel) -> nn.Module | None:
    """Return the module that counts positions with images and keeps its count for the next call, or None."""
    modules = (backbone, getattr(backbone, "base_model", None), getattr(backbone, "model", None))
    return next((module for module in modules if hasattr(module, "rope_deltas")), None)


def text_positions(backbone: PreTrainedModel, mask: Tensor, columns: int | None = None) -> dict[str, Tensor]:
    """Return the `position_ids` of text rows, for a backbone that counts positions with images; empty for others.

    Without them it would continue from the positions of its last call's images. `mask` [B, N] is of all columns so
    far, and `columns` says how many of them are new, by default all.
    """
    if with_own_positions(backbone) is None:
        return {}
    counted = (mask.long().cumsum(1) - 1).clamp(min=0)
    return {"position_ids": counted if columns is None else counted[:, mask.shape[1] - columns :]}


def max_positions(backbone: PreTrainedModel) -> int | None:
    """Return the backbone's maximum number of input positions, None without a limit (T5, BLOOM, recurrence)."""
    config = backbone.config.get_text_config()
    if config.model_type == "mpt":
        return config.max_seq_len
    if getattr(config, "alibi", False) or hasattr(config, "relative_attention_num_buckets"):
        return None
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None or limit < 0 else limit  # XLNet's is -1


def tabled_positions(backbone: PreTrainedModel) -> int | None:
    """Return for how many tokens a backbone has a table of positions; None if it has none.

    It is one of learned vectors, or MPT's of biases. RoBERTa's positions begin behind the pad's id, BART's behind an
    offset.
    """
    if backbone.config.model_type == "mpt":
        return backbone.config.max_seq_len
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - getattr(module, "offset", unused)
    return None


def starts_behind_pad(backbone: PreTrainedModel) -> bool:
    """Tell whether a row's first position is that behind the pad's id, and not 0 (RoBERTa and its like)."""
    return any(
        isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None
        for name, module in backbone.named_modules()
    )


def counts_pads(backbone: PreTrainedModel) -> bool:
    """Tell whether pads in front of a row move its tokens to other positions (the decoders of BART and its like)."""
    relative = backbone.config.model_type in RELATIVE_TABLES
    return not relative and tabled_positions(backbone) is not None and not takes(backbone, "position_ids")


def positions_of_pads(backbone: PreTrainedModel, mask: Tensor) -> dict[str, Tensor]:
    """Return the `position_ids` of rows `[tokens | pads]` with more columns than the table of positions has.

    `mask` is [B, N]. Each row's tokens must have a place in the table; pads get that of the token before them. The
    result is empty for other rows. Raise PromptTuningError if the backbone takes no positions.
    """
    limit = tabled_positions(backbone)
    if limit is None or mask.shape[1] <= limit:
        return {}
    if not takes(backbone, "position_ids"):
        raise PromptTuningError(
            f"rows have {mask.shape[1]} columns with their prompts, and {type(backbone).__name__} has positions for "
            f"{limit}, which pads take, too; leave out columns that hold pads alone."
        )
    return {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


def steady_positions(backbone: PreTrainedModel) -> int | None:
    """Return the length up to which a token's rotary position does not depend on its batch; None without a limit.

    Dynamic NTK and longrope switch to other frequencies as soon as one row is longer than the original context.
    """
    config = backbone.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    # A single set of parameters, or a set for each kind of layer.
    limits = [
        parameters.get("original_max_position_embeddings") or config.max_position_embeddings
        for parameters in (rope, *rope.values())
        if isinstance(parameters, dict) and parameters.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def token_scale(backbone: PreTrainedModel) -> float:
    """Return the factor that a model applies to the embeddings of token ids, but not to `inputs_embeds`."""
    name = backbone.config.model_type
    if name not in SCALES_IDS or hasattr(backbone.get_input_embeddings(), "embed_scale"):
        return 1.0
    if backbone.config.is_encoder_decoder:
        return backbone.get_encoder().embed_scale
    return backbone.get_decoder().embed_scale if name == "mvp" else 1.0


def encoder_matrix(backbone: PreTrainedModel) -> Tensor:
    """Return the embedding matrix that texts are looked up in. An encoder may have one for itself (an untied BART)."""
    weight = backbone.get_input_embeddings().weight
    if not backbone.config.is_encoder_decoder:
        return weight
    encoder = backbone.base_model.get_encoder()
    return getattr(getattr(encoder, "embed_tokens", None), "weight", weight)


def has_per_layer_inputs(backbone: PreTrainedModel) -> bool:
    """Tell whether every layer reads its own vector for each token id (Gemma 3n, Gemma 4)."""
    return bool(getattr(backbone.config.get_text_config(), "hidden_size_per_layer_input", None))


def needs_embeddings_only(backbone: PreTrainedModel) -> bool:
    """Tell whether rows of looked-up embeddings, as PEFT gives them, are all that the model needs."""
    return token_scale(backbone) == 1.0 and not has_per_layer_inputs(backbone)


def per_layer_inputs(backbone: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Return the per-layer vectors of all layers, side by side: [B, T, layers * D] for ids [B, T]."""
    return embedded(backbone.get_per_layer_input_embeddings(), input_ids)


def without_router_scores(backbone: PreTrainedModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument that keeps a mixture of experts from balancing its routers, where no loss is computed.

    Behind a cache the mask and the scores are of different columns. The result is empty if the config does not ask for
    the scores, or the caller has `given` the argument.
    """
    asked = asks_for_router_scores(backbone) and takes(backbone, ROUTER_SCORES)
    return {ROUTER_SCORES: False} if asked and ROUTER_SCORES not in given else {}


def _layer_types(backbone: PreTrainedModel) -> list[str]:
    return list(dict.fromkeys(getattr(backbone.config.get_text_config(), "layer_types", None) or ()))

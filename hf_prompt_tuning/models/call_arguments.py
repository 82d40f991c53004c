"""Adapt a caller's other arguments to rows with a prompt in front, or raise an error that names the argument."""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from ..compat.transformers import CACHE_NAMES, cache_in, cache_name
from ..errors import PromptTuningError, first_line, sentence
from ..layouts import Examples, Prompts
from ..layouts.base import take_columns
from ..layouts.padded import POSITIONS, beside_rows
from ..layouts.traits import has_per_layer_inputs, tabled_positions, takes, with_own_positions
from .batch_checks import Texts, check_left_out
from .pictures import check_not_spread, merges, read_with_pictures

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Arguments with a value for each token, where 0 means plain text. A prompt counts as plain text."""

PER_TOKEN = (
    *(
        "cache_position",
        "cross_attention_mask",
        "full_text_row_masked_out_mask",
        "global_attention_mask",
        "input_mask",
    ),
    *("image_embeds_position_mask", "per_layer_inputs", "task_type_ids", "input_shape_ids", "input_pronunciation_ids"),
    *("langs", "lang_ids", "bbox", "perm_mask", "target_mapping"),
)
"""Arguments with a value for each token. A prompt has no such value."""

STATES = ("cache_params", "state", "mems")
"""Recurrent states, other than `past_key_values`, that a sequence continues from."""

DECODER = ("decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask")
"""Arguments with a value for each label."""

OF_THE_WHOLE = (*PER_TOKEN, "shift_labels", "position_ids", "fused_lm_head")
"""Arguments with a value for each token of an encoder's row, and those that an encoder-decoder does not use."""

OF_FORWARD = (
    *("input_ids", "attention_mask", "inputs_embeds", "labels", "only_labelled", "candidates", "adapter_names"),
    *("num_items_in_batch", "label_smoothing", "shift_labels", "fused_lm_head", "distillation", "search"),
)
"""The names of our own `forward`'s arguments."""

KNOWN = (*OF_FORWARD, *TransformersKwargs.__annotations__, "return_dict", "use_cache", "label")
"""Arguments that may be given for any backbone, and the index of a row's label, which our collator puts in a batch."""

SIMILAR = 0.85
"""How similar a name is to one that it is a misspelling of, by difflib's measure."""

MEDIA = re.compile("pixel|image|video|audio|input_features|input_values|patches|speech|mm_encoder_outputs")
SOUND = re.compile("audio|input_features|input_values|speech")
GRIDS = {"input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask"}
"""The arguments of `get_rope_index` that we can pass, from which positions of images are counted."""


@dataclass(frozen=True)
class CallArguments:
    """What a call of a causal backbone gives beside its texts.

    Attributes:
        beside: what the backbone takes of each token, in the caller's columns (`Examples.beside`).
        media: pictures, which are put among the embedded texts before a prompt is; by the argument's name.
        others: what the backbone is given as it is.
    """

    beside: Mapping[str, Tensor] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)


TEXT_ALONE = CallArguments()
"""What a call gives that has texts alone."""


def sorted_arguments(
    backbone: PreTrainedModel, arguments: Mapping[str, Any], input_ids: Tensor | None, mask: Tensor
) -> CallArguments:
    """Sort the arguments of a causal backbone's `forward`, given for texts of `mask` ([B, T] bool). None is left out.

    `input_ids` is None if the caller embedded the texts. Raise PromptTuningError if the backbone does not take one,
    its shape does not match the texts, or it cannot be adapted to a prompt.
    """
    given = _taken(backbone, arguments)
    _check_columns(backbone, given, mask.shape)
    _check_media(backbone, given)
    media = [name for name in given if MEDIA.search(name)]
    if not merges(backbone) or input_ids is None:
        _check_pictures_stay(backbone, media, input_ids, mask)
        media = []
    elif media:
        how = read_with_pictures(backbone, given)
        media += [name for name in how if name not in (*media, *TOKEN_TYPES, POSITIONS)]
    beside = {name: given[name][..., None] for name in TOKEN_TYPES if name in given}
    if not media and merges(backbone) and not any(bool(types.any()) for types in beside.values()):
        beside = {}  # those of plain text say nothing
    beside |= _positions(backbone, given, input_ids, mask)
    others = {name: value for name, value in given.items() if name not in (*TOKEN_TYPES, *media, POSITIONS)}
    return CallArguments(beside, {name: given[name] for name in media}, others)


def given_beside(
    backbone: PreTrainedModel, texts: Texts, arguments: Mapping[str, Any], labelled_alone: bool = False
) -> CallArguments:
    """Return what a call gives beside its texts.

    Raise PromptTuningError as `sorted_arguments` does; or if only labelled tokens or candidates are asked for
    (`labelled_alone`), and something is given that no layout takes.
    """
    if labelled_alone and not merges(backbone):
        check_not_spread(backbone, arguments)
        check_left_out(arguments)
        return TEXT_ALONE
    mask = texts.attention_mask
    given = texts.input_ids if texts.inputs_embeds is None else texts.inputs_embeds
    real = torch.ones(texts.shape, dtype=torch.bool, device=given.device) if mask is None else mask.bool()
    found = sorted_arguments(backbone, arguments, texts.input_ids, real)
    if labelled_alone:
        check_left_out(found.others)
    return found


def arguments_in_rows(
    backbone: PreTrainedModel,
    arguments: Mapping[str, Any],
    input_ids: Tensor | None,
    prompts: Prompts,
    examples: Examples,
) -> dict[str, Any]:
    """Return the arguments of a backbone's `forward` for rows of `padded_rows(prompts, examples)`.

    They are given in the caller's columns. Raise PromptTuningError as `sorted_arguments` does.
    """
    found = sorted_arguments(backbone, arguments, input_ids, examples.caller_mask())
    beside = found.beside
    if examples.order is not None:
        beside = {name: take_columns(values, examples.order) for name, values in beside.items()}
    return {**found.others, **beside_rows(prompts, replace(examples, beside=beside))}


def decoder_arguments(
    backbone: PreTrainedModel, arguments: Mapping[str, Any], labels: Tensor | None, rows: int
) -> dict[str, Any]:
    """Return the arguments for an encoder-decoder whose encoder gets embeddings. Arguments that are None are left out.

    Raise PromptTuningError if the backbone does not take one, one is for the encoder's tokens, or a decoder's does not
    match the labels' shape.
    """
    given = _taken(backbone, arguments)
    if not given.get("fused_lm_head"):
        given.pop("fused_lm_head", None)
    if wrong := [name for name in given if name in OF_THE_WHOLE or MEDIA.search(name)]:
        fix = "give input_ids, attention_mask, labels and what the decoder takes."
        if wrong[0] == "fused_lm_head":
            fix = "TRL's trainers that give it are for causal models. Use PromptTuningTrainer or Seq2SeqTrainer."
        raise PromptTuningError(f"{wrong[0]} is given, which leaves a prompt in the encoder no place; {fix}")
    ids, embeds = given.get("decoder_input_ids"), given.get("decoder_inputs_embeds")
    targets = [value.shape[:2] for value in (labels, ids, embeds) if isinstance(value, Tensor)]
    limit = tabled_positions(backbone.get_decoder())
    if limit is not None and (longest := max((shape[-1] for shape in targets), default=0)) > limit:
        raise PromptTuningError(
            f"targets of {longest} tokens are given, and the decoder of {type(backbone).__name__} has positions for "
            f"{limit}; shorten them."
        )
    for name in DECODER:
        value = given.get(name)
        past = name == "decoder_attention_mask" and cache_in(given) is not None
        if value is None:
            continue
        shape = value.shape[:2] if isinstance(value, Tensor) and value.dim() > 1 else (0,)
        if shape[0] != rows or not (past or all(shape == others for others in targets)):
            wanted = list(targets[0]) if targets and targets[0] != shape else f"[{rows}, T']"
            raise PromptTuningError(
                f"{name} has shape {list(getattr(value, 'shape', ()))}; give {wanted}, as labels and the others."
            )
    return given


def selected_columns(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Return columns of logits [B, N, V] as transformers' `logits_to_keep` does: the last ones, or those in a tensor.

    Raise PromptTuningError if there are no such columns.
    """
    if isinstance(logits_to_keep, int) and logits_to_keep >= 0:
        return logits[:, -logits_to_keep:] if logits_to_keep else logits
    try:
        if isinstance(logits_to_keep, int):
            return logits[:, -logits_to_keep:]
        if not isinstance(logits_to_keep, Tensor) or logits_to_keep.dim() != 2:
            return logits[:, logits_to_keep]
        each_row = logits_to_keep.dtype != torch.bool
        return torch.take_along_dim(logits, logits_to_keep[..., None], 1) if each_row else logits[logits_to_keep]
    except (IndexError, RuntimeError, TypeError) as error:
        raise PromptTuningError(
            f"logits_to_keep is {logits_to_keep}; give how many of the last columns of {list(logits.shape)} to keep, "
            "or a tensor of columns."
        ) from error


@contextmanager
def explained_media_errors(backbone: PreTrainedModel, given: Mapping[str, Any]) -> Iterator[None]:
    """Convert a backbone's errors about images among embedded tokens to PromptTuningError, within this context."""
    media = [name for name in given if MEDIA.search(name)]
    try:
        yield
    except ValueError as error:
        if not media:
            raise
        raise PromptTuningError(
            f"{', '.join(media)}: {type(backbone).__name__} refuses them behind a prompt: {first_line(error)} "
            "Give what it asks for, or the text alone."
        ) from error


def check_taken(backbone: PreTrainedModel, given: Mapping[str, Any]) -> None:
    """Raise PromptTuningError if the backbone's `forward` does not take an argument, or its name is misspelled.

    A `forward` that takes any keyword (Llama's) does nothing with one that it does not know. What layers and kernels
    read of those is in no signature, so only a name that is nearly a known one is refused.
    """
    parameters = inspect.signature(backbone.forward).parameters.values()
    names = {parameter.name for parameter in parameters}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    known = {*names, *KNOWN, *TOKEN_TYPES, *PER_TOKEN, *STATES, *DECODER, *CACHE_NAMES}
    for name in given:
        if name in names or (takes_any and name in known):
            continue
        near = get_close_matches(name, sorted(names.union(KNOWN, CACHE_NAMES)), 1, cutoff=SIMILAR)
        if near or not takes_any:
            advice = f"did you mean {near[0]}?" if near else "leave it out."
            raise PromptTuningError(f"{name} is given, and {type(backbone).__name__} takes no such argument; {advice}")


def _positions(
    backbone: PreTrainedModel, given: Mapping[str, Any], input_ids: Tensor | None, mask: Tensor
) -> dict[str, Tensor]:
    """Return the positions of texts with pictures on each axis, [B, T, axes]; empty where positions are counted.

    They are counted as if no prompt stood before the texts.
    """
    counting = with_own_positions(backbone)
    media = [name for name in given if MEDIA.search(name) or name == POSITIONS]
    if counting is None or not media:
        return {}
    # Called directly, so that no state is kept for another call or read from it.
    count = getattr(counting, "get_rope_index", None)
    wanted = set(inspect.signature(count).parameters) - {"kwargs"} if count else set()
    uncountable = not wanted or wanted - GRIDS
    if POSITIONS not in given and (uncountable or input_ids is None or "mm_token_type_ids" not in given):
        ids = "input_ids and mm_token_type_ids (the processor gives both)"
        needs = "the text alone" if uncountable else ids
        raise PromptTuningError(
            f"{media[0]} is given, by which {type(backbone).__name__} counts positions, and they cannot be counted "
            f"behind a prompt from what is given; give {needs}."
        )
    if (axes := given.get(POSITIONS)) is None:
        if bool((given["mm_token_type_ids"].bool() & ~mask).any()):
            raise PromptTuningError(
                f"attention_mask is 0 on tokens of {media[0]}, and {type(backbone).__name__} would count positions "
                "by the next picture in place of these; leave masked pictures out of the ids and of "
                f"{media[0]}."
            )
        grids = {name: given[name] for name in wanted & given.keys()}
        try:
            axes = count(input_ids, **grids, attention_mask=mask.long())[0]
        except torch.OutOfMemoryError:  # Accelerate looks for a smaller batch
            raise
        except (ValueError, RuntimeError, IndexError, TypeError, StopIteration) as error:
            raise PromptTuningError(
                f"{media[0]} is given, and {type(backbone).__name__} cannot count positions of its pictures: "
                f"{sentence(first_line(error))} Give all that its processor makes of the same rows, and write a text "
                "between two pictures."
            ) from error
    return {POSITIONS: axes.permute(1, 2, 0)}


def _check_pictures_stay(backbone: PreTrainedModel, media: list[str], input_ids: Tensor | None, mask: Tensor) -> None:
    """Raise PromptTuningError for masked pictures among texts that the backbone itself puts pictures into.

    Masked tokens are moved behind the others, so that their pictures would change places with these.
    """
    token = getattr(backbone.config, "image_token_id", None)
    if media and input_ids is not None and token is not None and bool(((input_ids == token) & ~mask).any()):
        raise PromptTuningError(
            f"attention_mask is 0 on tokens of {media[0]}, which pictures would change places with; leave masked "
            "pictures out of the ids and of the pictures."
        )


def _taken(backbone: PreTrainedModel, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are not None, after a check that the backbone takes them and none is a state."""
    given = {name: value for name, value in arguments.items() if value is not None}
    check_taken(backbone, given)
    if states := [name for name in (*STATES, *CACHE_NAMES) if name in given and name != cache_name(backbone)]:
        raise PromptTuningError(
            f"{states[0]} is given, and a prompt stands in front of each call's texts; give the whole texts without "
            "it, or use generate."
        )
    return given


def _check_columns(backbone: PreTrainedModel, given: Mapping[str, Any], texts: torch.Size) -> None:
    for name, value in given.items():
        if name in TOKEN_TYPES:
            if not isinstance(value, Tensor) or value.shape != texts:
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise PromptTuningError(f"{name} has shape {shape}; give {list(texts)}, a value for each token.")
        elif name in PER_TOKEN or (
            isinstance(value, Tensor)
            and value.shape[:2] == texts
            and takes(backbone, name)
            and not MEDIA.search(name)
            and not name.startswith("encoder_")
            and name not in ("logits_to_keep", "shift_labels")
        ):
            raise PromptTuningError(
                f"{name} is given, with a value for each token, and a prompt's vectors have none; leave it out."
            )


def _check_media(backbone: PreTrainedModel, given: Mapping[str, Any]) -> None:
    media = [name for name in given if MEDIA.search(name)]
    if not media:
        return
    merging = any(
        hasattr(module, name)
        for module in (backbone, backbone.base_model, getattr(backbone, "model", None))
        for name in ("get_placeholder_mask", "inputs_merger")
    )
    sound = [name for name in media if SOUND.search(name)]
    if sound or not merging or has_per_layer_inputs(backbone):
        # With embedded tokens, many models silently ignore all media.
        raise PromptTuningError(
            f"{(sound or media)[0]} is given, and {type(backbone).__name__} is not known to put it among embedded "
            "tokens, as those behind a prompt are; give the text alone, or another backbone."
        )

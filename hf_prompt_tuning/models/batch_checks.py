"""Hold the texts and the targets of a call, and check them before anything is computed: shapes, dtypes, ids."""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.encoding import check_ids
from ..errors import PromptTuningError
from ..layouts.base import IGNORED, Examples, Prompts
from ..layouts.label_search import LabelSearch
from ..layouts.traits import tabled_positions, with_own_positions
from .distillation import LabelDistillation, TokenDistillation

BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Arguments with the boundaries of a packed row's examples, as collators without padding return them."""

NO_PROMPT = "__base__"
"""PEFT's name for a row without an adapter."""


@dataclass(frozen=True)
class Texts:
    """The texts of a call, without their prompts.

    Attributes:
        input_ids: [B, T] long, or None.
        attention_mask: [B, T], zero on pads, or None.
        inputs_embeds: [B, T, H], in place of `input_ids`.
        adapter_names: the prompt of all rows or of each row; None for the active one.
    """

    input_ids: Tensor | None
    attention_mask: Tensor | None
    inputs_embeds: Tensor | None
    adapter_names: str | Sequence[str] | None

    @property
    def shape(self) -> torch.Size:
        """Return [B, T]."""
        return (self.input_ids if self.inputs_embeds is None else self.inputs_embeds).shape[:2]

    def look_padded(self, backbone: PreTrainedModel) -> bool:
        """Tell whether rows without a mask begin or end with the pad token."""
        if self.attention_mask is not None or self.input_ids is None:
            return False
        pad = getattr(backbone.config.get_text_config(), "pad_token_id", None)
        return pad is not None and bool((self.input_ids[:, [-1, 0][: self.shape[1]]] == pad).any())


@dataclass(frozen=True)
class Targets:
    """What a call of `forward` predicts, and how it scores that.

    `labels_of_heads` are the labels of the tokens of the heads with which rows begin, [B, h] long, or None.
    `distillation` is what a teacher predicts for the batch. See `forward` for the other attributes.
    """

    labels: Tensor | None = None
    only_labelled: bool = False
    candidates: Sequence[Sequence[int]] | None = None
    num_items_in_batch: Tensor | int | None = None
    label_smoothing: float = 0.0
    shift_labels: Tensor | None = None
    fused_lm_head: bool = False
    labels_of_heads: Tensor | None = None
    distillation: TokenDistillation | LabelDistillation | None = None
    search: LabelSearch | None = None


def check_texts(backbone: PreTrainedModel, texts: Texts, mask: Tensor | None) -> None:
    """Raise PromptTuningError if the texts are not [B, T] ids, or [B, T, H] embeddings of the backbone's width.

    The mask must be [B, T] of 0 and 1, or None.
    """
    if (texts.input_ids is None) == (texts.inputs_embeds is None):
        raise PromptTuningError("give either input_ids or inputs_embeds (of the text alone, without the prompt).")
    if texts.input_ids is not None:
        _check_ids(texts.input_ids)
    else:
        _check_embeds(texts.inputs_embeds, backbone.get_input_embeddings().embedding_dim)
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.shape != texts.shape:
        raise PromptTuningError(
            f"attention_mask has shape {_shape(mask)}, and the texts are {list(texts.shape)}; "
            "give one of [B, T]: the layout makes any other."
        )
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise PromptTuningError(
            f"attention_mask holds {_first(mask, (mask != 0) & (mask != 1))}; give 1 on tokens and 0 on pads."
        )


def check_adapter_names(adapter_names: Sequence[str], rows: int, prompts: Collection[str]) -> None:
    """Raise PromptTuningError if there is not one name for each row, or a name is not one of the model's prompts.

    A set of names has no order, and a generator no length.
    """
    if isinstance(adapter_names, Set) or not hasattr(adapter_names, "__len__"):
        raise PromptTuningError(f"adapter_names is a {type(adapter_names).__name__}; give a list with a name a row.")
    if len(adapter_names) != rows:
        raise PromptTuningError(f"adapter_names has {len(adapter_names)} names for {rows} rows; give one a row.")
    if unknown := [name for name in adapter_names if name not in prompts and name != NO_PROMPT]:
        raise PromptTuningError(
            f"adapter_names has {unknown[0]!r}; there are {', '.join(map(repr, prompts))}, and {NO_PROMPT!r} for none."
        )


def check_left_out(arguments: Mapping[str, Any], allowed: Iterable[str] = ()) -> None:
    """Raise PromptTuningError for an argument that the layouts do not take: not None, and not in `allowed`."""
    if others := [name for name, value in arguments.items() if value is not None and name not in allowed]:
        raise PromptTuningError(f"{others[0]} is given with only_labelled or candidates; leave it out.")


def check_one_goal(targets: Targets) -> None:
    """Raise PromptTuningError if labels are given beside candidates, or a search without candidates."""
    if targets.candidates is None:
        if targets.search is not None:
            raise PromptTuningError("search is given without candidates, among which it finds the best; give both.")
        return
    for name in ("labels", "shift_labels", "only_labelled"):
        value = getattr(targets, name)
        # What goes with TRL's head is checked by itself.
        if value is not None and value is not False and not targets.fused_lm_head:
            raise PromptTuningError(f"{name} is given with candidates, which alone are scored; leave one of them out.")


def check_targets(targets: Targets) -> None:
    """Raise PromptTuningError if `label_smoothing` is no share, or only labelled tokens are asked for without any."""
    smoothing = targets.label_smoothing
    if not isinstance(smoothing, int | float) or not 0 <= smoothing <= 1:
        raise PromptTuningError(f"label_smoothing is {smoothing!r}; give a share of the loss, from 0 to 1.")
    if targets.only_labelled and targets.labels is None and targets.shift_labels is None:
        raise PromptTuningError("only_labelled is given without labels; give labels, or leave it out.")


def check_labels(
    backbone: PreTrainedModel, labels: Tensor | None, shape: torch.Size | None, rows: int
) -> Tensor | None:
    """Return the labels as long, or None.

    `shape` is [B, T] of a causal backbone's texts; None for an encoder-decoder, whose targets may have another width.
    Raise PromptTuningError if the labels have another shape or dtype, or are not in the backbone's vocabulary.
    """
    if labels is None:
        return None
    wrong = not isinstance(labels, Tensor) or labels.dim() != 2 or len(labels) != rows
    if wrong or (labels.shape[1] == 0 if shape is None else labels.shape != shape):
        wanted = f"[{rows}, T'], a row for each text" if shape is None else f"{list(shape)}, a label for each token"
        raise PromptTuningError(f"labels has shape {_shape(labels)}; give {wanted} (-100 where there is none).")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise PromptTuningError(f"labels has dtype {labels.dtype}; give token ids in whole numbers (torch.long).")
    check_tensor(labels[labels != IGNORED], vocabulary(backbone), "labels have")
    return labels.long()


def check_tensor(ids: Tensor, rows: int, what: str) -> None:
    """Raise PromptTuningError if an id of a tensor of any shape is not a row of the embedding, as `check_ids` does."""
    if ids.numel() and not ids.is_meta:
        low, high = torch.stack(ids.aminmax()).tolist()
        if low < 0 or high >= rows:
            check_ids([low, high], rows, what)


def check_unpacked(kwargs: dict[str, Any]) -> None:
    """Raise PromptTuningError for a packed row's boundaries: its examples would share one prompt, before the first."""
    if given := [name for name in BOUNDARIES if kwargs.get(name) is not None]:
        raise PromptTuningError(
            f"{given[0]} is given, so several examples are packed into a row, and only the first would stand behind "
            "the prompt. Turn packing and padding_free off; PromptTuningTrainer packs by itself."
        )


def check_candidates(candidates: Sequence[Sequence[int]]) -> None:
    """Raise PromptTuningError if there are no candidates, or one is not a list of token ids."""
    if isinstance(candidates, Set) or not hasattr(candidates, "__len__"):
        raise PromptTuningError(f"candidates is a {type(candidates).__name__}; give a list of lists of token ids.")
    for words in candidates if len(candidates) else ((),):
        ids = words.tolist() if isinstance(words, Tensor) else words
        if not isinstance(ids, Sequence) or not ids or not all(type(i) is int for i in map(_number, ids)):
            raise PromptTuningError(f"candidates has {ids!r}; give lists of one token id or more.")


def check_search(targets: Targets, rows: int, labels: int) -> None:
    """Raise PromptTuningError if a search asks for what B rows with L labels cannot have."""
    if (search := targets.search) is None:
        return
    if targets.distillation is not None:
        raise PromptTuningError("search is given with distillation, which needs all labels' scores; leave it out.")
    if not isinstance(search, LabelSearch):
        raise PromptTuningError(f"search is {search!r}; give a LabelSearch, as LabelSearch(top_k=1).")
    if type(search.top_k) is not int or search.top_k < 1:
        raise PromptTuningError(f"search.top_k is {search.top_k!r}; give 1 or more labels.")
    for name, dtypes in (("required", (torch.long, torch.int32)), ("temperatures", (torch.float32, torch.float64))):
        value = getattr(search, name)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.shape != (rows,) or value.dtype not in dtypes:
            got = f"{_shape(value)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise PromptTuningError(f"search.{name} is {got}; give a tensor of [{rows}] {dtypes[0]}, one a row.")
    if search.required is not None and bool(((search.required < -1) | (search.required >= labels)).any()):
        wrong = _first(search.required, (search.required < -1) | (search.required >= labels))
        raise PromptTuningError(f"search.required has {wrong}; give indices of the {labels} candidates, or -1.")
    if search.temperatures is not None and not bool((search.temperatures > 0).all()):
        wrong = _first(search.temperatures, ~(search.temperatures > 0))
        raise PromptTuningError(f"search.temperatures has {wrong}; give positive numbers.")
    if not 0 <= search.tolerance < 1:
        raise PromptTuningError(f"search.tolerance is {search.tolerance}; give a share from 0 to less than 1.")


def _number(value: Any) -> Any:
    """Convert a NumPy number, or a tensor with one element, to a Python number."""
    return value.item() if hasattr(value, "item") else value


def check_positions(
    backbone: PreTrainedModel, arguments: dict[str, Any], texts: torch.Size, mask: Tensor | None
) -> None:
    """Remove `position_ids` from the arguments if they are the default ones, which every layout sets itself.

    The positions of a backbone that counts them with images are kept. `texts` is [B, T]. Raise PromptTuningError if
    they have another shape, or do not count each row's tokens from 0.
    """
    position_ids = arguments.get("position_ids")
    check_is_tensor(position_ids, "position_ids")
    if position_ids is None or (position_ids.dim() == 3 and with_own_positions(backbone) is not None):
        return
    del arguments["position_ids"]
    mask = torch.ones(texts, dtype=torch.bool, device=position_ids.device) if mask is None else mask.bool()
    natural = mask.long().cumsum(-1) - 1
    # As in transformers, all rows may share one row of positions.
    fit = (
        position_ids.dim() in (2, 3) and position_ids.shape[-1] == texts[1] and position_ids.shape[-2] in (1, texts[0])
    )
    if not fit or not all(
        torch.equal(axis.expand_as(natural)[mask], natural[mask])
        for axis in position_ids.reshape(-1, *position_ids.shape[-2:])
    ):
        raise PromptTuningError(
            "position_ids are given that do not count each row's tokens from 0 (packed rows, perhaps). "
            "Give one example a row, without position_ids."
        )


def check_is_tensor(value: Any, name: str) -> None:
    """Raise PromptTuningError if an argument is neither a tensor nor None."""
    if value is not None and not isinstance(value, Tensor):
        raise PromptTuningError(f"{name} is a {type(value).__name__}; give a tensor, or leave it out.")


def check_stands_behind_something(prompts: Prompts, examples: Examples) -> None:
    """Raise PromptTuningError if a row has neither a prompt nor a token, which would predict what is asked for."""
    empty = (prompts.lengths() == 0) & ~examples.mask.any(1)
    if bool(empty.any()):
        raise PromptTuningError(
            f"row {int(empty.nonzero()[0])} has no token and no prompt, and nothing predicts what stands behind it; "
            "give it a token (BOS), or a prompt."
        )


def check_room(backbone: PreTrainedModel, columns: int, prompt: int) -> None:
    """Raise PromptTuningError if a row of so many columns is longer than the backbone's table of positions.

    `prompt` is how many of the columns are a prompt's.
    """
    limit = tabled_positions(backbone)
    if limit is not None and columns > limit:
        raise PromptTuningError(
            f"a row has {columns} tokens with its prompt, and {type(backbone).__name__} has positions for {limit}; "
            f"shorten texts to {limit - prompt} tokens."
        )


def check_rooms(backbone: PreTrainedModel, prompts: Prompts, examples: Examples) -> None:
    """Raise PromptTuningError as `check_room` does, if a row's own tokens, without pads, are too many."""
    longest = max(map(len, prompts.vectors)) + examples.mask.shape[1]
    if longest > (tabled_positions(backbone) or longest):
        lengths = prompts.lengths() + examples.mask.sum(1)
        row = int(lengths.argmax())
        check_room(backbone, int(lengths[row]), int(prompts.lengths()[row]))


def vocabulary(backbone: PreTrainedModel) -> int:
    """Return the number of tokens that the backbone predicts."""
    # Not read from the weight's shape: a quantized weight does not have it.
    size = getattr(backbone.get_output_embeddings(), "out_features", None)
    return size or backbone.config.get_text_config().vocab_size


def _check_ids(ids: Tensor) -> None:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not len(ids):
        raise PromptTuningError(
            f"input_ids has shape {_shape(ids)}; give a tensor of [B, T] with one row or more "
            "(input_ids[None] of a single row)."
        )
    if ids.dtype not in (torch.long, torch.int32):
        raise PromptTuningError(f"input_ids has dtype {ids.dtype}; give token ids in whole numbers (torch.long).")


def _check_embeds(embeds: Tensor, width: int) -> None:
    if not isinstance(embeds, Tensor) or embeds.dim() != 3 or not len(embeds) or embeds.shape[-1] != width:
        raise PromptTuningError(
            f"inputs_embeds has shape {_shape(embeds)}; give a tensor of [B, T, {width}] with one row or more."
        )
    if not embeds.is_floating_point():
        raise PromptTuningError(f"inputs_embeds has dtype {embeds.dtype}; give embedded tokens, or input_ids.")


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, Tensor) else f"none (a {type(value).__name__})"


def _first(values: Tensor, where: Tensor) -> Any:
    return values[where][0].item()

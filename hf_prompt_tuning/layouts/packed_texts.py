"""Pack the rows of an encoder without pads, each text behind its own copy of the prompt.

For P = 2 and texts of four, one and two tokens, in two rows:

    row 0   p0 p1 a0 a1 a2 a3 ·         an encoder's token sees all tokens of its own prompt and text, and no others
    row 1   p0 p1 c0 c1 p0 p1 b0
    position 0  1  2  3  0  1  2

In an encoder the prompt's own states depend on the text, so it is computed with each. What is saved are the pads. Rows
are filled evenly. They are not much longer than the longest text, because attention costs the square of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import first_line
from .check import HALF_TOLERANCE, TOLERANCE
from .traits import takes

PACKS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "modernbert")
"""Encoders that take positions and a mask of our own, and whose layers read nothing else of a column's place."""
ROW = 512
"""How many tokens a packed row has room for, if no text is longer."""
SAVED = 0.95
"""Rows are packed if this part of the padded rows' columns is left, or less."""


def why_padded(backbone: PreTrainedModel) -> str:
    """Return why packed rows are not known to be exact for a backbone with its current attention implementation.

    The result is an empty string if they are.
    """
    config, attention = backbone.config, backbone.config._attn_implementation
    reasons = {
        f"of encoders, {', '.join(PACKS)} are known to read packed rows": config.model_type not in PACKS,
        "the model reads from left to right": getattr(config, "is_decoder", False),
        f"{attention} takes no mask of our own": attention not in ("sdpa", "eager"),
        "the model takes no position_ids": not takes(backbone.base_model, "position_ids"),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def difference(backbone: PreTrainedModel, rows: dict[str, Any]) -> str:
    """Return how packed rows differ from padded ones of a batch, or an empty string if they do not.

    The states of its longest and its shortest row are compared, both in one packed row.
    """
    lengths = rows["attention_mask"].sum(1)
    pair = torch.stack([lengths.argmax(), lengths.argmin()])
    batch = len(lengths)
    two = {name: value[pair] if _is_of_rows(value, batch) else value for name, value in rows.items()}
    mask, base = two["attention_mask"].bool(), backbone.base_model
    packed = PackedTexts.of(mask, int(mask.sum()), part=2.0)
    with torch.no_grad():
        expected = base(**two).last_hidden_state[mask].float()
        try:
            found = packed.unpacked(base(**packed.inputs(backbone, two)).last_hidden_state)[mask].float()
        except Exception as error:  # whatever the model's code raises, padded rows still work
            return f"{type(error).__name__}: {first_line(error)}"
    exact = expected.device.type == "cpu" and backbone.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    return "" if error <= (TOLERANCE if exact else HALF_TOLERANCE) else f"its states differ by {error:.1e}"


def _is_of_rows(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1 and len(value) == batch


@dataclass(frozen=True)
class PackedTexts:
    """Where the tokens of padded rows stand in packed rows.

    Attributes:
        mask: [B, N] bool, True on the real tokens of the padded rows, which have their pads at the right.
        places: [B, N] long, the token's place among those of all packed rows, row by row; any place for a pad.
        shape: the number of packed rows, and their columns.
    """

    mask: Tensor
    places: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: Tensor, max_tokens: int | None = None, part: float = SAVED) -> "PackedTexts | None":
        """Return the places of rows with a mask [B, N]; None if more than a part of their columns is left.

        `max_tokens` is how many tokens a packed row has room for; a longer text is a row.
        """
        lengths = mask.sum(1).tolist()
        rows, starts = _placed(lengths, max(max(lengths), max_tokens or ROW))
        fills = [0] * (max(rows) + 1)
        for row, start, length in zip(rows, starts, lengths, strict=True):
            fills[row] = max(fills[row], start + length)
        shape = len(fills), max(fills)
        if shape[0] * shape[1] > part * mask.numel():
            return None
        first = torch.tensor(rows) * shape[1] + torch.tensor(starts)
        columns = torch.arange(mask.shape[1], device=mask.device)
        places = (first.to(mask.device)[:, None] + columns).masked_fill(~mask.bool(), 0)
        return cls(mask.bool(), places, shape)

    def packed(self, values: Tensor) -> Tensor:
        """Move values of padded rows ([B, N, ...]) to packed rows. Where no token is, they are 0."""
        flat = values.new_zeros(self.shape[0] * self.shape[1], *values.shape[2:])
        return flat.index_put((self.places[self.mask],), values[self.mask]).unflatten(0, self.shape)

    def unpacked(self, values: Tensor) -> Tensor:
        """Move values of packed rows to padded ones, [B, N, ...]. Those of pads are of no meaning."""
        return values.flatten(0, 1)[self.places]

    def inputs(self, backbone: PreTrainedModel, rows: dict[str, Any]) -> dict[str, Any]:
        """Return an encoder's arguments for packed rows, from those for padded rows."""
        batch, width = self.mask.shape
        numbers = torch.arange(1, batch + 1, device=self.mask.device)[:, None].expand(batch, width)
        columns = torch.arange(width, device=self.mask.device).expand(batch, width)
        moved = {
            name: self.packed(value) if isinstance(value, Tensor) and value.shape[:2] == self.mask.shape else value
            for name, value in rows.items()
            if name != "attention_mask"
        }
        # A place without a token sees the others of its row that have none: a softmax over nothing is NaN.
        texts, positions = self.packed(numbers), self.packed(columns)
        sees = texts[:, :, None] == texts[:, None, :]
        first = _first_position(backbone)
        masks = self._masks(backbone, sees, moved["inputs_embeds"].dtype)
        return moved | {"attention_mask": masks, "position_ids": positions + first}

    def _masks(self, backbone: PreTrainedModel, sees: Tensor, dtype: torch.dtype) -> Any:
        config = backbone.config
        if config.model_type != "modernbert":
            return _in_form(backbone, sees, dtype)
        columns = torch.arange(self.shape[1], device=sees.device)
        near = (columns[:, None] - columns).abs() <= config.sliding_window
        return {
            "full_attention": _in_form(backbone, sees, dtype),
            "sliding_attention": _in_form(backbone, sees & near, dtype),
        }


def _placed(lengths: list[int], longest: int) -> tuple[list[int], list[int]]:
    """Return the packed row of each padded row, and the column in which it begins there.

    There are as few rows as tokens need in rows of `longest`; each in turn, the longest first, goes to the emptiest.
    """
    fills = [0] * -(-sum(lengths) // longest)
    rows, starts = [0] * len(lengths), [0] * len(lengths)
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        rows[b] = fills.index(min(fills))
        starts[b] = fills[rows[b]]
        fills[rows[b]] += lengths[b]
    return rows, starts


def _first_position(backbone: PreTrainedModel) -> int:
    """Return the position of a row's first token, which in RoBERTa stands behind the pad's id."""
    table = getattr(backbone.base_model.embeddings, "position_embeddings", None)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def _in_form(backbone: PreTrainedModel, sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask [rows, N, N] bool in the form that the attention implementation takes."""
    mask = sees[:, None]
    if backbone.config._attn_implementation == "sdpa":
        return mask
    # Eager attention would silently add a bool mask to the scores, as 0 and 1.
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, torch.finfo(dtype).min)

"""Check where answers stand in texts, and compute the loss of finding them."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from .class_labels import WHOLE


def checked_answers(starts: Tensor | None, ends: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the columns of B answers' first and last tokens, [B] long, `IGNORED` for one beyond the row; or None.

    `mask` [B, T] is True on real tokens. As in transformers, a column of T or more is of a text that was cut before
    its answer, and is left out. Raise PromptTuningError for a column below 0, one of a pad, or one side alone.
    """
    if starts is None and ends is None:
        return None
    given = {"start_positions": starts, "end_positions": ends}
    if missing := [name for name, value in given.items() if value is None]:
        raise PromptTuningError(f"{missing[0]} is missing beside the other; give both, or none.")
    return _checked("start_positions", starts, mask), _checked("end_positions", ends, mask)


def _checked(name: str, positions: Tensor, mask: Tensor) -> Tensor:
    rows, width = mask.shape
    shape = list(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
    if shape not in ([rows], [rows, 1]) or positions.dtype not in WHOLE:
        raise PromptTuningError(
            f"{name} has shape {shape} and dtype {getattr(positions, 'dtype', None)}; give whole numbers (torch.long) "
            f"of [{rows}], a column of each row."
        )
    columns = positions.reshape(rows).long()
    beyond = columns >= width
    inside = columns.masked_fill(beyond, 0)
    on_pad = ~beyond & ((columns < 0) | ~mask.gather(1, inside.clamp(min=0)[:, None])[:, 0])
    if bool(on_pad.any()):
        row = int(on_pad.nonzero()[0])
        what = "below 0" if int(columns[row]) < 0 else "a pad"
        raise PromptTuningError(
            f"{name} of row {row} is {int(columns[row])}, which is {what}; give the column in the padded batch (pads "
            f"at the left move a text's columns), or {width} or more to leave the row out."
        )
    return columns.masked_fill(beyond, IGNORED)


def answer_loss(logits: Tensor, positions: Tensor, items: Tensor | int | None) -> Tensor:
    """Return the mean cross-entropy of the columns, or their sum divided by `items`; 0 if there are none.

    `logits` [B, T] are of columns, so low on pads that they have no share in the softmax; `positions` are [B] long,
    `IGNORED` where there is none.
    """
    total = cross_entropy(logits.float(), positions, ignore_index=IGNORED, reduction="sum")
    count = (positions != IGNORED).sum() if items is None else torch.as_tensor(items, device=total.device)
    return total / count.clamp(min=1)

"""Put a copy of the prompt in front of every example, with pads at the end: the reference layout.

For P = 2 and two examples, of four and of two tokens (columns are positions, `·` is a pad):

    row 0   p0 p1 a0 a1 a2 a3
    row 1   p0 p1 b0 b1 ·  ·

It computes B·(P+T) tokens and needs only `inputs_embeds` from the model.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .base import (
    IGNORED,
    Candidates,
    Examples,
    LabelledLogits,
    Prompts,
    predicted_at_once,
    predictions_at,
    take_columns,
    token_inputs,
)
from .traits import positions_of_pads, text_positions

POSITIONS = "position_ids"
"""The values beside tokens that count on from a prompt's. Others are token types, of which 0 is plain text."""


def padded_rows(prompts: Prompts, examples: Examples, pads: str = "right") -> tuple[Tensor, Tensor]:
    """Return rows `[prompt | text | pads]`, or `[pads | prompt | text]` if `pads` is "left" (as generation needs).

    Prompts are cast to the embeddings' dtype here, where they are joined. Return inputs_embeds [B, P+T, H] and
    attention_mask [B, P+T] long. P is the longest prompt's length.
    """
    dtype = examples.embeds.dtype
    if len(prompts.vectors) == 1:
        heads = prompts.vectors[0].to(dtype).expand(len(prompts.of_row), -1, -1)
    else:
        heads = pad_sequence([v.to(dtype) for v in prompts.vectors], batch_first=True, padding_side="left")[
            prompts.of_row
        ]
    embeds, mask = torch.cat([heads, examples.embeds], dim=1), row_mask(prompts, examples)
    if not bool(mask.all()):
        rows = Examples.align(embeds, mask)
        embeds, mask = rows.embeds, rows.mask
        if pads == "left":
            order = torch.argsort(mask, dim=1, stable=True)
            embeds, mask = take_columns(embeds, order), mask.gather(1, order)
    return embeds, mask.long()


def row_inputs(backbone: nn.Module, prompts: Prompts, examples: Examples, pads: str = "right") -> dict[str, Tensor]:
    """Return the backbone's arguments for whole rows, those of `padded_rows`."""
    embeds, mask = padded_rows(prompts, examples, pads)
    positions = text_positions(backbone, mask) or positions_of_pads(backbone, mask)
    inputs = token_inputs(backbone, embeds) | positions | beside_rows(prompts, examples, pads)
    return inputs | {"attention_mask": mask}


def beside_rows(prompts: Prompts, examples: Examples, pads: str = "right") -> dict[str, Tensor]:
    """Return the arguments of a backbone for what stands beside each token (`Examples.beside`) of `padded_rows`.

    A prompt has token type 0, [B, P+T]. On each axis of positions it has 0 … P-1, and the text's own positions follow,
    [axes, B, P+T].
    """
    arguments = {}
    for name, values in examples.beside.items():
        lengths, counts = prompts.lengths(), name == POSITIONS
        own = [torch.arange(len(vectors)).to(values) * counts for vectors in prompts.vectors]
        heads = Prompts(tuple(column[:, None].expand(-1, values.shape[2]) for column in own), prompts.of_row)
        texts = Examples(values + lengths[:, None, None] * counts, examples.mask)
        rows, mask = padded_rows(heads, texts, pads)
        rows = rows * mask[..., None]
        arguments[name] = rows.permute(2, 0, 1) if counts else rows[..., 0]
    return arguments


def beside_words(sources: Examples, words: int) -> dict[str, Tensor]:
    """Return what stands beside so many words after each source, [B, W, C]: plain text, whose positions count on."""
    beside = {}
    for name, values in sources.beside.items():
        new = values.new_zeros(len(values), words, values.shape[2])
        if name == POSITIONS:
            last = values.masked_fill(~sources.mask[..., None], -1).amax((1, 2))
            new = new + last[:, None, None] + 1 + torch.arange(words, device=new.device)[:, None]
        beside[name] = new
    return beside


def row_mask(prompts: Prompts, examples: Examples) -> Tensor:
    """Return the mask of rows `[pads | prompt | text | pads]`, [B, P+T] bool. Every text starts in the same column."""
    lengths = prompts.lengths()
    columns = torch.arange(max(map(len, prompts.vectors)), device=lengths.device)
    return torch.cat([columns >= len(columns) - lengths[:, None], examples.mask], dim=1)


def is_moved(prompts: Prompts, examples: Examples) -> bool:
    """Tell whether `padded_rows` moves tokens to other columns than P+t of the caller's column t."""
    return examples.order is not None or len(set(map(len, prompts.vectors))) > 1


def in_caller_columns(x: Tensor, prompts: Prompts, examples: Examples) -> Tensor:
    """Move the backbone's outputs for padded rows ([B, P+T, ...]) to the columns of the caller's batch.

    Column P+t is the input's column t, and column P-1 is a prompt's last vector, whatever the prompts' lengths.
    """
    mask = row_mask(prompts, examples)
    moved = Examples.align(mask.unsqueeze(-1), mask).order
    if moved is not None:
        x = take_columns(x, torch.argsort(moved, dim=1))
    if examples.order is None:
        return x
    start = x.shape[1] - examples.mask.shape[1]
    text = take_columns(x[:, start:], torch.argsort(examples.order, dim=1))
    return torch.cat([x[:, :start], text], dim=1)


def as_padded(x: Tensor, prompts: Prompts, examples: Examples) -> Tensor:
    """Undo `in_caller_columns`: move its result ([B, P+T, ...]) back to the columns of padded rows."""
    if examples.order is not None:
        start = x.shape[1] - examples.mask.shape[1]
        x = torch.cat([x[:, :start], take_columns(x[:, start:], examples.order)], dim=1)
    return Examples.align(x, row_mask(prompts, examples)).embeds


def predicting_columns(prompts: Prompts, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns ([K] long each) of the positions that predict the labels [B, T], in padded rows.

    The token at column t of an example is at column P+t of its row; the column before it predicts it.
    """
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    return rows, prompts.lengths()[rows] + columns - 1


def labels_where_predicted(prompts: Prompts, examples: Examples) -> Tensor:
    """Put each label in the column that predicts it, [B, P+T] long, for a model that does not shift labels itself."""
    rows, columns = predicting_columns(prompts, examples.labels)
    batch, length = examples.labels.shape
    shifted = examples.labels.new_full((batch, max(map(len, prompts.vectors)) + length), IGNORED)
    shifted[rows, columns] = examples.labels[examples.labels != IGNORED]
    return shifted


class PaddedLayout:
    """Reference layout, which tests compare the other layouts with. See the module's docstring."""

    name = "padded"

    def labelled_logits(self, backbone: nn.Module, prompts: Prompts, examples: Examples) -> LabelledLogits:
        """Return the labelled tokens' predictions, [K, V]."""
        rows, columns = predicting_columns(prompts, examples.labels)
        inputs = row_inputs(backbone, prompts, examples)
        outputs = predictions_at(backbone, rows, columns, **inputs, use_cache=False)
        return LabelledLogits(outputs.logits[0], examples.labels[examples.labels != IGNORED], rows)

    def candidate_scores(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Tensor:
        """Return the scores, [B, L], from passes of B rows or fewer for each candidate."""
        scores, limit = [], predicted_at_once(backbone)
        for ids, embeds in zip(candidates.ids, candidates.embeds, strict=True):
            parts = []
            for rows in torch.arange(len(sources.mask)).split(max(limit // len(ids), 1)):
                rows = rows.to(sources.mask.device)
                behind = replace(prompts, of_row=prompts.of_row[rows])
                examples = continued(sources.select(rows), ids, embeds)
                parts.append(self.labelled_logits(backbone, behind, examples).log_likelihood(len(rows)))
            scores.append(torch.cat(parts))
        return torch.stack(scores, dim=1)

    def searches(self, backbone: nn.Module) -> bool:
        """Return False: every label is computed."""
        return False


def continued(sources: Examples, ids: Tensor, embeds: Tensor) -> Examples:
    """Append the same words (`ids` [W] long, `embeds` [W, H]) to every source, and label them."""
    batch = len(sources.mask)
    return Examples.align(
        torch.cat([sources.embeds, embeds.to(sources.embeds.dtype).expand(batch, -1, -1)], dim=1),
        torch.cat([sources.mask, sources.mask.new_ones(batch, len(ids))], dim=1),
        torch.cat([torch.full(sources.mask.shape, IGNORED, device=ids.device), ids.expand(batch, -1)], dim=1),
        {name: torch.cat([sources.beside[name], new], 1) for name, new in beside_words(sources, len(ids)).items()},
    )

"""Take the heads of prompts off the rows of a call, and move the outputs back to the caller's columns.

A prompt may stand behind fixed tokens, its head: BOS, or what a chat template writes before the system text. Their
embeddings are the prompt's first vectors. A caller's ids may begin with the head (a tokenizer or a chat template wrote
it) or not. For h = 2, P = 2 and a text of two tokens:

    ids           h0 h1 a0 a1           a0 a1
    backbone      h0 h1 p0 p1 a0 a1     h0 h1 p0 p1 a0 a1
    outputs       h1 p0 h0 p1 a0 a1     p0 p1 a0 a1         P+T columns, of which the last T are those of the ids

So the output in the column of a token is the prediction of the next one, as everywhere, and what is left over stands
in the first P columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ..data.heads import why_part_of_head
from ..errors import PromptTuningError
from ..layouts import Prompts
from ..layouts.base import IGNORED, take_columns
from ..layouts.traits import takes
from .batch_checks import Texts
from .call_arguments import MEDIA, TOKEN_TYPES
from .continuing import MARK, CacheContent
from .outputs import moved

NOT_OF_TOKENS = ("labels", "logits_to_keep")


@dataclass(frozen=True)
class RowHeads:
    """The heads of a batch whose prompts have some.

    Attributes:
        lengths: [B] long, h: the length of each row's head.
        virtual: [B] long, P: the number of trained vectors of each row's prompt.
        widths: the longest prompt's length with its head, and without it.
        taken: [B, T] bool, True on the tokens of the heads with which the caller's rows begin.
        kept: [B, T'] long, the caller's columns of the text that is left; masked tokens of heads may be at the end.
            None if no row begins with its head. The rows of one prompt all do or none does.
        ids: the caller's, [B, T], or None.
        real: [B, T] bool, the caller's mask.
        doubled: whether the text behind a row's head begins with the head's first token again.
    """

    lengths: Tensor
    virtual: Tensor
    widths: tuple[int, int]
    taken: Tensor
    kept: Tensor | None
    ids: Tensor | None
    real: Tensor
    doubled: bool = False

    @property
    def columns(self) -> int:
        """Return T, the number of the caller's columns."""
        return self.taken.shape[1]

    @property
    def given(self) -> Tensor:
        """Return how many tokens of each row are its head's, [B] long; 0 in rows that do not begin with one."""
        return self.taken.sum(1)

    @property
    def text_columns(self) -> int:
        """Return T', the number of columns that are left."""
        return self.columns if self.kept is None else self.kept.shape[1]

    def off(self, texts: Texts) -> Texts:
        """Return the texts without the heads with which they begin."""
        if self.kept is None:
            return texts
        mask = texts.attention_mask
        if mask is not None or bool(self.taken.gather(1, self.kept).any()):
            mask = ~self.taken if mask is None else mask.bool() & ~self.taken
            mask = mask.gather(1, self.kept).long()
        ids, embeds = (
            None if value is None else take_columns(value, self.kept)
            for value in (texts.input_ids, texts.inputs_embeds)
        )
        return replace(texts, input_ids=ids, inputs_embeds=embeds, attention_mask=mask)

    def labels_off(self, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Split labels [B, T] into those of the text, [B, T'], and those of the heads, [B, h], where any is given."""
        if labels is None or self.kept is None:
            return labels, None
        of_heads = labels.masked_fill(~self.taken, IGNORED)
        text = (labels.masked_fill(self.taken, IGNORED)).gather(1, self.kept)
        if not bool((of_heads != IGNORED).any()):
            return text, None
        of_heads = of_heads.gather(1, self.head_columns())
        of_heads[:, 0] = IGNORED  # no token stands before it to predict it
        return text, of_heads

    def head_columns(self) -> Tensor:
        """Return the caller's columns of the heads' tokens, [B, h] of the longest head."""
        return torch.argsort(~self.taken, dim=1, stable=True)[:, : int(self.lengths.max())]

    def arguments_off(self, backbone: PreTrainedModel, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call's other arguments, of which those with a value for each token have values of the text's."""
        if self.kept is None:
            return dict(arguments)
        return {name: self._argument_off(backbone, name, value) for name, value in arguments.items()}

    def _argument_off(self, backbone: PreTrainedModel, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or name in NOT_OF_TOKENS or MEDIA.search(name):
            return value
        if name.startswith(("encoder_", "decoder_")) or not (name in TOKEN_TYPES or takes(backbone, name)):
            return value
        if name == "position_ids" and value.dim() == 3:  # of images, counted from the caller's first token
            return torch.stack([axis.gather(1, self.kept) - self.given[:, None] for axis in value])
        return take_columns(value, self.kept) if value.shape[:2] == self.taken.shape else value

    def inner_columns(self) -> Tensor:
        """Return where each output column of the caller's stands among those of the texts without heads, [B, P+T]."""
        inner, outer = self.widths
        before_text = torch.arange(outer, device=self.taken.device) - outer
        first = torch.where(self.given[:, None] > 0, inner - 1 + before_text, inner + before_text)
        place = self.taken.long().cumsum(1) - 1
        own = torch.where(place == self.lengths[:, None] - 1, inner - 1, self._start() + place)
        text = torch.where(self.taken, own, inner + (~self.taken).long().cumsum(1) - 1)
        return torch.cat([first, text], dim=1).clamp(min=0)

    def _start(self) -> Tensor:
        return (self.widths[0] - self.lengths - self.virtual)[:, None]

    def restored(self, value: Any) -> Any:
        """Move what belongs to each token of the texts without heads to the caller's columns.

        It is one of the values that `outputs_in_caller_columns` moves.
        """
        columns, shape = self.inner_columns(), (len(self.taken), self.widths[0] + self.text_columns)
        if columns.shape[1] == shape[1] and bool((columns == torch.arange(shape[1], device=columns.device)).all()):
            return value
        return moved(value, shape, lambda x: take_columns(x, columns))

    def complete(self, result: Any, cache: Any, width: int) -> None:
        """Mark the cache of a call of `generate`, and move its first step's hidden states to the caller's columns.

        Args:
            result: what `generate` returns.
            cache: the cache that it filled, or None.
            width: the number of columns of the texts that it was given.
        """
        self.mark(cache, width)
        if not isinstance(result, Tensor) and result.get("hidden_states"):
            result.hidden_states = self._restored_steps(result.hidden_states)

    def _restored_steps(self, steps: Any) -> Any:
        # Each row may be continued several times.
        copies = steps[0][0].shape[-3] // len(self.taken)
        values = {name: getattr(self, name) for name in ("lengths", "virtual", "taken", "kept")}
        values = {name: v if v is None else v.repeat_interleave(copies, 0) for name, v in values.items()}
        return (replace(self, **values).restored(steps[0]), *steps[1:])

    def moved_back(self, value: Tensor) -> Tensor:
        """Undo `restored` for [B, P+T, ...].

        Raises:
            PromptTuningError: rows without their heads were given, so that the heads' columns are not in `value`.
        """
        columns = self.inner_columns()
        order = torch.argsort(columns, dim=1)
        if not torch.equal(columns.gather(1, order), torch.arange(columns.shape[1]).expand_as(columns).to(columns)):
            raise PromptTuningError(
                "encoder_outputs are given for texts without the tokens that the prompt stands behind; give texts "
                "that begin with them, or leave encoder_outputs out."
            )
        return take_columns(value, order)

    def keeps_last(self, count: int) -> bool:
        """Tell whether the caller's last `count` output columns are also the last of the texts without heads."""
        last = self.inner_columns()[:, -max(count, 0) :]
        width = self.widths[0] + self.text_columns
        return last.shape[1] == count and bool((last == torch.arange(width - count, width, device=last.device)).all())

    def mark(self, cache: Any, text_columns: int) -> None:
        """Add to a cache's mark what the caller's rows hold beside its columns.

        `text_columns` is the number of the call's columns of text in the cache.
        """
        content: CacheContent | None = getattr(cache, MARK, None)
        if content is None:
            return
        copies = len(content.names) // len(self.taken)
        head, taken = (value.repeat_interleave(copies) for value in (self.lengths, self.given))
        text = content.text - text_columns + self.columns
        setattr(cache, MARK, replace(content, head=head, taken=taken, text=text, width=self.widths[1]))

    def streamed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return options of `generate` whose streamer first gets the caller's ids, as without a head."""
        streamer = options.get("streamer")
        if streamer is None or self.ids is None:
            return options
        return options | {"streamer": _Streamer(streamer, self.ids)}


class _Streamer(BaseStreamer):
    """Pass a text to a streamer, with the caller's own ids in place of the first ones."""

    def __init__(self, streamer: BaseStreamer, ids: Tensor):
        self._streamer, self._ids = streamer, ids.cpu()

    def put(self, value: Tensor) -> None:
        """Pass on token ids."""
        self._streamer.put(value if self._ids is None else self._ids)
        self._ids = None

    def end(self) -> None:
        """Tell the streamer that the text is at its end."""
        self._streamer.end()


def row_heads(prompts: Prompts, heads: Sequence[Tensor], embeds: Sequence[Tensor] | None, texts: Texts) -> RowHeads:
    """Find the heads with which the rows of a call begin.

    Args:
        prompts: the G prompts of the B rows, with their heads.
        heads: G tensors of [h_g] long, the token ids of the heads.
        embeds: G tensors of [h_g, H], their embeddings, for texts that the caller embedded; None for ids.
        texts: the caller's.

    Raises:
        PromptTuningError: some rows of a prompt begin with its head and others do not, or a row begins with a part.
    """
    sizes = torch.tensor([len(ids) for ids in heads], device=prompts.of_row.device)
    lengths, virtual = sizes[prompts.of_row], prompts.lengths() - sizes[prompts.of_row]
    given = texts.input_ids if embeds is None else texts.inputs_embeds
    mask = texts.attention_mask
    real = torch.ones(texts.shape, dtype=torch.bool, device=given.device) if mask is None else mask.bool()
    place = real.long().cumsum(1) - 1
    in_head = real & (place < lengths[:, None])
    table = pad_sequence(list(heads if embeds is None else embeds), batch_first=True)[prompts.of_row]
    expected = take_columns(table, place.clamp(0, table.shape[1] - 1))
    same, first = (
        given == ids.to(given) if embeds is None else (given == ids.to(given)).all(-1)
        for ids in (expected, table[:, :1])
    )
    begins = (same | ~in_head).all(1) & (real.sum(1) >= lengths) & (lengths > 0)
    starts = (same & in_head & (place == 0)).any(1)
    part = starts & ~begins & (lengths > 1)
    if bool(part.any()):
        row = int(part.nonzero()[0])
        raise _begins_with_part(row, heads[prompts.of_row[row]].tolist(), texts)
    _check_alike(prompts.of_row, begins, lengths)
    taken = in_head & begins[:, None]
    kept, doubled = None, False
    if bool(begins.any()):
        left = max(int((~taken).sum(1).max()), 1)
        kept = torch.argsort(taken, dim=1, stable=True)[:, :left]
        doubled = bool((first & real & (place == lengths[:, None]) & begins[:, None]).any())
    widths = max(map(len, prompts.vectors)), int(virtual.max())
    return RowHeads(lengths, virtual, widths, taken, kept, texts.input_ids, real, doubled)


def _begins_with_part(row: int, head: list[int], texts: Texts) -> PromptTuningError:
    """Return the error for a row that begins with the first token of its prompt's head, and not with the whole."""
    ids = head[:1]
    if texts.input_ids is not None:
        mask = texts.attention_mask
        ids = texts.input_ids[row].tolist() if mask is None else texts.input_ids[row][mask[row].bool()].tolist()
    return PromptTuningError(
        f"row {row} begins with the first token of its prompt's head, and not with the whole: "
        f"{why_part_of_head(ids, head)} The head has {len(head)} tokens (model.peft_config[name].head_token_ids); "
        "give rows that begin with all of them, or rows without the head."
    )


def _check_alike(of_row: Tensor, begins: Tensor, lengths: Tensor) -> None:
    """Raise PromptTuningError if rows of one prompt, of those that have a head, begin differently."""
    other_begins = ((of_row[:, None] == of_row) & begins).any(1)
    mixed = ~begins & other_begins & (lengths > 0)
    if bool(mixed.any()):
        row = int(mixed.nonzero()[0])
        raise PromptTuningError(
            f"row {row} does not begin with the tokens that its prompt stands behind, and others of this "
            "prompt do; tokenize all its rows in one way, with BOS (or the chat template's head), or without. If "
            "there are pads in front, give attention_mask."
        )

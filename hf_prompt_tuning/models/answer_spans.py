"""Find the best answer of each row among all spans of all of its windows.

Spans of several windows are compared by their probabilities, not by their logits: a window without the answer learns
that its first token has all of the probability, whatever its logits are.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..data.answer_windows import CONTEXT, ENDS, STARTS
from ..data.encoded_rows import ROW


class Answer(NamedTuple):
    """An answer that was found.

    Attributes:
        text: the answer as it stands in the context; empty if there is none.
        start: the place of its first character in the context; None if there is none.
        score: the probability of its first token times that of its last, among the tokens of a window; if there is no
            answer, the product of those of the first token.
    """

    text: str
    start: int | None
    score: float


def best_spans(
    start_logits: Tensor, end_logits: Tensor, in_context: Tensor, mask: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    """Return the best span of each window, and its score beside that of no answer.

    Args:
        start_logits, end_logits: [B, T], the lowest number there is on pads.
        in_context: [B, T] bool, True on tokens that an answer may begin or end with.
        mask: [B, T], zero on pads, at either side.
        longest: the tokens of a span at most.

    Returns:
        The columns of first and last tokens without pads, [B, 2] long, and scores [B, 2] fp32: the log-probability of
        the span (-inf if there is none), and that of the window's first token, which stands for no answer.
    """
    longest = min(longest, start_logits.shape[1])
    starts, ends = (logits.float().log_softmax(1) for logits in (start_logits, end_logits))
    first = (mask != 0).long().argmax(1)
    none = (starts + ends).gather(1, first[:, None])[:, 0]
    starts, ends = (scores.masked_fill(~in_context, -torch.inf) for scores in (starts, ends))
    # For each first token the last ones that are near enough, [B, T, longest].
    near = pad(ends, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
    best, place = (starts[:, :, None] + near).flatten(1).max(1)
    start = place // longest
    columns = torch.stack([start, start + place % longest], dim=1) - first[:, None]
    return columns, torch.stack([best, none], dim=1)


def answers_of_rows(
    windows: Iterable[Mapping[str, Any]], columns: np.ndarray, scores: np.ndarray, no_answers: bool
) -> list[Answer]:
    """Return the best answer of each row, in the order of the rows.

    A row has none if `no_answers` allows it, and in all of its windows the first token has a higher score than the
    best span of all.

    Args:
        windows: encoded windows (`AnswerTokenizer`), those of a row together.
        columns, scores: what `best_spans` returns of them, [N, 2] each.
        no_answers: whether rows may have no answer.
    """
    answers: list[Answer] = []
    context, best, none = "", Answer("", None, -np.inf), np.inf
    row = None

    def finish() -> None:
        if row is not None:
            is_none = best.start is None or (no_answers and none > best.score)
            found = Answer("", None, none) if is_none else best
            answers.append(found._replace(score=math.exp(found.score)))

    for window, (first, last), (score, nothing) in zip(windows, columns.tolist(), scores.tolist(), strict=True):
        if window[ROW] != row:
            finish()
            row, context, best, none = window[ROW], window[CONTEXT], Answer("", None, -np.inf), np.inf
        none = min(none, nothing)
        if score > best.score:
            best = _answer(context, window[STARTS][first], window[ENDS][last], score)
    finish()
    return answers


def _answer(context: str, start: int, end: int, score: float) -> Answer:
    """Return the answer of some characters, without white space at its ends, which some tokens have."""
    text = context[start:end]
    return Answer(text.strip(), start + len(text) - len(text.lstrip()), score)

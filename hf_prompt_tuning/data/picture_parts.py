"""Pictures among the parts of a message's content, and what stands for them in a rendered conversation.

A chat template writes one token for a picture. The backbone reads more: a processor writes a token for each feature
that the backbone makes of it. So a picture's part carries what is written for it, and a rendered text gets that in
place of the template's token.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import PromptTuningError

TOKEN, WRITTEN = "picture_token", "picture_written"
"""The keys of a picture's part: the template's token for it, and what stands in its place."""
OTHER_TYPES = ("image_url", "input_image")
"""What other APIs call a part that is a picture."""


def picture_part(token: str, written: str) -> dict[str, str]:
    """Return the part of a message's content that is a picture."""
    return {"type": "image", TOKEN: token, WRITTEN: written}


def is_picture_part(part: Any) -> bool:
    """Tell whether a part is a picture of which a processor has told what is written."""
    return isinstance(part, Mapping) and WRITTEN in part


def is_place(part: Any, number: int) -> bool:
    """Tell whether a part of a message is the place of a picture, of the row's picture `number`, from 0.

    Raise PromptTuningError if it has its picture in itself, as other APIs write it, or the index of another picture.
    """
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("image", *OTHER_TYPES):
        return False
    own = [key for key, value in part.items() if value is not None and key not in ("type", "text", "index")]
    if own or kind in OTHER_TYPES:
        raise PromptTuningError(
            f"a part of a message has its picture as {(own[0] if own else kind)!r}; put pictures in the column "
            '\'images\', in the order of their parts, and write each part as {"type": "image"}.'
        )
    if part.get("index") not in (None, number):
        raise PromptTuningError(
            f"a picture's part has the index {part['index']!r:.80}, and is number {number} of the row, from 0; put "
            "pictures in the order of their parts, and leave the index out."
        )
    return True


def has_pictures(content: Any) -> bool:
    """Tell whether a message's content has pictures."""
    return not isinstance(content, str) and any(map(is_picture_part, content))


class WrittenPictures:
    """What is written for the pictures of messages, in their order, in a text in which each is one token.

    Raise PromptTuningError if the text has not as many of these tokens as there are pictures.
    """

    def __init__(self, text: str, messages: Iterable[Mapping[str, Any]]):
        contents = [message.get("content") or "" for message in messages]
        parts = [part for content in contents if has_pictures(content) for part in content if is_picture_part(part)]
        self._written = [part[WRITTEN] for part in parts]
        self._token = parts[0][TOKEN] if parts else ""
        self._pieces = text.split(self._token) if parts else [text]
        if len(self._pieces) != len(parts) + 1:
            raise PromptTuningError(
                f"the conversation has {len(parts)} pictures, and the chat template writes {len(self._pieces) - 1} "
                f"times their token {self._token!r}. Give a chat_template that writes each picture once, and messages "
                "without this token in their texts."
            )

    @property
    def text(self) -> str:
        """The text with what is written for the pictures."""
        between = [*self._written, ""]
        return "".join(piece + written for piece, written in zip(self._pieces, between, strict=True))

    def moved(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return where spans of the text with tokens stand in the text with what is written."""
        ends, end, longer = [], 0, [0]
        for piece, written in zip(self._pieces, self._written, strict=False):
            end += len(piece) + len(self._token)
            ends.append(end)
            longer.append(longer[-1] + len(written) - len(self._token))
        return [
            (start + longer[bisect_right(ends, start)], to + longer[bisect_right(ends, to)]) for start, to in spans
        ]

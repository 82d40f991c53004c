"""Choose whether the rows of a model without a language model's head are packed or padded."""

import logging
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import PromptTuningError
from ..layouts.choose import check_row_budget
from ..layouts.packed_texts import SAVED, PackedTexts, difference, why_padded

logger = logging.getLogger(__name__)

NAMES = ("auto", "packed", "padded")


def check_layout(backbone: PreTrainedModel, name: str) -> None:
    """Raise PromptTuningError if there is no such layout, or packed rows are not exact for this backbone."""
    if name not in NAMES:
        raise PromptTuningError(f"layout is {name!r}; give {', '.join(NAMES)} to a model with a head.")
    reason = why_padded(backbone)
    if name == "packed" and reason:
        raise PromptTuningError(
            f"layout 'packed' is not exact for {type(backbone).__name__}: {reason}. Use layout 'auto' or 'padded'."
        )


class TextLayouts:
    """The part of `TextRows` that chooses a layout: a method of a `PeftModel`."""

    base_model: PreTrainedModel
    _layout_request: tuple[str, int | None, bool] = ("auto", None, True)

    def use_layout(self, name: str = "auto", max_packed_tokens: int | None = None, check: bool = True) -> None:
        """Set how texts and their prompts lie in rows. It changes the cost, never the result.

        Args:
            name: "packed" (rows without pads, each text behind its own copy of the prompt), "padded", or "auto" (the
                default): packed where the backbone is known to read such rows, and they are clearly fewer.
            max_packed_tokens: how many tokens a packed row has room for.
            check: compare packed rows with padded ones of the first batch before they are used.

        Raises:
            PromptTuningError: there is no such layout, or packed rows are not exact for this backbone.
        """
        check_layout(self.base_model, name)
        check_row_budget(max_packed_tokens)
        self._layout_request = (name, max_packed_tokens, check)
        vars(self).pop("_differences", None)

    def _packed_texts(self, rows: dict[str, Any]) -> PackedTexts | None:
        """Return the places of padded rows in packed ones; None if they stay padded."""
        name, max_tokens, check = self._layout_request
        backbone: Any = self.base_model
        shows_attention = rows.get("output_attentions", backbone.config.output_attentions)
        if name == "padded" or shows_attention or why_padded(backbone):
            return None
        packed = PackedTexts.of(rows["attention_mask"], max_tokens, SAVED if name == "auto" else float("inf"))
        if packed is None or not check:
            return packed
        if backbone.training and any(isinstance(part, nn.Dropout) and part.p for part in backbone.modules()):
            return None  # with dropout every pass differs, so nothing can be compared
        known = vars(self).setdefault("_differences", {})
        state = backbone.config._attn_implementation, backbone.dtype
        if state not in known:
            known[state] = difference(backbone, rows)
            if known[state]:
                logger.warning("Packed rows are not used for %s: %s.", type(backbone).__name__, known[state])
        return None if known[state] else packed

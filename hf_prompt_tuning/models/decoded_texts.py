"""Give a text to the decoder, too, where a head reads an encoder-decoder's decoder (T5's and BART's classifiers).

The prompt stands in the encoder. The decoder reads the text itself, moved by one column, as without a prompt:

    encoder   p0 p1 a0 a1 a2  ·         `[prompt | text | pads]`
    decoder   s  a0 a1  ·               its state in a text's column is that of the token; s starts every text

A classifier reads the state of the last EOS.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import PromptTuningError
from ..layouts.traits import takes
from .batch_checks import Texts
from .text_columns import TextColumns


@dataclass(frozen=True)
class DecodedTexts:
    """The texts of a call as its decoder reads them.

    Attributes:
        ids: [B, T] long, each row's real tokens first.
        tokens: the columns of the texts' tokens in the decoder.
    """

    ids: Tensor
    tokens: TextColumns

    def inputs(self, backbone: PreTrainedModel) -> dict[str, Tensor]:
        """Return the decoder's arguments."""
        start = torch.full_like(self.ids[:, :1], _token(backbone, "decoder_start_token_id"))
        return {"decoder_input_ids": torch.cat([start, self.ids[:, :-1]], dim=1)}

    def ends(self, backbone: PreTrainedModel) -> Tensor:
        """Return [B, T] long, each row's real tokens first: 1 at its last EOS. Raise PromptTuningError without one."""
        end = _token(backbone, "eos_token_id")
        is_end = (self.ids == end) & self.tokens.at_the_left().mask
        if not bool(is_end.any(1).all()):
            raise PromptTuningError(
                f"row {int((~is_end.any(1)).nonzero()[0])} has no EOS (the token id {end}), whose state the head of "
                f"{type(backbone).__name__} reads; give the tokenizer's rows with their special tokens."
            )
        return (is_end & (is_end.flip(1).cumsum(1).flip(1) == 1)).long()


def _token(backbone: PreTrainedModel, name: str) -> int:
    """Return a special token's id. Raise PromptTuningError if the backbone's config does not name one."""
    if not isinstance(token := getattr(backbone.config, name, None), int):
        raise PromptTuningError(
            f"{name} is {token!r} in the config of {type(backbone).__name__}, whose head reads the decoder; set it to "
            "a token's id, as in the model that was published."
        )
    return token


def reads_decoder(backbone: PreTrainedModel) -> bool:
    """Tell whether a head reads a decoder behind an encoder."""
    return takes(backbone.base_model, "decoder_input_ids")


def decoded_texts(backbone: PreTrainedModel, texts: Texts, mask: Tensor, arguments: dict[str, Any]) -> DecodedTexts:
    """Return the texts of a call for its decoder. `mask` [B, T] is True on real tokens.

    Raise PromptTuningError if the texts are embedded, or an argument is for the decoder, or asks for all states.
    """
    name = type(backbone).__name__
    others = [key for key, value in arguments.items() if value is not None and value is not False]
    if given := [key for key in others if key.startswith(("decoder_", "encoder_", "output_"))]:
        raise PromptTuningError(
            f"{given[0]} is given, and the decoder of {name} reads the text itself behind a prompt in its encoder; "
            "leave it out."
        )
    if texts.input_ids is None:
        raise PromptTuningError(f"inputs_embeds are given, and the decoder of {name} reads token ids; give input_ids.")
    order = torch.argsort(~mask, dim=1, stable=True)
    columns = (mask.long().cumsum(1) - 1).clamp(min=0)
    return DecodedTexts(texts.input_ids.gather(1, order), TextColumns(columns, mask))

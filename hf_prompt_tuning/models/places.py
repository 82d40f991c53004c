"""Find the head of a prompt, the tokens that it stands behind, and compare a saved one with the backbone's."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.heads import chat_head_ids, leading_ids, marks_turns
from ..errors import PromptMismatchError, PromptTuningError
from ..layouts.traits import token_scale
from ..prompts.config import AUTO, PromptTuningConfig
from ..prompts.files import SavedPrompt
from .initialization import embedded_ids, saved_info, tokenizer_of

logger = logging.getLogger(__name__)

TOLERANCE = 0.15
"""The largest relative difference of a head's embeddings that four bits may cause, as `QUANTIZED_TOLERANCE`."""


def place_of(config: PromptTuningConfig, backbone: PreTrainedModel) -> tuple[str, tuple[int, ...] | None]:
    """Return the position and the head of a new prompt; by default those of the prompt that it starts from.

    "auto" is the place where prompts learned better, as far as it was measured (docs/decisions/0008).

    Raises:
        PromptTuningError: as `head_of`; or the prompt that it starts from could not be loaded.
    """
    if config.prompt_position == AUTO:
        return ("after_bos", _first_tokens(config, backbone)) if _writes_bos(config, backbone) else ("start", None)
    if config.prompt_position is not None:
        return config.prompt_position, head_of(config, backbone)
    info = saved_info(config)
    place: dict[str, Any] = {} if info is None else info.place
    return place.get("prompt_position", "start"), tuple(place.get("head_token_ids", ())) or None


def _writes_bos(config: PromptTuningConfig, backbone: PreTrainedModel) -> bool:
    """Tell whether the backbone is a decoder whose tokenizer writes BOS in front of a text."""
    tokenizer = _given_tokenizer(config)
    return not backbone.config.is_encoder_decoder and tokenizer is not None and bool(leading_ids(tokenizer))


def head_of(config: PromptTuningConfig, backbone: PreTrainedModel) -> tuple[int, ...]:
    """Return the token ids of a new prompt's head.

    Raises:
        PromptTuningError: the place needs a tokenizer, a chat template or a token that is not there, or it is none in
            an encoder-decoder.
    """
    encodes = backbone.config.is_encoder_decoder
    if config.prompt_position == "system":
        if encodes:
            raise PromptTuningError(
                f"prompt_position is system, and {type(backbone).__name__} is an encoder-decoder, which reads no "
                "chats; use start, or after_bos where its tokenizer writes a first token."
            )
        template, options = (getattr(config.chat, name, None) for name in ("chat_template", "chat_template_kwargs"))
        return tuple(chat_head_ids(_tokenizer(config), template, options))
    head = _first_tokens(config, backbone)
    tokenizer = _given_tokenizer(config)
    if tokenizer is not None and len(head) == 1:
        _warn_of_turn_marker(head[0], tokenizer, getattr(config.chat, "chat_template", None))
    return head


def _warn_of_turn_marker(token: int, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Warn if the token behind which a prompt stands begins each turn of a chat."""
    if marks_turns(token, tokenizer, chat_template):
        logger.warning(
            "prompt_position is after_bos, and %r is also the mark with which the chat template begins each turn. In "
            "chats the prompt stands between the first mark and its role. For chats, prompt_position system stands in "
            "the system turn, and sink_token puts another token in front.",
            tokenizer.decode([token]),
        )


def _first_tokens(config: PromptTuningConfig, backbone: PreTrainedModel) -> tuple[int, ...]:
    """Return the head of a prompt behind the first token of a text. Raise PromptTuningError as `head_of` does."""
    encodes = backbone.config.is_encoder_decoder
    tokenizer = _given_tokenizer(config)
    written = [] if tokenizer is None else leading_ids(tokenizer)
    if config.sink_token is not None:
        return (_sink(config.sink_token, _tokenizer(config), written),)
    if written:
        return tuple(written)
    token = None if encodes else _bos(tokenizer, backbone)
    if token is None:
        why = "encoder-decoder whose tokenizer writes no first token" if encodes else "backbone without a BOS token"
        raise PromptTuningError(
            f"prompt_position is after_bos, and {type(backbone).__name__} is a {why}; give the tokenizer, or "
            "sink_token, the token that its texts begin with; or use start."
        )
    return (token,)


def _given_tokenizer(config: PromptTuningConfig) -> PreTrainedTokenizerBase | None:
    named = config.tokenizer is not None or config.tokenizer_name_or_path is not None
    return _tokenizer(config) if named else None


def _tokenizer(config: PromptTuningConfig) -> PreTrainedTokenizerBase:
    return tokenizer_of(config, f"prompt_position is {config.prompt_position}")


def _bos(tokenizer: PreTrainedTokenizerBase | None, backbone: PreTrainedModel) -> int | None:
    own: Any = getattr(backbone.config.get_text_config(), "bos_token_id", None)
    token = getattr(tokenizer, "bos_token_id", None)
    return token if token is not None else own if isinstance(own, int) else None


def _sink(token: str, tokenizer: PreTrainedTokenizerBase, written: list[int]) -> int:
    """Return the id of the token that a prompt stands behind. Raise PromptTuningError if it is none of one id."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise PromptTuningError(
            f"sink_token is {token!r:.80}, which is {len(ids)} tokens of the tokenizer; give one token's text, "
            f"such as {tokenizer.eos_token!r}."
        )
    if written and written != ids:
        raise PromptTuningError(
            f"sink_token is {token!r:.80}, and the tokenizer writes {tokenizer.decode(written)!r} in front of every "
            "text; leave sink_token out."
        )
    return ids[0]


def head_embeddings(token_ids: Sequence[int], backbone: PreTrainedModel) -> Tensor:
    """Return what the backbone makes of a head's tokens, [h, H] fp32 on the CPU. Per-layer vectors are left out.

    Raise PromptTuningError if a token is not in its vocabulary.
    """
    embeds = embedded_ids(list(token_ids), backbone.get_input_embeddings(), "the prompt's head has")
    return (token_scale(backbone) * embeds).cpu()


def check_head(saved: SavedPrompt, backbone: PreTrainedModel, ignore_mismatch: bool) -> None:
    """Raise PromptMismatchError if the first rows of a saved prompt are not the embeddings of its head's tokens here.

    With `ignore_mismatch`, only warn. A call looks the embeddings up in the backbone, not in the file.
    """
    if backbone.get_input_embeddings().weight.is_meta:
        return
    try:
        here = head_embeddings(saved.config.head, backbone)
    except PromptTuningError as error:
        raise PromptMismatchError(f"{saved.source} is not a prompt of this backbone: {error}") from error
    difference = float((here - saved.head).norm() / saved.head.norm().clamp(min=1e-12))
    if difference <= TOLERANCE:
        return
    message = (
        f"{saved.source} stands behind the tokens {list(saved.config.head)}, and its first rows are not their "
        f"embeddings in this backbone (they differ by {difference:.1e} of their norm). Load it with its own backbone."
    )
    if not ignore_mismatch:
        raise PromptMismatchError(f"{message} Or give ignore_mismatch=True.")
    logger.warning(message)

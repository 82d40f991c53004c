"""Combine the options of the generation pipeline: from the call, the construction, the template and the configs."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..data.chat_template import KWARGS, TOOLS
from ..errors import PromptTuningError
from ..models.generation_options import ends_of_text, with_settings

NEW_TOKENS = 64
"""Default limit of new tokens."""

LENGTHS = ("max_new_tokens", "max_length")
OF_THE_TEXT = {"skip_special_tokens": True, "clean_up_tokenization_spaces": None}
"""Options of decoding tokens to text, with their defaults."""

NOT_OURS: dict[str, Any] = {
    **dict.fromkeys(("return_full_text", "return_tensors", "return_dict_in_generate", "output_scores"), False),
    **dict.fromkeys(("output_logits", "output_attentions", "output_hidden_states"), False),
    **dict.fromkeys(
        ("return_type", "prefix", "handle_long_generation", "truncation", "padding", "add_special_tokens")
    ),
    **dict.fromkeys(("continue_final_message", "tokenizer_encode_kwargs", "documents", "decoder_input_ids")),
    **dict.fromkeys(("input_ids", "inputs", "inputs_embeds", "attention_mask", TOOLS, KWARGS)),
    "return_text": True,
}
"""Options of other pipelines and of `generate` that this pipeline refuses, each with the value that is harmless."""


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into those of `generate` and those of decoding. Raise PromptTuningError for an unsupported one."""
    for name, harmless in NOT_OURS.items():
        if options.get(name) is not None and options[name] != harmless:
            if name in (TOOLS, KWARGS):
                raise PromptTuningError(
                    f"{name} is {options[name]!r:.80}, which the prompt-generation pipeline does not take as an "
                    f'option: a row of conversations may have it; give {{"messages": …, "{name}": …}}.'
                )
            raise PromptTuningError(
                f"{name} is {options[name]!r}, which the prompt-generation pipeline does not take: it gives the text "
                "behind a row, as the prompt's template makes it. Leave it out."
            )
    settings = {name: value for name, value in options.items() if name not in NOT_OURS and name not in OF_THE_TEXT}
    if (stop := settings.pop("stop_sequence", None)) is not None:
        settings["stop_strings"] = stop
    config = settings.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise PromptTuningError(
            f"generation_config is a {type(config).__name__}; give the pipeline a transformers GenerationConfig."
        )
    if config is not None and (config.return_dict_in_generate or config.output_scores):
        raise PromptTuningError(
            "generation_config asks for more than text (return_dict_in_generate, output_scores), and the "
            "prompt-generation pipeline gives text alone. Leave it out."
        )
    return settings, {name: options[name] for name in (*OF_THE_TEXT, "return_full_text") if name in options}


def merge_options(made: Mapping[str, Any], called: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the options of a call into those of the pipeline's construction.

    As in transformers, a call's `generation_config` replaces all options of the construction. A call's length option
    replaces both length options of the construction.
    """
    if called.get("generation_config") is not None:
        return dict(called)
    if any(called.get(name) is not None for name in LENGTHS):
        made = {name: value for name, value in made.items() if name not in LENGTHS}
    return {**made, **called}


def new_tokens(settings: Mapping[str, Any], of_template: int | None, of_model: GenerationConfig, before: int) -> int:
    """Return the limit of new tokens for one row: the first one set by the call, the template or the model.

    `before` tokens count in `max_length`. Raise PromptTuningError if there is no room for new tokens.
    """
    config = settings.get("generation_config") or GenerationConfig()
    places = [settings, vars(config), {"max_new_tokens": of_template}, vars(of_model), {"max_new_tokens": NEW_TOKENS}]
    length, name = next((place[n], n) for place in places for n in LENGTHS if place.get(n) is not None)
    if not isinstance(length, Integral):
        raise PromptTuningError(f"{name} is {length!r:.80}; give a whole number of tokens.")
    if name == "max_new_tokens":
        if length < 1:
            raise PromptTuningError(f"max_new_tokens is {length}; give 1 or more.")
        return length
    limit = length - before
    if limit < 1:
        raise PromptTuningError(
            f"max_length is {length}, and a row has {before} tokens already; give max_new_tokens, or a larger "
            "max_length."
        )
    return limit


def generate_options(
    settings: Mapping[str, Any],
    limit: int,
    tokenizer: PreTrainedTokenizerBase,
    of_model: GenerationConfig,
    end_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the options of `generate` for rows that end after `limit` tokens or at an end-of-text token.

    The end-of-text tokens are those of the backbone, those of the tokenizer, and `end_ids`. The tokenizer is for stop
    strings, which a config may have, too.
    """
    options = {"tokenizer": tokenizer} | {name: value for name, value in settings.items() if name not in LENGTHS}
    config = options.get("generation_config")
    tokens = {"eos_token_id": ends_of_text(of_model, tokenizer, end_ids), "pad_token_id": tokenizer.pad_token_id}
    tokens = {
        name: token for name, token in tokens.items() if name not in options and getattr(config, name, None) is None
    }
    return with_settings(options, max_new_tokens=limit, max_length=None, return_dict_in_generate=False, **tokens)


def is_greedy(settings: Mapping[str, Any], of_model: GenerationConfig) -> bool:
    """Tell whether each token depends only on the tokens before it.

    If so, a text that is cut to a limit equals the text generated with that limit.
    """
    config = settings.get("generation_config")

    def value_of(name: str) -> Any:
        values = (settings.get(name), getattr(config, name, None), getattr(of_model, name, None))
        return next((value for value in values if value is not None), None)

    if value_of("do_sample") or (value_of("num_beams") or 1) > 1:
        return False
    return not any(value_of(name) for name in ("forced_eos_token_id", "exponential_decay_length_penalty"))

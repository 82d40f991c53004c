"""What a caller of the pipeline that writes asks for: in the call, when the pipeline was made, or in a config."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..models.generation_options import ends_of_text, saying

NEW_TOKENS = 64
"""How many tokens are written at most where no one says."""

LENGTHS = ("max_new_tokens", "max_length")
OF_THE_TEXT = {"skip_special_tokens": True, "clean_up_tokenization_spaces": None}
"""How tokens become text, with the values that hold where no one says."""

NOT_OURS = {
    "return_full_text": False,
    "return_tensors": False,
    "return_text": True,
    "return_type": None,
    "prefix": None,
    "handle_long_generation": None,
    "truncation": None,
    "padding": None,
    "add_special_tokens": None,
    "continue_final_message": None,
    "tokenizer_encode_kwargs": None,
    "tools": None,
    "documents": None,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "decoder_input_ids": None,
}
"""What other pipelines and `generate` take and this one does not, with the value that changes nothing."""


def parted(options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of one place in two: what `generate` takes, and how the text is decoded.

    Raises:
        PromptTuningError: one that this pipeline does not take.
    """
    for name, harmless in NOT_OURS.items():
        if options.get(name) is not None and options[name] != harmless:
            raise PromptTuningError(
                f"{name} is {options[name]!r}, which the prompt-generation pipeline does not take: it gives the text "
                "behind a row, as the prompt's template makes it. Leave it out."
            )
    said = {name: value for name, value in options.items() if name not in NOT_OURS and name not in OF_THE_TEXT}
    if (stop := said.pop("stop_sequence", None)) is not None:
        said["stop_strings"] = stop
    if said.get("stop_strings") is not None:
        said.setdefault("tokenizer", tokenizer)
    config = said.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise PromptTuningError(
            f"generation_config is a {type(config).__name__}; give the pipeline a transformers GenerationConfig."
        )
    if config is not None and (config.return_dict_in_generate or config.output_scores):
        raise PromptTuningError(
            "generation_config asks for more than text (return_dict_in_generate, output_scores), and the "
            "prompt-generation pipeline gives text alone. Leave it out."
        )
    return said, {name: options[name] for name in OF_THE_TEXT if name in options}


def together(made: Mapping[str, Any], called: Mapping[str, Any]) -> dict[str, Any]:
    """What a call says on top of what was said when the pipeline was made.

    As in transformers, a call's `generation_config` takes the place of all that. So does a length of all lengths.
    """
    if called.get("generation_config") is not None:
        return dict(called)
    if any(called.get(name) is not None for name in LENGTHS):
        made = {name: value for name, value in made.items() if name not in LENGTHS}
    return {**made, **called}


def new_tokens(said: Mapping[str, Any], of_template: int | None, of_model: GenerationConfig, before: int) -> int:
    """How many tokens may be written behind one row: the first that is said of call, template and model.

    Args:
        said: `generate`'s options.
        of_template: `max_target_length`.
        of_model: the backbone's own config.
        before: how many tokens `max_length` counts that are there already.

    Raises:
        PromptTuningError: no room is left.
    """
    config = said.get("generation_config") or GenerationConfig()
    places = [said, vars(config), {"max_new_tokens": of_template}, vars(of_model), {"max_new_tokens": NEW_TOKENS}]
    length, name = next((place[n], n) for place in places for n in LENGTHS if place.get(n) is not None)
    limit = length if name == "max_new_tokens" else length - before
    if limit < 1:
        raise PromptTuningError(
            f"{name} is {length}, and a row has {before} tokens already; give max_new_tokens, or a larger max_length."
        )
    return limit


def for_generate(
    said: Mapping[str, Any], limit: int, tokenizer: PreTrainedTokenizerBase, of_model: GenerationConfig
) -> dict[str, Any]:
    """The options for rows that end after `limit` tokens, or at an end of the backbone's or the tokenizer's."""
    options = {name: value for name, value in said.items() if name not in LENGTHS}
    config = options.get("generation_config")
    tokens = {"eos_token_id": ends_of_text(of_model, tokenizer), "pad_token_id": tokenizer.pad_token_id}
    tokens = {
        name: token for name, token in tokens.items() if name not in options and getattr(config, name, None) is None
    }
    return saying(options, max_new_tokens=limit, max_length=None, **tokens)


def is_greedy(said: Mapping[str, Any], of_model: GenerationConfig) -> bool:
    """Whether each token follows from those before it alone, so that a row that is cut is as one with a limit."""
    config = said.get("generation_config")

    def asked(name: str) -> Any:
        found = (said.get(name), getattr(config, name, None), getattr(of_model, name, None))
        return next((value for value in found if value is not None), None)

    plain = not asked("do_sample") and (asked("num_beams") or 1) == 1
    return plain and not any(asked(name) for name in ("forced_eos_token_id", "exponential_decay_length_penalty"))

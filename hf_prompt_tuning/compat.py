"""Every difference between versions of the libraries that this package runs on, each in a function of its own.

Nothing else in the package asks for a version, or for a name that only some versions have. Each function says which
versions it is for, so that it can be deleted when they are no longer admitted.
"""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .errors import PromptTuningError

CACHE_NAMES = ("cache", "past_key_values")
CACHE = CACHE_NAMES["cache" not in {field.name for field in fields(CausalLMOutputWithPast)}]
"""What transformers calls a cache of keys and values: `cache` from 5.24, `past_key_values` before."""


def cache_name(backbone: PreTrainedModel) -> str | None:
    """Return the argument of `forward` that takes a cache of keys and values; None if there is no such argument.

    From transformers 5.24 the states of Mamba and its like are called `cache`, too (`cache_params` before). Such
    models have no attention heads.
    """
    parameters = inspect.signature(backbone.forward).parameters
    name = next((name for name in (CACHE, "past_key_values") if name in parameters), None)
    if name == "cache" and backbone._is_stateful:
        return name if hasattr(backbone.config.get_text_config(), "num_attention_heads") else None
    return name


def cache_in(values: Mapping[str, Any]) -> Any:
    """Return the cache among a model's outputs or arguments, under either name; None if there is none."""
    return next((values[name] for name in values.keys() if name in CACHE_NAMES and values[name] is not None), None)  # noqa: SIM118


def as_cache(backbone: PreTrainedModel, cache: Any) -> dict[str, Any]:
    """Return the backbone's argument for a cache; no argument for None."""
    return {} if cache is None else {cache_name(backbone): cache}


def with_cache_renamed(backbone: PreTrainedModel, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the cache among a caller's arguments the name that this backbone takes. Both names are for one thing.

    Raises:
        PromptTuningError: two caches are given.
    """
    given = [name for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise PromptTuningError(f"{' and '.join(given)} are given, which are one; leave one out.")
    name = cache_name(backbone)
    if not given or name is None:
        return dict(arguments)
    return {key: value for key, value in arguments.items() if key not in CACHE_NAMES} | {name: arguments[given[0]]}

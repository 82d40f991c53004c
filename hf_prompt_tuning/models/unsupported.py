"""Refuse by name the methods of PEFT and transformers that would ignore a prompt, or need weights that it has not."""

from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import PromptTuningError

NOTHING_TO_MERGE = (
    "adds an adapter's weights to the backbone's, and a prompt has none: it is vectors in front of the text. Serve it "
    "with its backbone (load_prompt, pipeline), or write it for vLLM with export_vllm."
)
NOTHING_TO_UNLOAD = (
    "is for adapters that are put into a backbone's layers, and a prompt stands in front of them. Use "
    "model.get_base_model() (frozen, its dropout off), or `with model.disable_adapter()`."
)
NO_SUM = (
    "adds up changes of weights, and the mean of two prompts is neither of them. Let several prompts vote "
    "(PromptEnsemble), or start one from another (prompt_tuning_init PROMPT)."
)
WITHOUT_PROMPT = (
    "is called, and continuous batching generates from the backbone alone, without the prompt. Call generate; in a "
    "TRL trainer, leave use_transformers_continuous_batching out."
)


def unsupported(name: str, reason: str) -> Callable[..., NoReturn]:
    """Return a method that raises PromptTuningError with its name and a reason, which says what to do instead."""

    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise PromptTuningError(f"{name} {reason}")

    method.__name__, method.__doc__ = name, f"Raise PromptTuningError: {name} {reason}"
    return method

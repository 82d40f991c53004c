"""Refuse continuous batching by name, because the backbone would generate without the prompt."""

from typing import Any, NoReturn

from ..errors import PromptTuningError


class NoContinuousBatching:
    """Block the methods of transformers' continuous batching, which a PeftModel would pass on to its backbone."""

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: continuous batching ignores the prompt."""
        raise _without_prompt("generate_batch")

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: continuous batching ignores the prompt."""
        raise _without_prompt("init_continuous_batching")

    def continuous_batching_context_manager(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: continuous batching ignores the prompt."""
        raise _without_prompt("continuous_batching_context_manager")


def _without_prompt(name: str) -> PromptTuningError:
    return PromptTuningError(
        f"{name} is called, and continuous batching generates from the backbone alone, without the prompt. Call "
        "generate; in a TRL trainer, leave use_transformers_continuous_batching out."
    )

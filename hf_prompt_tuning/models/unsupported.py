"""Refuse by name the methods of PEFT and transformers that would ignore a prompt, or need weights that it has not."""

from typing import Any, NoReturn

from ..errors import PromptTuningError


class Unsupported:
    """Replace methods that a PeftModel has or passes on to its backbone. Each error says what to do instead.

    A prompt is part of the input: it has no weights to merge, and continuous batching generates without it.
    """

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: there is nothing to merge."""
        raise _nothing_to_merge("merge_and_unload")

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: there is nothing to merge."""
        raise _nothing_to_merge("merge_adapter")

    def unmerge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: there is nothing to merge."""
        raise _nothing_to_merge("unmerge_adapter")

    def unload(self) -> NoReturn:
        """Raise PromptTuningError: there is nothing to unload, because a prompt does not change the backbone."""
        raise PromptTuningError(
            "unload is for adapters that are put into a backbone's layers, and a prompt stands in front of them. Use "
            "model.get_base_model() (frozen, its dropout off), or `with model.disable_adapter()`."
        )

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: a sum of prompts does not work as a prompt for their tasks."""
        raise PromptTuningError(
            "add_weighted_adapter adds up changes of weights, and the mean of two prompts is neither of them. "
            "Let several prompts vote (PromptEnsemble), or start one from another (prompt_tuning_init PROMPT)."
        )

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: continuous batching ignores the prompt."""
        raise _without_prompt("generate_batch")

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: continuous batching ignores the prompt."""
        raise _without_prompt("init_continuous_batching")

    def continuous_batching_context_manager(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: continuous batching ignores the prompt."""
        raise _without_prompt("continuous_batching_context_manager")


def _nothing_to_merge(name: str) -> PromptTuningError:
    return PromptTuningError(
        f"{name} adds an adapter's weights to the backbone's, and a prompt has none: it is vectors in front of the "
        "text. Serve it with its backbone (load_prompt, pipeline), or write it for vLLM with export_vllm."
    )


def _without_prompt(name: str) -> PromptTuningError:
    return PromptTuningError(
        f"{name} is called, and continuous batching generates from the backbone alone, without the prompt. Call "
        "generate; in a TRL trainer, leave use_transformers_continuous_batching out."
    )

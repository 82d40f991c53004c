"""Refuse the methods of PEFT that need an adapter's weights. A prompt is part of the input and has none."""

from typing import Any, NoReturn

from ..errors import PromptTuningError


class Unmergeable:
    """Replace the methods of a PeftModel that need weights in the backbone. Each error says what to do instead."""

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


def _nothing_to_merge(name: str) -> PromptTuningError:
    return PromptTuningError(
        f"{name} adds an adapter's weights to the backbone's, and a prompt has none: it is vectors in front of the "
        "text. Serve it with its backbone (load_prompt, pipeline), or write it for vLLM with export_vllm."
    )

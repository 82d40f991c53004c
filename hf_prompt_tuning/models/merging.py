"""What PEFT does with an adapter's weights, and a prompt, which is part of the input, has none for."""

from typing import Any, NoReturn

from ..errors import PromptTuningError


class Unmergeable:
    """The methods of a PeftModel that ask for weights of the backbone's; each says what to do in its place."""

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises PromptTuningError: there is nothing to merge."""
        raise _nothing_to_merge("merge_and_unload")

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises PromptTuningError: there is nothing to merge."""
        raise _nothing_to_merge("merge_adapter")

    def unmerge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises PromptTuningError: there is nothing to merge."""
        raise _nothing_to_merge("unmerge_adapter")

    def unload(self) -> NoReturn:
        """Raises PromptTuningError: the backbone is in no other state behind a prompt than alone."""
        raise PromptTuningError(
            "unload is for adapters that are put into a backbone's layers, and a prompt stands in front of them. Use "
            "model.get_base_model() (frozen, its dropout off), or `with model.disable_adapter()`."
        )

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises PromptTuningError: a sum of prompts is no prompt for what they were trained on."""
        raise PromptTuningError(
            "add_weighted_adapter adds up changes of weights, and the mean of two prompts is neither of them. "
            "Let several prompts vote (PromptEnsemble), or start one from another (prompt_tuning_init PROMPT)."
        )


def _nothing_to_merge(name: str) -> PromptTuningError:
    return PromptTuningError(
        f"{name} adds an adapter's weights to the backbone's, and a prompt has none: it is vectors in front of the "
        "text. Serve it with its backbone (load_prompt, pipeline), or write it for vLLM with export_vllm."
    )

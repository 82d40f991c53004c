"""`pipeline(task, model="user/prompt")` loads as `load_prompt` does, and is refused as `load_prompt` refuses.

transformers reads the config of the backbone that an adapter names before it looks at the task: where the config wants
code of its own, it asks whoever sits there whether to run it. And it tries one class after another on a model that
fails to load, at last those that read pickles. Neither happens for this package's tasks: the config is not read until
`load_prompt` reads it, and what goes wrong there is raised by the pipeline itself.
"""

from typing import TYPE_CHECKING, Any

import transformers.pipelines
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ..errors import PromptLoadError, PromptTuningError, first_line

if TYPE_CHECKING:
    from ..models.soft_prompts import SoftPrompts

TASKS = {
    "prompt-classification": "hf_prompt_tuning.serving.pipelines.PromptClassificationPipeline",
    "prompt-generation": "hf_prompt_tuning.serving.pipelines.PromptGenerationPipeline",
}
"""Each task's class by name: whoever uses other pipelines does not wait for ours to be imported."""
NOT_OURS = ("_from_pipeline", "code_revision")


class NamedPrompt:
    """What `pipeline(…, model="user/prompt")` loads a model with: the prompt, or the error that it ended in."""

    def __init__(self, loaded: tuple | None, error: Exception | None = None):
        self._loaded, self._error = loaded, error

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, **options: Any) -> "NamedPrompt":
        """Return the prompt of this name with all that `load_prompt` takes of the options, which are `pipeline`'s."""
        from ..models.load import load_prompt  # not before there is something to load

        options = {key: value for key, value in options.items() if key not in NOT_OURS and value is not None}
        # transformers has looked the revision up in the backbone's repository; it is the prompt's that is asked for.
        revision = getattr(revision, "initial", revision)
        try:
            return cls(load_prompt(name, revision=revision, **options))
        except Exception as error:  # whatever it is, no other class is to be tried
            return cls(None, error)

    def taken(self, tokenizer: Any) -> "tuple[SoftPrompts, Any]":
        """Return the model, and the given tokenizer or else the prompt's; raise what loading it ended in."""
        if self._error is not None:
            raise self._error
        model, its_own, _ = self._loaded
        return model, its_own if tokenizer is None else tokenizer


def tokenizer_for(tokenizer: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a pipeline was given, loaded if it was named."""
    if tokenizer is None:
        raise PromptTuningError("tokenizer is not given; give it as tokenizer=…, the one that load_prompt returns.")
    if not isinstance(tokenizer, str):
        return tokenizer
    try:
        return AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    except Exception as error:
        raise PromptLoadError(
            f"the tokenizer of {tokenizer!r} cannot be loaded: {first_line(error)} Give another as tokenizer=…."
        ) from error


class Configs(AutoConfig):
    """transformers' `AutoConfig` as `pipeline` calls it: for this package's tasks nothing is read yet."""

    @classmethod
    def from_pretrained(cls, name: str | None, **kwargs: Any) -> Any:
        """Return the config of this name, or (for this package's tasks) one that says nothing."""
        if kwargs.get("_from_pipeline") not in TASKS:
            return AutoConfig.from_pretrained(name, **kwargs)
        if name is None:
            raise PromptLoadError(
                "the prompt does not name its backbone; load both by load_prompt(…, backbone=…), and give pipeline "
                "its model and tokenizer."
            )
        return PreTrainedConfig()


def register() -> None:
    """Make both tasks known to `transformers.pipeline`."""
    tasks = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks
    for task, impl in TASKS.items():
        # As `register_pipeline` writes it, which takes a class and no name of one.
        tasks[task] = {"impl": impl, "pt": (NamedPrompt,)}
    transformers.pipelines.AutoConfig = Configs

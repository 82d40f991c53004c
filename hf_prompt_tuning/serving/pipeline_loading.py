"""Load prompts for `pipeline(task, model="user/prompt")` with `load_prompt`, with the same checks and errors.

By default, transformers does two unsafe things:

- It reads the config of the adapter's backbone before it looks at the task. If the config needs custom code, it asks
  the user whether to run it.
- If a model fails to load, it tries one class after another, in the end classes that read pickles.

Neither happens for this package's tasks. Only `load_prompt` reads the config, and the pipeline raises its errors.
"""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

from ..compat.pipelines import NO_COMMIT, Task
from ..errors import PromptLoadError

if TYPE_CHECKING:
    from ..models.load import LoadedPrompt
    from ..models.soft_prompts import SoftPrompts

TASKS = {
    "prompt-classification": "hf_prompt_tuning.serving.pipelines.PromptClassificationPipeline",
    "prompt-generation": "hf_prompt_tuning.serving.pipelines.PromptGenerationPipeline",
}
"""The class of each task, by name, so that it is imported only when its task is used."""
NOT_OURS = ("_from_pipeline", "code_revision")


class NamedPrompt:
    """The model class of `pipeline(…, model="user/prompt")`: holds the loaded prompt, or the error of loading it."""

    config = NO_COMMIT

    def __init__(self, loaded: "LoadedPrompt | None", error: Exception | None = None):
        self._loaded, self._error = loaded, error

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, **options: Any) -> "NamedPrompt":
        """Load the prompt of this name with those options of `pipeline` that `load_prompt` takes.

        An error is stored and not raised; `taken` raises it.
        """
        from ..models.load import load_prompt  # imported late, only when a prompt is loaded

        options = {key: value for key, value in options.items() if key not in NOT_OURS and value is not None}
        # transformers has resolved the revision in the backbone's repository, but it means the prompt's revision.
        revision = getattr(revision, "initial", revision)
        try:
            return cls(load_prompt(name, revision=revision, **options))
        except Exception as error:  # whatever the error is, transformers must not try another class
            return cls(None, error)

    def taken(self, tokenizer: Any, processor: Any) -> "tuple[SoftPrompts, Any, Any]":
        """Return the model, with the tokenizer and the processor: those given, or else the prompt's.

        Raise the stored error, if any.
        """
        if self._error is not None:
            raise self._error
        if tokenizer is None and processor is None:
            return self._loaded.model, self._loaded.tokenizer, self._loaded.processor
        return self._loaded.model, tokenizer, processor


class Configs(AutoConfig):
    """Replace `AutoConfig` in `pipeline`, so that no config is read for this package's tasks."""

    @classmethod
    def from_pretrained(cls, name: str | None, **kwargs: Any) -> Any:
        """Return the config of this name, or, for this package's tasks, an empty config.

        Raise PromptLoadError if the prompt does not name its backbone.
        """
        if kwargs.get("_from_pipeline") not in TASKS:
            return AutoConfig.from_pretrained(name, **kwargs)
        if name is None:
            raise PromptLoadError(
                "the prompt does not name its backbone; load both by load_prompt(…, backbone=…), and give pipeline "
                "its model and tokenizer."
            )
        return PreTrainedConfig()


def register() -> None:
    """Register both tasks with `transformers.pipeline`."""
    from transformers import pipelines  # imported late: its import calls this function

    tasks = pipelines.PIPELINE_REGISTRY.supported_tasks
    for task, impl in TASKS.items():
        # The entry that `register_pipeline` would write. It takes a class, not the name of a class.
        tasks[task] = Task(impl=impl, pt=(NamedPrompt,))
    pipelines.AutoConfig = Configs

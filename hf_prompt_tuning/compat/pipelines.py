"""What differs between versions of transformers' pipelines."""

from importlib import import_module
from typing import Any

from transformers import PreTrainedConfig

from ..errors import PromptTuningError

NO_COMMIT = PreTrainedConfig()
"""The config of a model that is no transformers model: transformers 5.17 reads from it that no commit is known."""


class Task(dict):
    """A pipeline's entry in transformers' table of tasks. Its class is given by name, and imported when it is used.

    transformers imports it from 5.23; before, this class does.
    """

    def __getitem__(self, key: str) -> Any:
        """Return a value of the entry. Raise PromptTuningError for the model that is taken if none is given."""
        from transformers import pipelines  # imported late: its import makes these entries

        if key == "default":
            raise PromptTuningError(
                "model is not given, and prompts have no default one; give model=…, a prompt's Hub id or folder."
            )
        value = super().__getitem__(key)
        if key != "impl" or hasattr(pipelines, "_resolve_impl"):
            return value
        module, _, name = value.rpartition(".")
        return getattr(import_module(module), name)

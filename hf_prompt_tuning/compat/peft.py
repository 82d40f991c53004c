"""What differs between versions of PEFT."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import peft
from packaging.version import Version
from peft import PeftModel
from transformers import PreTrainedModel

PEFT = Version(peft.__version__)
SAVES_MODULES = "modules_to_save" in {field.name for field in fields(peft.PromptTuningConfig)}
"""Whether PEFT's config of a prompt names other modules that are saved with it, such as a classification head."""
ENCODER = "_prepare_encoder_decoder_kwargs_for_generation"


@contextmanager
def encoder_method(backbone: PreTrainedModel) -> Iterator[None]:
    """Within this context, a backbone has the method of encoders that PEFT below 0.21.2 keeps for its own `generate`.

    transformers has no such method from 5.18. Ours is never called: `generate` of our models is our own.
    """
    if Version("0.21.2") <= PEFT or hasattr(backbone, ENCODER):
        yield
        return
    setattr(backbone, ENCODER, None)
    try:
        yield
    finally:
        delattr(backbone, ENCODER)


def forget_unmade(model: PeftModel) -> None:
    """Forget the config of a model's first prompt, which PEFT below 0.21 lists before it has made the prompt."""
    if not hasattr(model, "prompt_encoder"):
        model.peft_config.clear()


def delete_prompt(model: PeftModel, name: str) -> None:
    """Delete a prompt. If it is the active one, the first of the others becomes active.

    PEFT below 0.21 asks the backbone to delete it, which has no prompts.
    """
    if Version("0.21") <= PEFT:
        PeftModel.delete_adapter(model, name)
        return
    for kept in (model.peft_config, model.prompt_encoder, model.prompt_tokens):
        del kept[name]
    if name in model.active_adapters:
        model.active_adapter = next(iter(model.peft_config), [])
        if model.active_adapter:
            warnings.warn(f"The prompt {name} was active and is deleted; {model.active_adapter} is now.", stacklevel=3)

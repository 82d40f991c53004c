"""Give each prompt its own copy of the backbone's head, which trains with it and is saved with it."""

from typing import Any

from peft import PeftModel
from peft import PromptTuningConfig as PeftPromptTuningConfig
from torch import nn

from ..errors import PromptTuningError
from ..layouts.sharing import calls_its_stand_in
from ..prompts.files import SavedPrompt
from ..prompts.info import PromptInfo
from . import classifiers
from .backbone import turn_off_dropout
from .batch_checks import NO_PROMPT, Texts
from .initialization import saved_start
from .text_rows import TextRows

PEFT_NAMES = ("classifier", "score", "qa_outputs")
"""The heads that PEFT's own classes name in every config, whether or not the backbone has them."""


class OwnHeads(TextRows):
    """Base of the model classes with a head: for classes of texts or tokens, or for answers in a text.

    Each prompt holds a copy of the backbone's head in fp32, which trains and is saved with it. The backbone and its
    head stay as they are.
    """

    def add_adapter(self, adapter_name: str, peft_config: PeftPromptTuningConfig, *args: Any, **kwargs: Any) -> None:
        """Add a prompt with a copy of the backbone's head; see `HeldPrompts.add_adapter`.

        Raise PromptTuningError also for modules to save that are no part of the head.
        """
        given, parts = getattr(peft_config, "modules_to_save", None), classifiers.head_parts(self.base_model)
        if others := [name for name in given or () if name not in (*parts, *PEFT_NAMES)]:
            raise PromptTuningError(
                f"modules_to_save has {others[0]!r}, and a prompt saves its vectors and its head "
                f"({', '.join(parts)}) without being told; leave it out."
            )
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        config, head = self.peft_config[adapter_name], classifiers.copied_head(self.base_model)
        saved = None if config.inference_mode else saved_start(config)
        labels = None if saved is None else classifiers.start_head(head, saved, self.base_model, config.classes)
        super()._setup_prompt_encoder(adapter_name)  # last, because a head that is refused must leave no prompt
        prompt = self.prompt_encoder[adapter_name]
        if not config.backbone_dropout:
            turn_off_dropout(head)
        prompt.classifier, config.classifier_modules = head, tuple(head)
        config.modules_to_save = None  # PEFT, which reads it next, would put a copy of the head into the backbone
        prompt.info.classifier = self._described_head(adapter_name)
        if labels is not None:
            prompt.info.classifier["id2label"] = labels
        self.set_requires_grad(adapter_name, not config.inference_mode)

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Make the named prompts trainable with their heads, or not. With `train_head=False` a head stays frozen."""
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            trains = requires_grad and self.peft_config[name].train_head
            self.prompt_encoder[name].classifier.requires_grad_(trains)

    def _check_saved(self, saved: SavedPrompt, ignore_mismatch: bool) -> None:
        super()._check_saved(saved, ignore_mismatch)
        classifiers.check_labels_match(saved, self.base_model, self.task_type, ignore_mismatch)
        classifiers.check_same_head(nn.ModuleDict(classifiers.head_parts(self.base_model)), saved)

    def _fill(self, saved: SavedPrompt, adapter_name: str, is_trainable: bool, is_new: bool) -> None:
        super()._fill(saved, adapter_name, is_trainable, is_new)
        if saved.classifier is None:  # the present head may be one that trained with the former prompt
            own = classifiers.copied_head(self.base_model)
            self.prompt_encoder[adapter_name].classifier.load_state_dict(own.state_dict())

    def _undescribed(self, adapter_name: str) -> PromptInfo:
        info = super()._undescribed(adapter_name)
        info.classifier = self._described_head(adapter_name)
        return info

    def _described_head(self, adapter_name: str) -> dict[str, Any]:
        config = self.peft_config[adapter_name]
        return classifiers.description(self.base_model, self.task_type, config.train_head)

    def _check_call(self, texts: Texts, arguments: dict[str, Any]) -> None:
        super()._check_call(texts, arguments)
        if not calls_its_stand_in(self.base_model):
            raise PromptTuningError(
                f"the {type(self.base_model).__name__} is compiled, or its forward was replaced, and would use its "
                "own head; give the backbone as it was loaded."
            )

    def _head(self, name: str) -> nn.ModuleDict | None:
        """Return the head of a prompt; None for no prompt: the backbone's own head reads then."""
        return None if name == NO_PROMPT else self.prompt_encoder[name].classifier


class HeadOutsideBackbone:
    """Makes a prompt as `PeftModel` does. PEFT's classes for heads would wrap the head in the backbone itself."""

    def __init__(self, *args: Any, **kwargs: Any):
        PeftModel.__init__(self, *args, **kwargs)

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Add a prompt, without its head."""
        PeftModel.add_adapter(self, *args, **kwargs)

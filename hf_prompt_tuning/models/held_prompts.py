"""Make, name, remove and load the prompts of a model. The backbone is changed last, after all checks."""

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from peft import PromptTuningConfig as PeftPromptTuningConfig
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compat.peft import delete_prompt, encoder_method, forget_unmade
from ..compat.transformers import CHECKPOINTS_ACTIVATIONS, RESUMES_THE_ROOT, TRANSFORMERS
from ..errors import PromptMismatchError
from ..hub.backbones import commit_of
from ..hub.files import hub_id
from ..prompts.config import PromptTuningConfig, check_adapter_name
from ..prompts.files import SavedPrompt, read_prompt
from ..prompts.info import PromptInfo
from .backbone import check_backbone, completed_config, freeze
from .labels import REFERENCE, add_reference, folder_in_checkpoint, root_to_resume
from .places import check_head, place_of
from .prompt import PromptConfigs, check_match, config_to_fill, fill, fingerprint, make_prompt
from .saving import SavingMixin
from .unsupported import NO_SUM, NOTHING_TO_MERGE, NOTHING_TO_UNLOAD, WITHOUT_PROMPT, unsupported

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound="HeldPrompts")


class HeldPrompts(SavingMixin):
    """The part of `SoftPrompts` that holds prompts. Each is a PEFT adapter; all share one frozen backbone.

    `prompt_encoder` holds them by name, each with its description and start (`SoftPrompt`).
    """

    task_type: str
    is_frozen = False
    _tokenizer: Any = None

    merge_and_unload = unsupported("merge_and_unload", NOTHING_TO_MERGE)
    merge_adapter = unsupported("merge_adapter", NOTHING_TO_MERGE)
    unmerge_adapter = unsupported("unmerge_adapter", NOTHING_TO_MERGE)
    unload = unsupported("unload", NOTHING_TO_UNLOAD)
    add_weighted_adapter = unsupported("add_weighted_adapter", NO_SUM)
    # A PeftModel would pass these on to its backbone.
    generate_batch = unsupported("generate_batch", WITHOUT_PROMPT)
    init_continuous_batching = unsupported("init_continuous_batching", WITHOUT_PROMPT)
    continuous_batching_context_manager = unsupported("continuous_batching_context_manager", WITHOUT_PROMPT)

    def __init__(
        self,
        model: PreTrainedModel,
        peft_config: PeftPromptTuningConfig,
        adapter_name: str = "default",
        *,
        frozen: bool = True,
        **kwargs: Any,
    ):
        """Make the first prompt, as in PEFT. The backbone is checked first and changed last.

        Without `frozen` it is left unchanged until `freeze_backbone`.
        """
        check_backbone(model, self.task_type)
        parallel = getattr(model.config, "pretraining_tp", None)
        with encoder_method(model):
            super().__init__(model, PromptTuningConfig.from_peft(peft_config), adapter_name, **kwargs)
        self.peft_config = PromptConfigs(self.peft_config)
        if parallel is not None:
            model.config.pretraining_tp = parallel  # PEFT writes 1 into the backbone's config
        if frozen:
            self.freeze_backbone()

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Return the backbone's fingerprint, as it was when the first prompt was made."""
        return fingerprint(self.base_model)

    @cached_property
    def _commit(self) -> str | None:
        """Return the backbone's commit. Warn if it is unknown."""
        commit, name = commit_of(self.base_model), hub_id(self.base_model.name_or_path)
        if name is not None and commit is None:
            logger.warning(
                "At which commit the backbone %s was loaded cannot be told, so prompts do not name it, and are "
                "loaded with the newest. Give the commit to PromptTuningConfig as revision=….",
                name,
            )
        return commit

    @property
    def word_embeddings(self) -> nn.Module:
        """Return the backbone's input embeddings, as in PEFT."""
        return self.base_model.get_input_embeddings()

    def freeze_backbone(self) -> None:
        """Freeze the backbone, and turn its dropout off unless the config keeps it."""
        freeze(self.base_model, next(iter(self.peft_config.values())).backbone_dropout)
        if not self.is_frozen and getattr(self.base_model, CHECKPOINTS_ACTIVATIONS):
            super().prepare_model_for_gradient_checkpointing(self.base_model)
        self.is_frozen = True

    def prepare_model_for_gradient_checkpointing(self, model: PreTrainedModel) -> PreTrainedModel:
        """Do nothing. PEFT calls this before all checks are made; `freeze_backbone` prepares the model later."""
        return model

    def add_adapter(self, adapter_name: str, peft_config: PeftPromptTuningConfig, *args: Any, **kwargs: Any) -> None:
        """Add a prompt and initialise it as its config says. It does not become active (see PEFT's `set_adapter`).

        Raise PromptTuningError if the name is taken or invalid, the config is not for a soft prompt or is for another
        task, or the initialisation fails.
        """
        forget_unmade(self)
        check_adapter_name(adapter_name, self.peft_config)
        if adapter_name == REFERENCE and peft_config is self.peft_config.get("default"):
            return add_reference(self, peft_config)
        config = completed_config(peft_config, self.base_model, self.task_type, self.peft_config.values())
        if config.tokenizer is None and config.tokenizer_name_or_path is None:
            config.tokenizer = self._tokenizer
        if config.prompt_position != "start" and config.head_token_ids is None:
            config.prompt_position, config.head_token_ids = place_of(config, self.base_model)
        if config.revision is None and config.base_model_name_or_path == hub_id(self.base_model.name_or_path):
            config.revision = self._commit
        super().add_adapter(adapter_name, config, *args, **kwargs)
        self._tokenizer = self._tokenizer or config.tokenizer
        if self.is_frozen:
            self.freeze_backbone()

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        # PEFT calls this from `add_adapter`. PEFT's version guesses the embedding from the parameters' shapes and has
        # only its own three initialisations.
        prompt = make_prompt(self.peft_config[adapter_name], self.base_model, self.fingerprint)
        if not hasattr(self, "prompt_encoder"):
            self.prompt_encoder, self.prompt_tokens = nn.ModuleDict(), {}
        self.prompt_encoder[adapter_name] = prompt
        self.prompt_tokens[adapter_name] = torch.arange(len(prompt.embedding.weight))

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a prompt. Raise PromptTuningError if there is none with that name."""
        self.peft_config.check(adapter_name)
        delete_prompt(self, adapter_name)

    def set_adapter(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Make a prompt the active one. Raise PromptTuningError if there is none with that name."""
        self.peft_config.check(adapter_name)
        super().set_adapter(adapter_name, *args, **kwargs)

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Make the named prompts trainable, or not. Raise PromptTuningError if there is none with one of the names."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            if name not in self.prompt_encoder:
                self.peft_config.check(name)
        for name in names:
            self.prompt_encoder[name].requires_grad_(requires_grad)

    @property
    def info(self) -> PromptInfo:
        """Return the active prompt's description (template, metrics, …), which is saved with it."""
        return self.prompt_encoder[self.active_adapter].info

    @property
    def prompt_info(self) -> Mapping[str, PromptInfo]:
        """Return the description of each prompt by name."""
        return MappingProxyType({name: prompt.info for name, prompt in self.prompt_encoder.items()})

    @classmethod
    def from_pretrained(
        cls: type[Model],
        model: PreTrainedModel,
        model_id: str | Path | SavedPrompt,
        adapter_name: str = "default",
        is_trainable: bool = False,
        ignore_mismatch: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **hub: Any,
    ) -> Model:
        """Load a saved prompt on a backbone.

        Args:
            model: the backbone, already loaded.
            model_id: the prompt's folder or Hub id, or what `read_prompt` returns; PEFT's prompt-tuning adapters too.
            adapter_name: the prompt's name.
            is_trainable: make the prompt trainable.
            ignore_mismatch: warn about another backbone than the prompt was trained on, instead of raising an error.
            tokenizer: the backbone's, for prompts that are added later.
            **hub: `revision`, `token`, `cache_dir`, `subfolder`.

        Raises:
            PromptLoadError: a file is missing, damaged or unsafe.
            PromptMismatchError: the prompt was trained on another backbone.
        """
        check_backbone(model)
        saved = model_id if isinstance(model_id, SavedPrompt) else read_prompt(model_id, **hub)
        if saved.config.task_type not in (None, cls.task_type):
            raise PromptMismatchError(
                f"{saved.source} is a prompt of task type {saved.config.task_type}, and {cls.__name__} is for "
                f"{cls.task_type}; load it with the other class."
            )
        prompt_model = cls(model, config_to_fill(saved, tokenizer), adapter_name, frozen=False)
        prompt_model._check_saved(saved, ignore_mismatch)
        prompt_model._fill(saved, adapter_name, is_trainable, is_new=True)
        prompt_model.freeze_backbone()
        return prompt_model

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        ignore_mismatch: bool = False,
        **kwargs: Any,
    ) -> _IncompatibleKeys:
        """Load a saved prompt under `adapter_name`. A prompt with that name is replaced, with all that describes it.

        Arguments and errors are those of `from_pretrained`. A load that is refused leaves the model as it was.
        """
        hub, _ = self._split_kwargs(kwargs)
        own = None if hub.get("subfolder") else folder_in_checkpoint(model_id, adapter_name, self.peft_config)
        if own is not None:
            logger.warning("%s holds the prompt %r in a folder of its own, which is loaded.", model_id, adapter_name)
            model_id = own
        saved = read_prompt(model_id, **hub)
        is_new = adapter_name not in self.peft_config
        self._check_saved(saved, ignore_mismatch)
        if is_new:
            self.add_adapter(adapter_name, config_to_fill(saved))
        self._fill(saved, adapter_name, is_trainable, is_new)
        if not RESUMES_THE_ROOT and (root := root_to_resume(model_id, adapter_name, self.peft_config)):
            logger.warning("transformers %s resumes %s without its 'default'; it is loaded, too.", TRANSFORMERS, root)
            self.load_adapter(root, "default", is_trainable="default" in self.active_adapters)
        return _IncompatibleKeys([], [])

    def _check_saved(self, saved: SavedPrompt, ignore_mismatch: bool) -> None:
        """Raise PromptMismatchError if a saved prompt is not one of this backbone."""
        check_match(saved, self.word_embeddings.embedding_dim, self.fingerprint, ignore_mismatch)
        if saved.config.head:
            check_head(saved, self.base_model, ignore_mismatch)

    def _fill(self, saved: SavedPrompt, adapter_name: str, is_trainable: bool, is_new: bool) -> None:
        """Replace a prompt by a saved one. A new prompt becomes trainable or not."""
        config = self.peft_config[adapter_name]
        fill(self.prompt_encoder[adapter_name], saved, adapter_name)
        # The name and revision of the backbone that the prompt was trained on, not of the current one.
        named = saved.config.base_model_name_or_path or self.base_model.name_or_path
        config.base_model_name_or_path, config.revision = hub_id(named), saved.backbone["revision"]
        if saved.info is None:
            self.prompt_encoder[adapter_name].info = self._undescribed(adapter_name)
        if not is_trainable:
            self.eval()
        if is_new:
            config.inference_mode = not is_trainable
            self.set_requires_grad(adapter_name, is_trainable)

    def _undescribed(self, adapter_name: str) -> PromptInfo:
        """Return what the model knows of a prompt whose files, as PEFT's, do not describe it: its backbone and place.

        How it started, how it was trained and its results are not known. Those of a former prompt are not its own.
        """
        config = self.peft_config[adapter_name]
        described = {"name_or_path": config.base_model_name_or_path, "revision": config.revision}
        return PromptInfo(backbone=self.fingerprint | described, place=self.prompt_encoder[adapter_name].info.place)

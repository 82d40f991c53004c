"""Make, name and remove the prompts of a model. All checks come first, and the backbone is changed last."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from peft import PromptEmbedding
from peft import PromptTuningConfig as PeftPromptTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import PromptTuningError
from ..hub.backbones import commit_of
from ..hub.names import hub_id
from ..layouts.traits import token_scale
from ..prompts.config import PromptTuningConfig
from ..prompts.fingerprint import backbone_fingerprint, embedding_hash
from ..prompts.info import PromptInfo
from ..prompts.names import check_adapter_name
from ..sharding import embedding_device
from .initialization import can_be_made_again, initial_prompt
from .labels import REFERENCE, add_reference
from .saving import SavedPrompts
from .unsupported import Unsupported
from .wrapping import check_backbone, check_dropout, freeze

logger = logging.getLogger(__name__)


class PromptVectors(PromptEmbedding):
    """Hold a prompt's vectors in fp32, whatever dtype the model is cast to.

    `model.half()`, and a Trainer's `--bf16_full_eval`, cast every parameter in place. A cast prompt would lose half of
    its bits, and the next save would write the rest. The backbone loses nothing, because its weights are also on disk.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PromptVectors":
        def move_only(vectors: Tensor) -> Tensor:
            moved = fn(vectors)
            return moved if moved.dtype == vectors.dtype else vectors.to(moved.device)

        return super()._apply(move_only, recurse)


class HeldPrompts(Unsupported, SavedPrompts):
    """The part of `SoftPrompts` that holds prompts. Each is a PEFT adapter; all share one frozen backbone."""

    task_type: str
    _fingerprint: dict[str, Any] | None = None
    _asked_for_commit = False
    _backbone_commit: str | None = None
    _tokenizer: Any = None
    is_frozen = False

    def __init__(
        self,
        model: PreTrainedModel,
        peft_config: PeftPromptTuningConfig,
        adapter_name: str = "default",
        *,
        frozen: bool = True,
        known_fingerprint: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        """Make the first prompt, as in PEFT. The backbone is checked first and changed last.

        Args:
            model: the backbone.
            peft_config: the first prompt's config.
            adapter_name: the first prompt's name.
            frozen: False leaves the backbone unchanged until `freeze_backbone`.
            known_fingerprint: the backbone's fingerprint, if the caller has computed it.
            **kwargs: as in PEFT.
        """
        check_backbone(model, self.task_type)
        self._fingerprint = known_fingerprint
        parallel = getattr(model.config, "pretraining_tp", None)
        super().__init__(model, PromptTuningConfig.from_peft(peft_config), adapter_name, **kwargs)
        if parallel is not None:
            model.config.pretraining_tp = parallel  # PEFT writes 1 into the backbone's config
        if frozen:
            self.freeze_backbone()

    def freeze_backbone(self) -> None:
        """Freeze the backbone, and turn its dropout off unless the config keeps it."""
        freeze(self.base_model, next(iter(self.peft_config.values())).backbone_dropout)
        if not self.is_frozen and self.base_model.is_activation_checkpointing:
            super().prepare_model_for_gradient_checkpointing(self.base_model)
        self.is_frozen = True

    def prepare_model_for_gradient_checkpointing(self, model: PreTrainedModel) -> PreTrainedModel:
        """Do nothing. PEFT calls this before all checks are made; `freeze_backbone` prepares the model later."""
        return model

    def add_adapter(self, adapter_name: str, peft_config: PeftPromptTuningConfig, *args: Any, **kwargs: Any) -> None:
        """Add a prompt and initialise it as its config says. It does not become active (see PEFT's `set_adapter`).

        Raises:
            PromptTuningError: the name is taken or invalid, the config is not for a soft prompt or is for another
                task, or the initialisation fails.
        """
        check_adapter_name(adapter_name, self.peft_config)
        if adapter_name == REFERENCE and peft_config is self.peft_config.get("default"):
            return add_reference(self, peft_config)
        config = self._checked_config(peft_config)
        # Set here because PEFT guesses them. It takes the hidden size for the embeddings' width (wrong for a projected
        # OPT), and fails without a number of heads (MPT, xglm, mamba), which no prompt needs.
        backbone_config = self.base_model.config.get_text_config()
        config.token_dim = self.base_model.get_input_embeddings().embedding_dim
        config.num_layers = getattr(backbone_config, "num_hidden_layers", None) or 1
        config.num_attention_heads = getattr(backbone_config, "num_attention_heads", None) or 1
        # One prompt, in the encoder. PEFT's default for encoder-decoders adds a second half that is never trained.
        config.num_transformer_submodules = 1
        # A local folder means nothing on another machine, so the backbone is named by its Hub id or not at all.
        config.base_model_name_or_path = hub_id(config.base_model_name_or_path or self.base_model.name_or_path)
        if config.revision is None and config.base_model_name_or_path == hub_id(self.base_model.name_or_path):
            config.revision = self._commit()
        super().add_adapter(adapter_name, config, *args, **kwargs)
        self._tokenizer = self._tokenizer or config.tokenizer
        if self.is_frozen:
            self.freeze_backbone()

    def _commit(self) -> str | None:
        """Return the backbone's commit, or None if it is unknown."""
        if not self._asked_for_commit:
            self._asked_for_commit, self._backbone_commit = True, commit_of(self.base_model)
            name = hub_id(self.base_model.name_or_path)
            if name is not None and self._backbone_commit is None:
                logger.warning(
                    "At which commit the backbone %s was loaded cannot be told, so prompts do not name it, and are "
                    "loaded with the newest. Give the commit to PromptTuningConfig as revision=….",
                    name,
                )
        return self._backbone_commit

    def _checked_config(self, given: PeftPromptTuningConfig) -> PromptTuningConfig:
        """Check and copy a prompt's config. If it has no tokenizer, use that of the model's other prompts."""
        config = PromptTuningConfig.from_peft(given)
        if config.task_type not in (None, self.task_type):
            raise PromptTuningError(
                f"task_type is {getattr(config.task_type, 'value', config.task_type)}, and this model is a "
                f"{self.task_type} model; leave task_type out."
            )
        width = self.base_model.get_input_embeddings().embedding_dim
        if config.token_dim not in (None, width):
            raise PromptTuningError(
                f"token_dim is {config.token_dim}, and the backbone's embeddings have width {width}; leave it out."
            )
        others = [one.backbone_dropout for one in self.peft_config.values()]
        before = others[0] if others else getattr(self.base_model, "dropout_for_prompts", config.backbone_dropout)
        if config.inference_mode:
            config.backbone_dropout = before  # dropout does not matter to a prompt that is not trained
        check_dropout(before, config.backbone_dropout)
        if config.tokenizer is None and config.tokenizer_name_or_path is None:
            config.tokenizer = self._tokenizer
        return config

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        # PEFT calls this from `add_adapter`. PEFT's version guesses the embedding from the parameters' shapes and has
        # only its own three initialisations.
        config = self.peft_config[adapter_name]
        words = self.base_model.get_input_embeddings()
        if config.inference_mode:
            vectors = torch.zeros(config.num_virtual_tokens, config.token_dim)
        else:
            vectors = initial_prompt(config, words, token_scale(self.base_model))
        vectors = vectors.to(embedding_device(words), torch.float32)
        if not hasattr(self, "prompt_encoder"):
            self.prompt_encoder = nn.ModuleDict()
            self.prompt_tokens = {}
            self.prompt_info: dict[str, PromptInfo] = {}
            self.prompt_starts: dict[str, Tensor | None] = {}
        self.word_embeddings = words
        if self._fingerprint is None:
            self._fingerprint = backbone_fingerprint(self.base_model)
        encoder = PromptVectors(PeftPromptTuningConfig(**config.to_dict() | {"prompt_tuning_init": "RANDOM"}), None)
        encoder.embedding.weight = nn.Parameter(vectors, requires_grad=not config.inference_mode)
        self.prompt_encoder[adapter_name] = encoder
        self.prompt_tokens[adapter_name] = torch.arange(config.num_virtual_tokens)
        start = None if config.inference_mode else vectors.detach().cpu().clone()
        self.prompt_starts[adapter_name] = start
        initialization = config.initialization()
        if start is not None and not can_be_made_again(initialization):
            initialization["hash"] = embedding_hash(start)
        self.prompt_info[adapter_name] = PromptInfo(
            initialization=initialization,
            backbone=self._fingerprint
            | {
                "name_or_path": config.base_model_name_or_path,
                "revision": config.revision,
            },
        )

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a prompt.

        Raises:
            PromptTuningError: there is no such prompt.
        """
        self._check_known(adapter_name)
        super().delete_adapter(adapter_name)
        del self.prompt_info[adapter_name], self.prompt_starts[adapter_name]

    def set_adapter(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Make a prompt the active one.

        Raises:
            PromptTuningError: there is no such prompt.
        """
        self._check_known(adapter_name)
        super().set_adapter(adapter_name, *args, **kwargs)

    def _check_known(self, name: Any) -> None:
        if not isinstance(name, str) or name not in self.peft_config:
            raise PromptTuningError(
                f"this model has no prompt {name!r:.80}; its prompts are {', '.join(map(repr, self.peft_config))}."
            )

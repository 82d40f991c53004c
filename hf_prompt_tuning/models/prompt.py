"""Make a prompt, new or from its files: one record of its vectors, of their start, and of its description."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from peft import PromptEmbedding
from peft import PromptTuningConfig as PeftPromptTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import PromptLoadError, PromptTuningError
from ..hub.files import hub_id
from ..layouts.traits import token_scale
from ..prompts.config import PromptTuningConfig
from ..prompts.files import SavedPrompt
from ..prompts.fingerprint import embedding_hash
from ..prompts.info import PromptInfo
from ..sharding import embedding_device
from .backbone import check_dropout
from .initialization import can_be_made_again, initial_prompt


class SoftPrompt(PromptEmbedding):
    """Hold one prompt. It is PEFT's module for a prompt, so PEFT moves, saves and deletes it as a whole.

    The vectors are in fp32, whatever dtype the model is cast to. `model.half()`, and a Trainer's `--bf16_full_eval`,
    cast every parameter in place. A cast prompt would lose half of its bits, and the next save would write the rest.
    The backbone loses nothing, because its weights are also on disk.

    Attributes:
        embedding: its `weight` is the prompt's vectors, [P, H] fp32, the parameter that is trained.
        start: [P, H] fp32 on the CPU, the vectors before training; None if they are not known.
        info: the description that is saved with the prompt (template, metrics, …).
    """

    def __init__(self, vectors: Tensor, config: PromptTuningConfig, info: PromptInfo, start: Tensor | None):
        super().__init__(PeftPromptTuningConfig(**config.to_dict() | {"prompt_tuning_init": "RANDOM"}), None)
        self.embedding.weight = nn.Parameter(vectors, requires_grad=not config.inference_mode)
        self.info, self.start = info, start

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SoftPrompt":
        def move_only(vectors: Tensor) -> Tensor:
            moved = fn(vectors)
            return moved if moved.dtype == vectors.dtype else vectors.to(moved.device)

        return super()._apply(move_only, recurse)


class PromptConfigs(dict[str, PromptTuningConfig]):
    """The configs of a model's prompts by name: PEFT's `peft_config`. The error for a missing name lists the names."""

    def check(self, name: Any) -> None:
        """Raise PromptTuningError if there is no such prompt."""
        if not isinstance(name, str) or name not in self:
            self.__missing__(name)

    def __missing__(self, name: Any) -> NoReturn:
        """Raise PromptTuningError: there is no such prompt."""
        hint = ""
        if name == "default":
            hint = (
                " TRL's trainers copy 'default' as what they measure training against: make the prompt with "
                "adapter_name='default', or give ref_model."
            )
        raise PromptTuningError(
            f"this model has no prompt {name!r:.80}; its prompts are {', '.join(map(repr, self))}.{hint}"
        )


def make_prompt(config: PromptTuningConfig, backbone: PreTrainedModel, fingerprint: dict[str, Any]) -> SoftPrompt:
    """Make a prompt as its completed config says, from the backbone's embeddings.

    With `inference_mode`, the vectors are zeros: they are loaded later. Raise PromptTuningError if the initialisation
    fails.
    """
    words, start = backbone.get_input_embeddings(), None
    if config.inference_mode:
        vectors = torch.zeros(config.num_virtual_tokens, words.embedding_dim)
    else:
        vectors = initial_prompt(config, words, token_scale(backbone))
    vectors = vectors.to(embedding_device(words), torch.float32)
    initialization = config.initialization()
    if not config.inference_mode:
        start = vectors.detach().cpu().clone()
        if not can_be_made_again(initialization):
            initialization["hash"] = embedding_hash(start)
    described = {"name_or_path": config.base_model_name_or_path, "revision": config.revision}
    info = PromptInfo(initialization=initialization, backbone=fingerprint | described)
    return SoftPrompt(vectors, config, info, start)


def completed_config(
    given: PeftPromptTuningConfig, backbone: PreTrainedModel, task_type: str, others: Iterable[PromptTuningConfig]
) -> PromptTuningConfig:
    """Check a prompt's config, and return a copy with what the backbone determines.

    `others` are the configs of the backbone's other prompts, which share its dropout.

    Raises:
        PromptTuningError: the config is not for a soft prompt, or is for another task, width or dropout.
    """
    config = PromptTuningConfig.from_peft(given)
    if config.task_type not in (None, task_type):
        raise PromptTuningError(
            f"task_type is {getattr(config.task_type, 'value', config.task_type)}, and this model is a "
            f"{task_type} model; leave task_type out."
        )
    width = backbone.get_input_embeddings().embedding_dim
    if config.token_dim not in (None, width):
        raise PromptTuningError(
            f"token_dim is {config.token_dim}, and the backbone's embeddings have width {width}; leave it out."
        )
    kept = getattr(backbone, "dropout_for_prompts", config.backbone_dropout)
    kept = next((other.backbone_dropout for other in others), kept)
    if config.inference_mode:
        config.backbone_dropout = kept  # dropout does not matter to a prompt that is not trained
    check_dropout(kept, config.backbone_dropout)
    # Set here because PEFT guesses them. It takes the hidden size for the embeddings' width (wrong for a projected
    # OPT), and fails without a number of heads (MPT, xglm, mamba), which no prompt needs.
    backbone_config = backbone.config.get_text_config()
    config.token_dim = width
    config.num_layers = getattr(backbone_config, "num_hidden_layers", None) or 1
    config.num_attention_heads = getattr(backbone_config, "num_attention_heads", None) or 1
    # One prompt, in the encoder. PEFT's default for encoder-decoders adds a second half that is never trained.
    config.num_transformer_submodules = 1
    # A local folder means nothing on another machine, so the backbone is named by its Hub id or not at all.
    config.base_model_name_or_path = hub_id(config.base_model_name_or_path or backbone.name_or_path)
    return config


def config_to_fill(saved: SavedPrompt, tokenizer: PreTrainedTokenizerBase | None = None) -> PromptTuningConfig:
    """Return the config of a prompt that is not initialised, because its vectors are loaded from a file."""
    return replace(saved.config, inference_mode=True, token_dim=None, tokenizer=tokenizer)


def fill(prompt: SoftPrompt, saved: SavedPrompt, name: str) -> None:
    """Replace what a prompt holds by what was saved. Raise PromptLoadError if their lengths differ."""
    if prompt.embedding.weight.shape != saved.vectors.shape:
        raise PromptLoadError(
            f"{saved.source} holds {len(saved.vectors)} virtual tokens, and the prompt {name!r} has "
            f"{len(prompt.embedding.weight)}. Load it under another adapter_name."
        )
    with torch.no_grad():
        prompt.embedding.weight.copy_(saved.vectors)
    prompt.start = _start_of(saved, prompt.start)
    if saved.info is not None:
        prompt.info = saved.info
    else:
        # A PEFT adapter does not record how it started. The config that we load it with does not say it either.
        prompt.info.initialization = {}
        prompt.info.backbone["revision"] = saved.backbone["revision"]


def _start_of(saved: SavedPrompt, present: Tensor | None) -> Tensor | None:
    """Return the vectors that a saved prompt started from: its own file's, or (for a checkpoint) the present prompt's.

    They must match the hash that the prompt records, because a run that is resumed with another seed starts from
    other vectors.
    """
    recorded = None if saved.info is None else saved.info.initialization.get("hash")
    starts = (start for start in (saved.start, present) if start is not None)
    return next((start for start in starts if embedding_hash(start) == recorded), None)

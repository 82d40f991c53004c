"""Save, load and push one prompt."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import PromptLoadError
from ..prompts.card import write_card
from ..prompts.config import PromptTuningConfig
from ..prompts.files import SavedPrompt, write_start
from ..prompts.fingerprint import embedding_hash
from ..prompts.plots import check_pictures, save_pictures
from .initialization import can_be_made_again
from .prompt import SoftPrompt


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


def folder_of(name: str, save_directory: str | Path) -> Path:
    """Return the folder in which PEFT saves a prompt: `save_directory` for "default", else one with its name."""
    return Path(save_directory) if name == "default" else Path(save_directory) / name


def check_savable(prompts: Mapping[str, SoftPrompt], card: bool) -> None:
    """Raise FloatingPointError if a prompt holds NaN or infinity, and an error if its pictures cannot be drawn."""
    for name, prompt in prompts.items():
        if not torch.isfinite(prompt.embedding.weight).all():
            raise FloatingPointError(
                f"the prompt {name!r} is not finite, and is not saved. Go back to a checkpoint from before, with "
                "a lower learning_rate."
            )
        if card:
            check_pictures(prompt.info)


def write_start_and_card(
    folder: Path,
    prompt: SoftPrompt,
    config: PromptTuningConfig,
    backbone: PreTrainedModel,
    repo_id: str | None,
    subfolder: str | None,
) -> None:
    """Write a prompt's start (if its record is not enough), pictures and card into its folder.

    The card counts the backbone's parameters, and its code names the repository and the prompt's `subfolder` in it.
    """
    write_start(folder, None if can_be_made_again(prompt.info.initialization) else prompt.start)
    save_pictures(folder, prompt.info)
    size = sum(parameter.numel() for parameter in backbone.parameters())
    write_card(folder, config, prompt.info, size, repo_id, subfolder=subfolder)

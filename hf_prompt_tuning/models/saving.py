"""Save, load and push one prompt."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..prompts.card import write_card
from ..prompts.config import PromptTuningConfig
from ..prompts.ensemble_info import EnsembleInfo
from ..prompts.files import write_start
from ..prompts.plots import check_pictures, save_pictures
from .initialization import can_be_made_again
from .prompt import SoftPrompt


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
    subfolder: str | None = None,
    ensemble: EnsembleInfo | None = None,
) -> None:
    """Write a prompt's start (if its record is not enough), pictures and card into its folder.

    The card counts the backbone's parameters, and its code names the repository and the prompt's `subfolder` in it.
    The best prompt of an ensemble has the ensemble's card.
    """
    write_start(folder, None if can_be_made_again(prompt.info.initialization) else prompt.start)
    save_pictures(folder, prompt.info)
    size = sum(parameter.numel() for parameter in backbone.parameters())
    write_card(folder, config, prompt.info, size, repo_id, ensemble, subfolder)

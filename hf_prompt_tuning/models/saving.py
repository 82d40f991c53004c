"""Save, load and push one prompt."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import PromptLoadError
from ..hub.background import PUSH_SECONDS, temporary_folder, within
from ..hub.push_errors import explained
from ..prompts.card import write_card
from ..prompts.config import PromptTuningConfig
from ..prompts.files import SavedPrompt, write_start
from ..prompts.fingerprint import embedding_hash
from ..prompts.plots import check_pictures, save_pictures
from ..prompts.pushing import Destination, make_repository, push
from .initialization import can_be_made_again
from .prompt import SoftPrompt


def config_to_fill(saved: SavedPrompt, tokenizer: PreTrainedTokenizerBase | None = None) -> PromptTuningConfig:
    """Return the config of a prompt that is not initialised, because its vectors are loaded from a file."""
    return replace(saved.config, inference_mode=True, token_dim=None, tokenizer=tokenizer)


def fill(prompt: SoftPrompt, saved: SavedPrompt, name: str) -> None:
    """Replace what a prompt holds by what was saved.

    Raises:
        PromptLoadError: the saved prompt has another length than the prompt, which is called `name`.
    """
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
    """Raise an error if a prompt cannot be saved.

    Args:
        prompts: the prompts by name.
        card: whether pictures are saved with them.

    Raises:
        FloatingPointError: a prompt holds NaN or infinity.
    """
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

    Args:
        folder: the prompt's folder.
        prompt: the prompt.
        config: its config.
        backbone: its parameters are counted.
        repo_id: the repository that the card's code names.
        subfolder: the prompt's folder in the repository, or None.
    """
    write_start(folder, None if can_be_made_again(prompt.info.initialization) else prompt.start)
    save_pictures(folder, prompt.info)
    size = sum(parameter.numel() for parameter in backbone.parameters())
    write_card(folder, config, prompt.info, size, repo_id, subfolder=subfolder)


def push_prompt(
    save: Callable[[Path, str], Path],
    destination: Destination,
    subfolder: str,
    commit_message: str,
    commit_description: str | None,
    create_pr: bool,
) -> CommitInfo:
    """Create the repository, save a prompt in a temporary folder, and push it.

    Args:
        save: saves the prompt in a folder, for a repository. It returns the folder of the prompt's own files.
        destination: the repository.
        subfolder: the folder in the repository, or "".
        commit_message, commit_description, create_pr: of the commit.

    Raises:
        PromptPushError: the Hub refuses the push or cannot be reached.
    """
    with explained(destination.repo_id), temporary_folder() as made:
        to = within(PUSH_SECONDS, lambda: make_repository(destination))
        folder = save(made, to.repo_id)
        return within(PUSH_SECONDS, lambda: push(folder, to, commit_message, subfolder, commit_description, create_pr))

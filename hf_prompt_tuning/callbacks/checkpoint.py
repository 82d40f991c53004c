"""Every prompt that was evaluated, in one small file, to be looked at or gone back to."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import PromptLoadError
from ..prompt_files import checked
from ..soft_prompts import SoftPrompts
from .watched import watched

logger = logging.getLogger(__name__)

FILE = "evaluated_prompts.safetensors"


class KeptPrompt(NamedTuple):
    """A prompt as it was when it was evaluated.

    Attributes:
        vectors: [P, H] fp32, on the CPU.
        metrics: of that evaluation, by the Trainer's names.
    """

    vectors: Tensor
    metrics: dict[str, float]


class PromptCheckpointCallback(TrainerCallback):
    """Keeps the active prompt of every evaluation in one file of the output folder, `evaluated_prompts.safetensors`.

    A checkpoint is for resuming, and old ones are deleted; this file is for looking back: 20 vectors of width 4096 are
    320 kB an evaluation. It goes on with what is in the file when a run is resumed.

    Args:
        file: where, in place of the output folder's.
    """

    def __init__(self, file: str | Path | None = None):
        self.file = file

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: nn.Module, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Adds the prompt as it is now; a second evaluation at one step adds its metrics."""
        model = watched(model, self)
        if not state.is_world_process_zero:
            return
        file = Path(self.file) if self.file is not None else Path(args.output_dir) / FILE
        kept = kept_prompts(file) if file.exists() else {}
        before = kept[state.global_step].metrics if state.global_step in kept else {}
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        kept[state.global_step] = KeptPrompt(model.prompt.detach().float().cpu().clone(), before | numbers)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, kept)


def _write(file: Path, kept: Mapping[int, KeptPrompt]) -> None:
    """All of it under another name first, so that a run that is killed meanwhile leaves the old file whole."""
    tensors = {str(step): prompt.vectors for step, prompt in kept.items()}
    metadata = {str(step): json.dumps(prompt.metrics) for step, prompt in kept.items()}
    unfinished = file.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata=metadata)
    os.replace(unfinished, file)


def kept_prompts(file: str | Path) -> dict[int, KeptPrompt]:
    """What `PromptCheckpointCallback` kept, by update step, first to last.

    Args:
        file: its file, or the folder that holds it.

    Raises:
        PromptLoadError: there is no such file, or it is damaged.
    """
    file = Path(file) / FILE if Path(file).is_dir() else Path(file)
    if not file.exists():
        raise PromptLoadError(f"{file} is not there; PromptCheckpointCallback writes it at the first evaluation.")
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            found = {
                int(step): KeptPrompt(tensors.get_tensor(step), json.loads(metadata.get(step, "{}")))
                for step in tensors.keys()  # noqa: SIM118  (it is no mapping)
            }
    except Exception as error:  # safetensors has an error type of its own
        raise PromptLoadError(f"{file} is not a whole file of evaluated prompts: {error}") from error
    for prompt in found.values():
        checked(prompt.vectors, file)
    return dict(sorted(found.items()))


def restore_prompt(model: SoftPrompts, file: str | Path, step: int) -> dict[str, float]:
    """Puts a kept prompt back into the active one; returns the metrics that it had.

    Args:
        model: with an active prompt of the same shape.
        file: as in `kept_prompts`.
        step: the update step that it was kept at.

    Raises:
        PromptLoadError: nothing was kept at that step, or it has another shape.
    """
    kept = kept_prompts(file)
    if step not in kept:
        raise PromptLoadError(f"{file} has no prompt of step {step}; it has {', '.join(map(str, kept))}.")
    vectors, metrics = kept[step]
    if vectors.shape != model.prompt.shape:
        raise PromptLoadError(
            f"{file} holds prompts of shape {list(vectors.shape)}, and the active one's is {list(model.prompt.shape)}."
        )
    with torch.no_grad():
        model.prompt.copy_(vectors)
    return metrics

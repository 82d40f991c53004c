"""Save the prompt of every evaluation in one small file, and restore prompts from it."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from ...errors import PromptLoadError
from ...hub.files import open_tensors
from ...models.soft_prompts import SoftPrompts
from ...prompts.files import checked
from ...prompts.json_files import numbers_of
from .watched import prompt_vectors, watched

logger = logging.getLogger(__name__)

FILE = "evaluated_prompts.safetensors"


class KeptPrompt(NamedTuple):
    """A prompt at the time of an evaluation.

    Attributes:
        vectors: [P, H] fp32, on the CPU.
        metrics: metrics of that evaluation, by the Trainer's names.
    """

    vectors: Tensor
    metrics: dict[str, float]


class PromptCheckpointCallback(TrainerCallback):
    """Save the prompt of every evaluation in one `file`: default `evaluated_prompts.safetensors` of the output folder.

    If several prompts train together (several tasks, an ensemble), each is saved with the metrics that contain its
    name. Metrics of no single prompt (an ensemble's vote) are not saved.

    A checkpoint is for resuming, and old checkpoints are deleted. This file is for looking back. 20 vectors of width
    4096 take 320 kB per evaluation. A run that begins replaces the file of an earlier run at its first evaluation; a
    resumed run, and an evaluation without training, add to the existing file.
    """

    def __init__(self, file: str | Path | None = None):
        self.file = file
        self._begins = False
        self._before_training: set[str] = set()  # what this run has evaluated at step 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note whether a run begins, or an earlier one goes on."""
        self._begins = state.global_step == 0

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: nn.Module, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Save the current prompt. A second evaluation in the same step adds its metrics."""
        model = watched(model, self)
        metrics_by_prompt = _by_prompt(numbers_of(metrics), model)
        # Run on every process, because ZeRO-3 gathers the prompt.
        vectors = {name: prompt_vectors(model, name).float().cpu() for name in metrics_by_prompt}
        if not state.is_world_process_zero:
            return
        file = Path(self.file) if self.file is not None else Path(args.output_dir) / FILE
        kept = _read(file) if file.exists() else {}
        if self._begins:
            kept = {key: prompt for key, prompt in kept.items() if key in self._before_training}
            self._begins = False
        if state.global_step > 0:
            self._before_training = set()
        # TRL's copy of a prompt is one more only until it is deleted: who has had a name keeps it.
        several = len(model.prompt_encoder) > 1 or any("/" in key for key in kept)
        for name, numbers in metrics_by_prompt.items():
            key = _key(state.global_step, name if several else None)
            before = kept[key].metrics if key in kept else {}
            kept[key] = KeptPrompt(vectors[name], before | numbers)
            if state.global_step == 0:
                self._before_training.add(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, kept)


def _by_prompt(metrics: dict[str, float], model: SoftPrompts) -> dict[str, dict[str, float]]:
    """Return each prompt's metrics, by prompt name.

    A metric belongs to the prompt whose name follows its prefix. If any metric names a prompt, metrics without a name
    belong to no prompt and are dropped. If none does, all metrics belong to the active prompt.
    """
    by_prompt: dict[str, dict[str, float]] = {}
    names = sorted(model.prompt_encoder, key=len, reverse=True) if len(model.prompt_encoder) > 1 else []
    for key, value in metrics.items():
        prefix, _, rest = key.partition("_")
        # Try the longest name first, because one name may be the beginning of another.
        name = next((name for name in names if rest.startswith(f"{name}_")), None)
        if name is not None:
            by_prompt.setdefault(name, {})[f"{prefix}_{rest.removeprefix(f'{name}_')}"] = value
    return by_prompt or {model.active_adapter: metrics}


def _key(step: int, name: str | None) -> str:
    return str(step) if name is None else f"{step}/{name}"


def _write(file: Path, kept: Mapping[str, KeptPrompt]) -> None:
    """Write to a temporary file and rename it, so that a kill during the write leaves the old file intact."""
    tensors = {key: prompt.vectors for key, prompt in kept.items()}
    metadata = {key: json.dumps(prompt.metrics) for key, prompt in kept.items()}
    unfinished = file.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata=metadata)
    os.replace(unfinished, file)


def _read(file: Path) -> dict[str, KeptPrompt]:
    """Return the prompts in the file, by step, or by step and prompt name."""
    with open_tensors(file, "is not a whole file of evaluated prompts") as tensors:
        metadata = tensors.metadata() or {}
        return {
            key: KeptPrompt(checked(tensors.get_tensor(key), file), json.loads(metadata.get(key, "{}")))
            for key in tensors.keys()  # noqa: SIM118  (it is no mapping)
            if int(key.partition("/")[0]) >= 0
        }


def kept_prompts(file: str | Path, adapter_name: str | None = None) -> dict[int, KeptPrompt]:
    """Return what `PromptCheckpointCallback` saved of a prompt, by update step, in ascending order.

    Args:
        file: the callback's file, or the folder that holds it.
        adapter_name: the prompt's name, if the file holds several prompts. None for those that were evaluated while
            the model had no other prompt, if it got others later.

    Raises:
        PromptLoadError: the file is missing or damaged, or it holds several prompts and none has this name.
    """
    file = Path(file) / FILE if Path(file).is_dir() else Path(file)
    if not file.exists():
        raise PromptLoadError(f"{file} is not there; PromptCheckpointCallback writes it at the first evaluation.")
    prompts = _read(file)
    names = sorted({key.partition("/")[2] for key in prompts})
    wanted = "" if names == [""] else adapter_name or ""
    if names and wanted not in names:
        named = ", ".join(repr(name) for name in names if name)
        raise PromptLoadError(f"{file} has prompts called {named}, and adapter_name is {adapter_name!r}; name one.")
    places = {key: key.partition("/") for key in prompts}
    own = {int(step): prompts[key] for key, (step, _, name) in places.items() if name == wanted}
    return dict(sorted(own.items()))


def restore_prompt(model: SoftPrompts, file: str | Path, step: int) -> dict[str, float]:
    """Copy a saved prompt into the active prompt; return the metrics that it had.

    Args:
        model: a model whose active prompt has the same shape. If the file holds several prompts, the one with the
            active prompt's name is restored.
        file: as in `kept_prompts`.
        step: the update step of the saved prompt.

    Raises:
        PromptLoadError: no prompt was saved in that step, it has another shape, or the active one has a
            classification head.
    """
    kept = kept_prompts(file, model.active_adapter)
    if step not in kept:
        raise PromptLoadError(f"{file} has no prompt of step {step}; it has {', '.join(map(str, kept))}.")
    vectors, metrics = kept[step]
    if model.prompt_encoder[model.active_adapter].classifier is not None:
        raise PromptLoadError(
            f"{file} holds vectors alone, and the prompt {model.active_adapter!r} has a classification head, which "
            "belongs to the vectors of its step; load a checkpoint of the Trainer (load_prompt)."
        )
    if vectors.shape != model.prompt.shape:
        raise PromptLoadError(
            f"{file} holds prompts of shape {list(vectors.shape)}, and the active one's is {list(model.prompt.shape)}."
        )
    with torch.no_grad():
        model.prompt.copy_(vectors)
    return metrics

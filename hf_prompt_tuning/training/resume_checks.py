"""Check that a checkpoint fits the run: same optimizer, schedule and precision."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME
from transformers.trainer_pt_utils import safe_globals

from ..errors import PromptTuningError
from ..prompts.info import INFO_FILE

logger = logging.getLogger(__name__)

RESUMED = ("learning_rate", "head_learning_rate", "weight_decay", "warmup_steps")
"""Arguments whose values are restored from the checkpoint's optimizer and schedule, even if they have changed."""


def check_like(checkpoint: str, args: TrainingArguments, scales: bool, own_optimizer: bool) -> None:
    """Raise PromptTuningError if the checkpoint was saved with another optimizer, schedule or precision.

    `scales` tells whether the run scales its loss (fp16), and `own_optimizer` whether the caller passed the optimizer;
    the arguments then do not describe it.
    """
    folder = Path(checkpoint)
    if not any(folder.glob(f"{OPTIMIZER_NAME}*")):
        return  # it holds only the prompt: optimizer and schedule start from the beginning
    recorded = _recorded(folder)  # several prompts share what is required
    required = {} if own_optimizer else {"optim": str(args.optim.value)}
    required["lr_scheduler_type"] = str(args.lr_scheduler_type.value)
    for name, value in required.items():
        before = recorded.get(name)
        # The fused version of an optimizer computes the same updates.
        if before is not None and str(before).removesuffix("_fused") != value.removesuffix("_fused"):
            raise PromptTuningError(
                f"{checkpoint} is of a run with {name}={before}, and this one has {value}; resume with the same, or "
                "start anew from its prompt (init_prompt)."
            )
    scaled = any(folder.glob(f"{SCALER_NAME}*"))
    if scaled != scales:
        raise PromptTuningError(
            f"{checkpoint} is of a run {'with' if scaled else 'without'} fp16, and this one is "
            f"{'with' if scales else 'without'}; resume with the same, or start anew from its prompt (init_prompt)."
        )


def warn_of_resumed(checkpoint: str, args: TrainingArguments, prompt: str | None = None) -> None:
    """Warn of each argument that has changed and goes on as the checkpoint's.

    `prompt` is the name of one of several prompts, whose arguments these are.
    """
    folder = Path(checkpoint)
    if not any(folder.glob(f"{OPTIMIZER_NAME}*")):
        return
    recorded, whose = _recorded(folder / (prompt or "")), "" if prompt is None else f" of {prompt!r}"
    for name in RESUMED:
        if name in recorded and recorded[name] != getattr(args, name, None):
            logger.warning(
                f"{name}{whose} is {getattr(args, name, None)}, and the checkpoint's {recorded[name]} goes on: "
                "optimizer and schedule are resumed as they were."
            )


def _recorded(folder: Path) -> dict[str, Any]:
    """Return the hyperparameters that the checkpoint's prompt records, or the first of several prompts."""
    files = [folder / INFO_FILE, *sorted(folder.glob(f"*/{INFO_FILE}"))]
    file = next((file for file in files if file.is_file()), None)
    return {} if file is None else json.loads(file.read_text(encoding="utf-8")).get("training", {})


def check_states(checkpoint: str, optimizer: Any, scheduler: Any) -> None:
    """Raise PromptTuningError if a checkpoint's optimizer or schedule has another type or size than the run's."""
    saved = saved_state(Path(checkpoint, OPTIMIZER_NAME))
    inner = getattr(optimizer, "optimizer", optimizer)
    if saved is not None and saved.get("param_groups"):
        # Adafactor's groups lack options that torch adds to its defaults.
        missing = sorted((set(inner.defaults) & set(inner.param_groups[0])) - set(saved["param_groups"][0]))
        if missing:
            raise PromptTuningError(
                f"{checkpoint} is of a run with another optimizer: it knows no {missing[0]!r} of "
                f"{type(inner).__name__}; resume with the same one."
            )
        both = saved["param_groups"], inner.param_groups
        before, now = (" + ".join(str(len(group["params"])) for group in of) for of in both)
        if before != now:
            raise PromptTuningError(
                f"{checkpoint} is of a run that trains {before} parameters (by group), and this one {now}; resume "
                "with the same prompts, and the same train_head and learning rates of their own."
            )
    saved = saved_state(Path(checkpoint, SCHEDULER_NAME))
    if saved is not None and set(saved) != set(scheduler.state_dict()):
        kind = type(getattr(scheduler, "scheduler", scheduler)).__name__
        raise PromptTuningError(
            f"{checkpoint} is of a run with another schedule than {kind}; resume with the same one."
        )


def saved_state(file: Path) -> dict[str, Any] | None:
    """Return the state that a checkpoint's file holds; None if there is no file, or it holds something else."""
    if not file.is_file():
        return None
    with safe_globals():
        state = torch.load(file, map_location="cpu", weights_only=True)
    return state if isinstance(state, dict) else None

"""Named recipes: values of arguments that were used together, and where they are from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import PromptTuningError

AUTO = "auto"
"""The recipe that finds its own settings: `FieldTrainer` trains it."""

TOGETHER = (
    ("num_train_epochs", "max_steps"),
    ("warmup_steps", "warmup_ratio"),
    ("lr_scheduler_type", "lr_scheduler_kwargs"),
    ("optim", "optim_args"),
    ("prompt_tuning_init", "prompt_tuning_init_text", "init_prompt"),
    ("num_virtual_tokens", "init_prompt"),
    ("average_last", "load_best_model_at_end", "early_stopping_patience"),
)
"""Arguments that say one thing together: if one of them is given, a recipe says nothing about the others."""


@dataclass(frozen=True)
class Recipe:
    """Values that apply where the user gives none.

    Attributes:
        source: where the values are from.
        training: values of `PromptTuningArguments`.
        prompt: values of `PromptTuningConfig`, which the command applies.
    """

    source: str
    training: Mapping[str, Any] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)


RECIPES = {
    "default": Recipe("this package's defaults"),
    # 15 passes in place of 10.
    "few_shot": Recipe(
        "the settings of benchmarks/raft_folds.py, for 50 tweets; the mean of benchmarks/ways.py",
        {"num_train_epochs": 15.0, "per_device_train_batch_size": 8, "average_last": 0.5},
    ),
    # With 3e-2 one of four runs stayed behind.
    "examples": Recipe(
        "docs/decisions/0012, for 50 and 60 rows",
        {"learning_rate": 1e-2, "num_train_epochs": 10.0, "per_device_train_batch_size": 8, "average_last": 0.5},
        {"prompt_tuning_init": "EXAMPLES"},
    ),
    # Not set: the paper's choice of the best checkpoint, which needs evaluation data. transformers' Adafactor has no
    # parameter scaling here, and the paper's decay of 0.8 for the second moments.
    "lester2021": Recipe(
        "Lester et al. 2021, section 3",
        {
            "optim": "adafactor",
            "learning_rate": 0.3,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "weight_decay": 1e-5,
            "max_grad_norm": 0.0,
            "per_device_train_batch_size": 32,
            "max_steps": 30_000,
        },
        {"num_virtual_tokens": 100, "prompt_tuning_init": "CLASS_LABELS"},
    ),
    # PyTorch's AdamW has a weight decay of 0.01, and the tutorial's loop does not clip.
    "peft": Recipe(
        "the tutorial of PEFT's documentation",
        {
            "optim": "adamw_torch",
            "learning_rate": 3e-2,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "weight_decay": 0.01,
            "max_grad_norm": 0.0,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 50.0,
        },
        {"num_virtual_tokens": 8, "prompt_tuning_init": "TEXT"},
    ),
}


def check_recipe(name: str) -> None:
    """Raise PromptTuningError if there is no recipe of this name."""
    if name not in (*RECIPES, AUTO):
        raise PromptTuningError(f"recipe is {name!r:.80}; give one of {', '.join((*RECIPES, AUTO))}.")


def missing_values(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the recipe's values whose arguments, and those that say the same thing, are not given."""
    if values.get("prompt_tuning_init") == "EXAMPLES":
        given = set(given) - {"prompt_tuning_init_text"}  # examples stand behind a text, not in its place

    def is_free(name: str) -> bool:
        groups = [group for group in TOGETHER if name in group]
        return not any(other in given for group in ((name,), *groups) for other in group)

    return {name: value for name, value in values.items() if is_free(name)}

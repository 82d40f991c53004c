"""Save several prompts in one folder, each in a folder of its name, and check a checkpoint of several."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import PromptTuningError
from ..models.scoring import loss_history
from ..models.soft_prompts import SoftPrompts
from ..prompts.card import write_card
from ..prompts.ensemble_info import EnsembleInfo
from ..prompts.files import CONFIG_FILE, START_FILE, WEIGHTS_FILE
from ..prompts.plots import save_curves, save_pictures


def history_of(name: str, log_history: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Return one prompt's losses from the log of a run with several prompts, as in `PromptInfo.history`."""
    keys = {f"loss_{name}": "loss", f"eval_{name}_loss": "eval_loss"}
    return loss_history(
        [{"step": log["step"], keys[key]: log[key]} for log in log_history for key in keys if key in log]
    )


def save_prompts(model: SoftPrompts, names: Iterable[str], folder: Path, repo_id: str | None, card: bool) -> None:
    """Save each prompt in a folder of its name. With `card`, also draw one picture of all their losses."""
    names = list(names)
    model.save_pretrained(folder, selected_adapters=names, repo_id=repo_id, card=card)
    if card:
        save_curves(folder, {name: model.prompt_info[name].history for name in names})


def save_best(model: SoftPrompts, ensemble: EnsembleInfo, folder: Path, repo_id: str | None) -> None:
    """Copy the best prompt of a saved ensemble into the ensemble's folder, with the description and a card."""
    # Not all prompts have this file, so an existing one may belong to an earlier best prompt.
    (folder / START_FILE).unlink(missing_ok=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE, START_FILE):
        if (folder / ensemble.best / file).exists():
            shutil.copy(folder / ensemble.best / file, folder)
    info = model.prompt_info[ensemble.best]
    info.write(folder)
    ensemble.write(folder)
    save_pictures(folder, info)
    size = sum(p.numel() for p in model.base_model.parameters())
    write_card(folder, model.peft_config[ensemble.best], info, size, repo_id, ensemble)


def check_checkpoint(folder: str | Path, names: Iterable[str]) -> None:
    """Raise PromptTuningError if a checkpoint does not hold exactly these prompts."""
    saved = {file.parent.name for file in Path(folder).glob(f"*/{WEIGHTS_FILE}")}
    if saved != set(names):
        raise PromptTuningError(
            f"{folder} holds the prompts {sorted(saved)}, and this run trains {sorted(names)}; resume with the same "
            "tasks."
        )

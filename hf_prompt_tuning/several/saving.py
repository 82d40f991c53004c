"""Save the best prompt of an ensemble once more, and check a checkpoint of several prompts."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import PromptTuningError
from ..models.saving import write_start_and_card
from ..models.soft_prompts import SoftPrompts
from ..prompts.ensemble_info import EnsembleInfo
from ..prompts.files import CONFIG_FILE, WEIGHTS_FILE


def save_best(model: SoftPrompts, ensemble: EnsembleInfo, folder: Path, repo_id: str | None) -> None:
    """Copy the best prompt of a saved ensemble into the ensemble's folder, with the description and a card."""
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copy(folder / ensemble.best / file, folder)
    prompt, config = model.prompt_encoder[ensemble.best], model.peft_config[ensemble.best]
    prompt.info.write(folder)
    ensemble.write(folder)
    write_start_and_card(folder, prompt, config, model.base_model, repo_id, ensemble=ensemble)


def check_checkpoint(folder: str | Path, names: Iterable[str]) -> None:
    """Raise PromptTuningError if a checkpoint does not hold exactly these prompts."""
    saved = {file.parent.name for file in Path(folder).glob(f"*/{WEIGHTS_FILE}")}
    if saved != set(names):
        raise PromptTuningError(
            f"{folder} holds the prompts {sorted(saved)}, and this run trains {sorted(names)}; resume with the same "
            "tasks."
        )

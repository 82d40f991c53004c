"""Tell which files of a repository belong to a prompt or a checkpoint, so that the next push may delete them."""

import re
from collections.abc import Iterable

from .ensemble_info import ENSEMBLE_FILE
from .files import CONFIG_FILE, START_FILE, WEIGHTS_FILE
from .info import INFO_FILE, RESULTS_FILE
from .plots import CONFUSION_FILE, CURVES_FILE, FIELD_FILE, LOSS_FILE

CARD_FILE = "README.md"
STATE = "trainer_state.json"
PROMPT_FILES = (CONFIG_FILE, WEIGHTS_FILE, INFO_FILE, START_FILE, RESULTS_FILE, LOSS_FILE, CONFUSION_FILE, CARD_FILE)
"""All files that are written for a prompt, except the tokenizer, which may belong to someone else."""
OF_PROMPTS = "|".join(map(re.escape, PROMPT_FILES))
OF_CHECKPOINTS = re.compile(
    rf"(?:[^/]+/)?(?:{OF_PROMPTS})|trainer_state\.json|manifest\.json|training_args\.bin|(?:optimizer|scheduler|scaler)"
    r"\.(?:pt|bin)(?:\.json|\.safetensors)?|(?:optimizer|scheduler|rng_state(?:_\d+)?)\.pth?(?:\.json|\.safetensors)?"
)
CHECKPOINT = re.compile(r"(?:last-checkpoint|checkpoint-\d+)(?:/.*)?")


def folders_of_prompts(files: Iterable[str]) -> set[str]:
    """Return the folders that hold a prompt ("" is the root), without checkpoints."""
    folders = {name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == CONFIG_FILE}
    return {folder for folder in folders if not CHECKPOINT.fullmatch(folder)}


def inside(folder: str, name: str) -> str:
    """Return the path of a file in a folder of the repository; "" is the root."""
    return f"{folder}/{name}" if folder else name


def obsolete_files(new: set[str], present: set[str], folder: str, former_members: Iterable[str] | None) -> set[str]:
    """Return the files to delete: those of the earlier prompt, ensemble or checkpoint that this push replaces.

    Files in another prompt's folder, and files that this package does not write, are never deleted. `new` and
    `present` are paths in the repository, `folder` is where the push goes to ("" is the root), and `former_members`
    are those of the ensemble that is replaced, else None.
    """
    if inside(folder, STATE) in new:
        in_folder = {name for name in present if name.startswith(f"{folder}/")}
        return {name for name in in_folder - new if OF_CHECKPOINTS.fullmatch(name.removeprefix(f"{folder}/"))}
    prompts = folders_of_prompts(new)
    written = {inside(prompt, name) for prompt in prompts for name in PROMPT_FILES}
    written |= {inside(folder, CURVES_FILE), inside(folder, FIELD_FILE)}
    if former_members is not None:
        written.add(inside(folder, ENSEMBLE_FILE))
        written |= {inside(inside(folder, member), name) for member in former_members for name in PROMPT_FILES}
    return written & present - new

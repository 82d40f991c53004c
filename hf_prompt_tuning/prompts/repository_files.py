"""Which of a repository's files are a prompt's or a checkpoint's own, so that the next push may take them away."""

import re
from collections.abc import Iterable

from .ensemble_info import ENSEMBLE_FILE
from .files import CONFIG_FILE, START_FILE, WEIGHTS_FILE
from .info import INFO_FILE, RESULTS_FILE
from .plots import CONFUSION_FILE, CURVES_FILE, LOSS_FILE

CARD_FILE = "README.md"
STATE = "trainer_state.json"
PROMPT_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    INFO_FILE,
    START_FILE,
    RESULTS_FILE,
    LOSS_FILE,
    CONFUSION_FILE,
    CARD_FILE,
)
"""All that is written for one prompt; the tokenizer, which may be somebody's own, is not among it."""
OF_PROMPTS = "|".join(map(re.escape, PROMPT_FILES))
OF_CHECKPOINTS = re.compile(
    rf"(?:[^/]+/)?(?:{OF_PROMPTS})|trainer_state\.json|manifest\.json|training_args\.bin|(?:optimizer|scheduler|scaler)"
    r"\.(?:pt|bin)(?:\.json|\.safetensors)?|(?:optimizer|scheduler|rng_state(?:_\d+)?)\.pth?(?:\.json|\.safetensors)?"
)
CHECKPOINT = re.compile(r"(?:last-checkpoint|checkpoint-\d+)(?:/.*)?")


def folders_of_prompts(files: Iterable[str]) -> set[str]:
    """The folders that hold a prompt ("" is the root), checkpoints' left out."""
    found = {name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == CONFIG_FILE}
    return {folder for folder in found if not CHECKPOINT.fullmatch(folder)}


def inside(folder: str, name: str) -> str:
    """The path of a file in a folder of the repository; "" is the root."""
    return f"{folder}/{name}" if folder else name


def obsolete_files(new: set[str], there: set[str], folder: str, former_members: Iterable[str] | None) -> set[str]:
    """What an earlier push left of a prompt, an ensemble or a checkpoint in whose place this one puts another.

    Never another prompt's folder, and no file that this package does not write.

    Args:
        new: the paths of the files that are pushed.
        there: the paths in the repository.
        folder: the one that the push goes to; "" is the root.
        former_members: of the ensemble that was there, if it is replaced; else None.
    """
    if inside(folder, STATE) in new:
        own = {name for name in there if name.startswith(f"{folder}/")}
        return {name for name in own - new if OF_CHECKPOINTS.fullmatch(name.removeprefix(f"{folder}/"))}
    prompts = folders_of_prompts(new)
    own = {inside(prompt, name) for prompt in prompts for name in PROMPT_FILES}
    own.add(inside(folder, CURVES_FILE))
    if former_members is not None:
        own.add(inside(folder, ENSEMBLE_FILE))
        own |= {inside(inside(folder, member), name) for member in former_members for name in PROMPT_FILES}
    return own & there - new

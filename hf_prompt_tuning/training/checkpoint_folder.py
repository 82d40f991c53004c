"""Write checkpoints atomically, detect damaged checkpoints, and find the newest complete one.

A checkpoint is saved in four steps:

1. Write its files in the folder `unfinished`.
2. Flush them to the disk.
3. Write a manifest with every file's size and hash.
4. Rename the folder to `checkpoint-N`.

So a folder named `checkpoint-N` is complete. A save that a kill or a full disk interrupted stays in `unfinished`,
where nothing searches for checkpoints.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointSaveError, first_line
from ..prompts.repository_files import STATE

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path) -> None:
    """Flush a checkpoint's files to the disk and write their manifest. After this the checkpoint is complete."""
    files = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST):
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        _flush(file)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"saved_at": time.time(), "files": files}, indent=1) + "\n", encoding="utf-8")
    _flush(manifest)
    for subfolder in (*(f for f in folder.rglob("*") if f.is_dir()), folder):
        _flush(subfolder)


def publish(staged: Path, final: Path) -> None:
    """Rename a sealed checkpoint to its final name, replacing any folder of that name."""
    if final.exists():
        # Delete the old folder only when the new one is in place. If a kill falls between the two renames, `tidy`
        # finishes the rename.
        final.rename(staged.with_name("replaced"))
    staged.rename(final)
    _flush(final.parent)
    shutil.rmtree(staged.parent)


def tidy(output_dir: str | Path) -> None:
    """Remove the leftovers of a killed save. A checkpoint that was complete but not yet renamed is published."""
    unfinished = Path(output_dir) / UNFINISHED
    if not unfinished.is_dir():
        return
    for staged in unfinished.iterdir():
        if NAME.fullmatch(staged.name) and not fault(staged) and fault(Path(output_dir) / staged.name):
            publish(staged, Path(output_dir) / staged.name)
            return
    shutil.rmtree(unfinished)


def damage(folder: str | Path) -> str:
    """Return how a checkpoint differs from its manifest; an empty string if it matches or has no manifest."""
    manifest = Path(folder) / MANIFEST
    if not manifest.exists():
        return ""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, recorded in files.items():
            file = Path(folder) / name
            if not file.is_file():
                return f"lacks {name}"
            if file.stat().st_size != recorded["bytes"]:
                return f"has {file.stat().st_size} bytes of {name}, not {recorded['bytes']}"
            if _digest(file) != recorded["sha256"]:
                return f"has another {name} than was saved"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"cannot be read: {first_line(error)}"
    return ""


def fault(folder: str | Path) -> str:
    """Return why a folder is not a complete checkpoint; an empty string if it is complete."""
    return damage(folder) if (Path(folder) / MANIFEST).exists() else f"has no {MANIFEST}"


def missing_state(folder: str | Path) -> str:
    """Return which state of a run a folder lacks, so that training cannot go on from it; an empty string if none.

    An output folder holds a prompt and `trainer_state.json`, but no optimizer: to resume from it would start the
    optimizer and the schedule anew.
    """
    names = {file.name for file in Path(folder).iterdir()}
    if STATE not in names:
        return f"has no {STATE}"
    # DeepSpeed writes its optimizer into global_stepN, all others into a file or folder of that name.
    return "" if any(name.startswith(("optimizer", "global_step")) for name in names) else "has no optimizer's state"


def newest_whole(output_dir: str | Path) -> str | None:
    """Return the complete checkpoint that was saved last, or None.

    Damaged checkpoints are skipped. One warning names all of them.
    """
    folder = Path(output_dir)
    checkpoints = [f for f in folder.iterdir() if f.is_dir() and NAME.fullmatch(f.name)] if folder.is_dir() else []
    skipped, newest = [], None
    for checkpoint in sorted(checkpoints, key=_age, reverse=True):
        problem = fault(checkpoint)
        if not problem:
            newest = str(checkpoint)
            break
        skipped.append(f"{checkpoint.name} {problem}")
    if skipped:
        logger.warning("Not resumed from in %s, not being whole: %s.", output_dir, "; ".join(skipped))
    return newest


@contextmanager
def saving(folder: str | Path, what: str) -> Iterator[None]:
    """Turn every error of writing files (mostly a full disk) into a `CheckpointSaveError`; it is the cause."""
    try:
        yield
    except CheckpointSaveError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' errors for a full disk
        shutil.rmtree(Path(folder) / UNFINISHED, ignore_errors=True)
        there = next(f for f in (Path(folder), *Path(folder).absolute().parents) if f.exists())
        raise CheckpointSaveError(
            f"{what} could not be saved in {folder} ({shutil.disk_usage(there).free / 1e6:.1f} MB free): "
            f"{first_line(error)}. Checkpoints saved before are whole: make room, and go on with "
            "resume_from_checkpoint=True."
        ) from error


def _age(checkpoint: Path) -> tuple[float, int]:
    """Return a sort key: the time of saving, then the step.

    Time comes first because a folder may hold checkpoints of several runs. A checkpoint without a readable time counts
    as the newest.
    """
    step = int(NAME.fullmatch(checkpoint.name)[1])
    try:
        return float(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["saved_at"]), step
    except (OSError, ValueError, LookupError, TypeError):
        return float("inf"), step


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    """Flush a file to the disk, or a folder's list of names (not on Windows, which cannot flush folders)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

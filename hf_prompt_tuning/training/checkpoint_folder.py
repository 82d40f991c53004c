"""Checkpoints on disk: written whole or not at all, recognised where they are not, and the newest whole one found.

A checkpoint is written in the folder `unfinished`, flushed to the disk, told in a manifest (every file's size and
hash) and only then renamed to `checkpoint-N`. So what bears that name is whole; what a kill or a full disk cut short
is in `unfinished`, where no one looks for checkpoints.
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

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path) -> None:
    """Flushes a checkpoint's files to the disk and writes their manifest: from here on it is whole."""
    files = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST):
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        _flush(file)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"saved_at": time.time(), "files": files}, indent=1) + "\n", encoding="utf-8")
    _flush(manifest)
    for made in (*(f for f in folder.rglob("*") if f.is_dir()), folder):
        _flush(made)


def publish(staged: Path, final: Path) -> None:
    """Gives a sealed checkpoint its name, in place of whatever had it."""
    if final.exists():
        # Not deleted before the new one is there: a kill between the two renames is mended by `tidy`.
        final.rename(staged.with_name("replaced"))
    staged.rename(final)
    _flush(final.parent)
    shutil.rmtree(staged.parent)


def tidy(output_dir: str | Path) -> None:
    """Clears what a killed save left; a checkpoint that was whole and had no name yet gets it."""
    unfinished = Path(output_dir) / UNFINISHED
    if not unfinished.is_dir():
        return
    for staged in unfinished.iterdir():
        if NAME.fullmatch(staged.name) and not fault(staged) and fault(Path(output_dir) / staged.name):
            publish(staged, Path(output_dir) / staged.name)
            return
    shutil.rmtree(unfinished)


def damage(folder: str | Path) -> str:
    """What differs between a checkpoint and its manifest; an empty string where nothing does, or it has none."""
    manifest = Path(folder) / MANIFEST
    if not manifest.exists():
        return ""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, told in files.items():
            file = Path(folder) / name
            if not file.is_file():
                return f"lacks {name}"
            if file.stat().st_size != told["bytes"]:
                return f"has {file.stat().st_size} bytes of {name}, not {told['bytes']}"
            if _digest(file) != told["sha256"]:
                return f"has another {name} than was saved"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"cannot be read: {first_line(error)}"
    return ""


def fault(folder: str | Path) -> str:
    """Why a folder is not known to be a whole checkpoint; an empty string where it is."""
    return damage(folder) if (Path(folder) / MANIFEST).exists() else f"has no {MANIFEST}"


def newest_whole(output_dir: str | Path) -> str | None:
    """The checkpoint that was saved last, passing over those that are not whole (one warning names them); or None."""
    folder = Path(output_dir)
    found = [f for f in folder.iterdir() if f.is_dir() and NAME.fullmatch(f.name)] if folder.is_dir() else []
    passed_over = []
    for checkpoint in sorted(found, key=_age, reverse=True):
        wrong = fault(checkpoint)
        if not wrong:
            break
        passed_over.append(f"{checkpoint.name} {wrong}")
    else:
        checkpoint = None
    if passed_over:
        logger.warning("Not resumed from in %s, not being whole: %s.", output_dir, "; ".join(passed_over))
    return None if checkpoint is None else str(checkpoint)


@contextmanager
def saving(folder: str | Path, what: str) -> Iterator[None]:
    """Turns whatever keeps files from being written (a full disk above all) into one error.

    Raises:
        CheckpointSaveError: from the error that was raised.
    """
    try:
        yield
    except CheckpointSaveError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        shutil.rmtree(Path(folder) / UNFINISHED, ignore_errors=True)
        there = next(f for f in (Path(folder), *Path(folder).absolute().parents) if f.exists())
        raise CheckpointSaveError(
            f"{what} could not be saved in {folder} ({shutil.disk_usage(there).free / 1e6:.1f} MB free): "
            f"{first_line(error)}. Checkpoints saved before are whole: make room, and go on with "
            "resume_from_checkpoint=True."
        ) from error


def _age(checkpoint: Path) -> tuple[float, int]:
    """Sorts by when it was saved, not by step: a folder may hold more than one run. The unreadable come last."""
    step = int(NAME.fullmatch(checkpoint.name)[1])
    try:
        return float(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["saved_at"]), step
    except (OSError, ValueError, LookupError, TypeError):
        return float("inf"), step


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """What was written there is on the disk when this returns; a folder's names, too, where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

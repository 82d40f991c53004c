"""An environment for each set of versions, kept for the next time."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

from .sets import ROOT, VersionSet, interpreter, requirements, version_of

COMPLETE = "complete.json"
PIP = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile")


class NotInstalledError(Exception):
    """An environment could not be made."""


def cache() -> Path:
    """Return the folder of the environments, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_prompt_tuning"


@contextmanager
def environment(chosen: VersionSet, folder: Path, days: int) -> Iterator[Path]:
    """Lend the set's interpreter, with this checkout installed; no other run uses the same set meanwhile.

    The environment's name has a hash of the requirements, the pins and the version of Python. It is made anew if one
    of them changed, if its installation did not finish, or, for a set without pins, if it is older than `days`.

    Raises:
        NotInstalledError: pip found no such versions, or no network.
    """
    python = interpreter(chosen.python)
    parts = (requirements(), chosen.file.read_text(encoding="utf-8"), version_of(python) or "")
    made = folder / f"{chosen.name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{chosen.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_usable(made, None if chosen.has_pins else days):
            for older in folder.glob(f"{chosen.name}-*"):
                (older / COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(older)
            _make(python, made, chosen)
        elif json.loads((made / COMPLETE).read_text())["checkout"] != str(ROOT):
            _install(made, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
            _complete(made, json.loads((made / COMPLETE).read_text())["made"])
        yield made / "bin/python"


def _is_usable(made: Path, days: int | None) -> bool:
    if not (made / COMPLETE).is_file() or not version_of(str(made / "bin/python")):
        return False
    day = date.fromisoformat(json.loads((made / COMPLETE).read_text())["made"])
    return days is None or date.today() - day < timedelta(days=days)


def _make(python: str, made: Path, chosen: VersionSet) -> None:
    print(f"window: installs the set {chosen.name} in {made}", flush=True)
    _virtual(python, made)
    _install(made, "--upgrade", "pip", "setuptools>=77")
    _install(made, "--constraint", str(chosen.file), "--editable", f"{ROOT}[{chosen.extras}]")
    _complete(made, date.today().isoformat())


def _virtual(python: str, made: Path) -> None:
    subprocess.run([python, "-m", "venv", str(made)], check=True)


def _install(made: Path, *words: str) -> None:
    """Run pip, twice if need be: a registry may not answer once."""
    for _ in range(2):
        done = subprocess.run([str(made / "bin/python"), *PIP, *words], capture_output=True, text=True, cwd=ROOT)
        if not done.returncode:
            return
    raise NotInstalledError(f"pip install {' '.join(words)}\n{done.stderr[-3000:]}")


def _complete(made: Path, day: str) -> None:
    """Mark an environment as complete: the last thing that is written into it."""
    unfinished = made / f"{COMPLETE}.new"
    unfinished.write_text(json.dumps({"made": day, "checkout": str(ROOT)}))
    unfinished.replace(made / COMPLETE)

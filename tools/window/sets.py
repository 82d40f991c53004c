"""The sets of versions: a file in constraints/ each, which says in comments its Python and the extras to install."""

import configparser
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYENV = Path.home() / ".pyenv/versions"


@dataclass(frozen=True)
class VersionSet:
    """A set of versions: its name, its Python (such as "3.11"), the extras of setup.cfg, and the file of its pins."""

    name: str
    python: str
    extras: str
    file: Path

    @property
    def has_pins(self) -> bool:
        return "==" in self.file.read_text(encoding="utf-8")


def version_set(name: str, folder: Path = ROOT / "constraints") -> VersionSet:
    """Read a set's file.

    Raises:
        SystemExit: there is no such set.
    """
    file = folder / f"{name}.txt"
    if not file.is_file():
        sets = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
        raise SystemExit(f"no set of versions is called {name}; there are {sets}")
    said = dict(re.findall(r"^# (python|extras): (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE))
    return VersionSet(name, said["python"], said["extras"].replace(" ", ""), file)


def requirements(setup: Path = ROOT / "setup.cfg") -> str:
    """Return the part of setup.cfg that decides what is installed."""
    read = configparser.ConfigParser()
    read.read(setup)
    return f"{read['options']['install_requires']}\n{dict(read['options.extras_require'])}"


def version_of(python: str) -> str | None:
    """Return the full version of an interpreter, such as "3.10.13"; None if it does not run."""
    code = "import platform; print(platform.python_version())"
    try:
        return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def interpreter(wanted: str, here: Path = PYENV) -> str:
    """Return the interpreter of a version such as "3.10"; the running one, with a line that says so, if there is none.

    A version manager may have it and yet not run it under its name.
    """
    managed = sorted(here.glob(f"{wanted}.*/bin/python"))
    for python in (sys.executable, f"python{wanted}", *map(str, managed)):
        if (version_of(python) or "").startswith(f"{wanted}."):
            return python
    print(f"window: Python {wanted} is not installed here; {version_of(sys.executable)} takes its place", flush=True)
    return sys.executable

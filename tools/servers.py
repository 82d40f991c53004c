"""Make what `make test-serving` needs, in the user's cache, and print where it is. It needs a C++ compiler.

python -m tools.servers

llama/            llama.cpp's own HTTP server and converter, from the source package of llama-cpp-python
serving/          packages that `transformers serve` needs beside transformers, and cmake
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .window.environments import cache

SOURCE = "llama_cpp_python-0.3.36"
"""The source package that carries llama.cpp, which has no releases of its own on the package index."""
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    # The pages of its web interface would be fetched from the network.
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_SUBPROCESS=OFF",
)
PACKAGES = ("cmake==4.2.1", "fastapi==0.165.0", "openai==3.57.0", "uvicorn==0.54.0")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
MADE_OF = "made_of.json"


def packages(folder: Path | None = None) -> Path:
    """Return a folder for PYTHONPATH with what `transformers serve` needs; install it if it is not there."""
    folder = (folder or cache()) / "serving"
    with _locked(folder):
        if not _is_made_of(folder, PACKAGES):
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([*PIP, "install", "--target", str(folder), *PACKAGES], check=True)
            _mark(folder, PACKAGES)
    return folder


def llama_cpp(folder: Path | None = None) -> Path:
    """Return the folder of llama.cpp's source; download it if it is not there."""
    folder = (folder or cache()) / "llama"
    with _locked(folder):
        if not _is_made_of(folder, (SOURCE, *OPTIONS)):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            name, _, version = SOURCE.rpartition("-")
            words = ["download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"{name}=={version}"]
            subprocess.run([*PIP, *words], check=True)
            with tarfile.open(folder / f"{SOURCE}.tar.gz") as archive:
                archive.extractall(folder, filter="data")
            _mark(folder, (SOURCE, *OPTIONS))
    return folder / SOURCE / "vendor/llama.cpp"


def llama_server(folder: Path | None = None) -> Path:
    """Return the program llama-server; build it if it is not there, which goes on where it was interrupted."""
    source, build = llama_cpp(folder), (folder or cache()) / "llama/build"
    with _locked(build.parent):
        if not (program := build / "bin/llama-server").is_file():
            values = os.environ | {"PYTHONPATH": str(packages(folder))}
            cmake = [found] if (found := shutil.which("cmake")) else [sys.executable, "-m", "cmake"]
            subprocess.run([*cmake, "-S", str(source), "-B", str(build), *OPTIONS], check=True, env=values)
            words = ["--build", str(build), "--target", "llama-server", "--parallel", str(os.cpu_count())]
            subprocess.run([*cmake, *words], check=True, env=values)
    return program


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let no other run make the same folder meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_made_of(folder: Path, parts: tuple[str, ...]) -> bool:
    """Tell whether a folder is complete, and made of these parts."""
    file = folder / MADE_OF
    return file.is_file() and json.loads(file.read_text()) == list(parts)


def _mark(folder: Path, parts: tuple[str, ...]) -> None:
    """Say what a folder is made of: the last thing that is written."""
    (folder / MADE_OF).write_text(json.dumps(list(parts)))


if __name__ == "__main__":
    print(f"servers: {llama_server()}\nservers: {packages()}", flush=True)

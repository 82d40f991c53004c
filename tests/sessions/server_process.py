"""Servers of other projects on 127.0.0.1: started, asked by several clients at once, and stopped whatever happens."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTS_WITHIN, STOPS_WITHIN, ANSWERS_WITHIN = 600, 20, 600
"""Seconds, for machines that do something else, too."""


@contextmanager
def started(command: Sequence[str], cwd: Path, **variables: str) -> Iterator[str]:
    """Start a server, and yield its address once it says that it is well. Stop it and its children at the end.

    Args:
        command: the words, behind which its address and a free port are given.
        cwd: the folder that it runs in, where it leaves `server.log`.
        **variables: of its environment.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = cwd / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=cwd,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url, log)
        yield url
    finally:
        _stop(process)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:  # nobody listens yet, or it still loads the model
            time.sleep(0.5)
    raise RuntimeError(f"{process.args[0]} was not ready (exit code {process.poll()}):\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen) -> None:
    """End a process and its children, which are a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOPS_WITHIN)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return what a server answers to a JSON request. Raise AssertionError with its words if it refuses."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWERS_WITHIN) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path} answers {error.code}: {error.read().decode()[:2000]}") from error


def texts(url: str, requests: Sequence[tuple[str, dict[str, Any]]], clients: int = 8) -> list[str]:
    """Return the texts that a server's OpenAI API answers to requests, pairs of a path and a body, in their order."""

    def text(request: tuple[str, dict[str, Any]]) -> str:
        choice = ask(url, *request)["choices"][0]
        return choice["text"] if "text" in choice else choice["message"]["content"]

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(text, requests))

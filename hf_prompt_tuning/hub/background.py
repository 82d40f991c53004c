"""Run pushes in threads during training: one at a time, from temporary folders. At exit, wait for them to finish."""

import atexit
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

PUSH_SECONDS = 300.0
"""The longest time to wait for a push. The Hub's client has no limit of its own."""

_folders: set[Path] = set()
_unfinished: set[Future] = set()


def make_folder() -> Path:
    """Make a temporary folder. It is removed when the process ends, if not before."""
    folder = Path(mkdtemp(prefix="prompt-push-"))
    _folders.add(folder)
    return folder


def drop_folder(folder: Path) -> None:
    """Remove a temporary folder and its files."""
    shutil.rmtree(folder, ignore_errors=True)
    _folders.discard(folder)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder, and remove it at the end of the context."""
    folder = make_folder()
    try:
        yield folder
    finally:
        drop_folder(folder)


def drop_folders() -> None:
    """Remove all temporary folders, because the process ends."""
    for folder in list(_folders):
        drop_folder(folder)


def start(job: Callable[[], Any], after: Future | None = None) -> Future:
    """Run a job in its own thread after the job `after` has ended.

    It is a daemon thread: if the Hub hangs, the process can still end. An executor's threads would block the exit.
    """
    future: Future = Future()
    future.set_running_or_notify_cancel()
    _unfinished.add(future)
    future.add_done_callback(_unfinished.discard)

    def run() -> None:
        if after is not None:
            wait([after])
        try:
            result = job()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="push", daemon=True).start()
    return future


def within(seconds: float, job: Callable[[], Any]) -> Any:
    """Run a job and return its result.

    Raise TimeoutError if it took longer than `seconds`. It keeps running, and nothing waits for it.
    """
    future = start(job)
    try:
        if not wait([future], seconds).done:
            raise TimeoutError(f"it has not answered within {seconds:g} seconds")
        return future.result()
    finally:
        leave(future)


def leave(future: Future) -> None:
    """Stop waiting for a job, also at the end of the process."""
    _unfinished.discard(future)


@atexit.register
def _finish() -> None:
    wait(list(_unfinished), PUSH_SECONDS)
    drop_folders()

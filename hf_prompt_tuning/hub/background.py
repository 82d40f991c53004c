"""Pushes beside the training: one after the other, from temporary folders, and waited for where the process ends."""

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
"""How long a push may take where something waits for it: the Hub's client itself would wait for ever."""

_folders: set[Path] = set()
_unfinished: set[Future] = set()


def make_folder() -> Path:
    """A new temporary folder; gone at the latest when the process ends."""
    folder = Path(mkdtemp(prefix="prompt-push-"))
    _folders.add(folder)
    return folder


def drop_folder(folder: Path) -> None:
    """Removes a temporary folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    _folders.discard(folder)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new temporary folder, which is gone after this context."""
    folder = make_folder()
    try:
        yield folder
    finally:
        drop_folder(folder)


def drop_folders() -> None:
    """Removes all of them: the process ends."""
    for folder in list(_folders):
        drop_folder(folder)


def start(job: Callable[[], Any], after: Future | None = None) -> Future:
    """Runs a job in a thread of its own, once the job `after` has ended.

    A thread that does not keep the process from ending, which an executor's would: a Hub that hangs can be left.
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
    """What a job returns.

    Raises:
        TimeoutError: it took longer, and is left alone.
    """
    future = start(job)
    try:
        if not wait([future], seconds).done:
            raise TimeoutError(f"it has not answered within {seconds:g} seconds")
        return future.result()
    finally:
        leave(future)


def leave(future: Future) -> None:
    """Waits no longer for a job, at the process's end neither."""
    _unfinished.discard(future)


@atexit.register
def _finish() -> None:
    wait(list(_unfinished), PUSH_SECONDS)
    drop_folders()

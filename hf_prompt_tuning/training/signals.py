"""Record SIGTERM and Ctrl-C during training, so that the run can save before it ends."""

import os
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from ..errors import PromptTuningError, TrainingInterrupted
from ..hub.background import drop_folders

ECHO_SECONDS = 1.0
"""A second signal within this time counts as the same one.

A scheduler sends the signal to every process, and launchers forward it, so that a process may receive it twice.
"""


class SignalWatch:
    """Within this context, record the first SIGTERM or SIGINT; a second one ends the process at once.

    Attributes:
        signum: the signal that came, or None.

    Raises:
        PromptTuningError: on entering, outside the main thread, where Python handles no signals.
        TrainingInterrupted: on leaving, if a signal was recorded and nothing has handled it.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._active, self._then, self._noted_at = False, "saving after this step", 0.0
        self._before: dict[int, Any] = {}

    def watching(self, then: str) -> AbstractContextManager:
        """Return this context; within it, one that does nothing. The first signal prints what happens `then`."""
        if self._active:
            return nullcontext()
        self._then = then
        return self

    def __enter__(self) -> "SignalWatch":
        try:
            for signum in (signal.SIGTERM, signal.SIGINT):
                # A signal that is ignored stays ignored: a shell's background jobs should survive Ctrl-C.
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)
        except ValueError as error:
            raise PromptTuningError(
                "save_on_signal is True outside the main thread, where Python handles no signals. "
                "Train in the main thread, or leave it out."
            ) from error
        self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        came = self.signum
        self._active, self.signum, self._before = False, None, {}
        if kind is None and came is not None:
            raise TrainingInterrupted(came, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._noted_at = signum, now
            # `logging` and `print` are not safe here: the signal may have arrived while they were writing.
            os.write(2, f"{signal.Signals(signum).name}: {self._then}; once more ends at once.\n".encode())
        elif now - self._noted_at > ECHO_SECONDS:
            drop_folders()
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def noted(self, device: torch.device) -> int | None:
        """Return the signal that any process of the run has received, or None; None outside the context.

        All processes must call this in the same step. They all get the same answer.
        """
        if not self._active:
            return None
        if PartialState().num_processes == 1:
            return self.signum  # do not synchronize with the device
        agreed = int(reduce(torch.tensor(self.signum or 0, device=device), reduction="max"))
        if agreed and self.signum is None:
            self.signum, self._noted_at = agreed, time.monotonic()
        return agreed or None

"""SIGTERM and Ctrl-C: noted while a run trains, so that it can save before it ends."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from ..errors import PromptTuningError, TrainingInterrupted
from ..hub.background import drop_folders

ECHO_SECONDS = 1.0
"""A signal that comes again so soon is the same: a scheduler sends it to every process, and launchers pass it on."""


class SignalWatch:
    """Within this context the first SIGTERM or SIGINT is only noted; a second one ends the process at once.

    Args:
        then: what is said to happen next.

    Raises:
        PromptTuningError: entered outside the main thread, where Python handles no signals.
        TrainingInterrupted: left with a signal that nothing has acted upon.
    """

    def __init__(self, then: str = "saving after this step"):
        self.then = then
        self.signum: int | None = None
        self._noted_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        try:
            for signum in (signal.SIGTERM, signal.SIGINT):
                # One that is ignored stays so: a shell's background jobs are to survive Ctrl-C.
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)
        except ValueError as error:
            raise PromptTuningError(
                "save_on_signal is True outside the main thread, where Python handles no signals. "
                "Train in the main thread, or leave it out."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if kind is None and self.signum is not None:
            raise TrainingInterrupted(self.signum, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._noted_at = signum, now
            # Not by `logging` or `print`: the signal may have come while they were writing.
            os.write(2, f"{signal.Signals(signum).name}: {self.then}; once more ends at once.\n".encode())
        elif now - self._noted_at > ECHO_SECONDS:
            drop_folders()
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def noted(self, device: torch.device) -> int | None:
        """The signal that any process of the run has got: all of them ask at one step, and get one answer."""
        if PartialState().num_processes == 1:
            return self.signum  # without a look at the device, which a step would wait for
        agreed = int(reduce(torch.tensor(self.signum or 0, device=device), reduction="max"))
        if agreed and self.signum is None:
            self.signum, self._noted_at = agreed, time.monotonic()
        return agreed or None

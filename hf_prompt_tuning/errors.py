"""The kinds of error that this package raises: for input it refuses, and for runs that end before their time."""


class PromptTuningError(ValueError):
    """Input that cannot be used as it is.

    The message names the value that was got, what was expected and how to mend it. The command prints it as one line.
    """


class PromptLoadError(PromptTuningError):
    """A saved prompt that cannot be had, or that is damaged or unsafe; the message names the file and its fault."""


class HubUnavailableError(PromptLoadError):
    """The Hub does not answer, or says that it cannot now; the message has its words. Another time it may."""


class PromptMismatchError(PromptLoadError):
    """A saved prompt and a backbone that it was not trained on; the message names what differs."""


class PromptPushError(PromptTuningError):
    """A prompt that the Hub did not take; the message has the Hub's own words, and what to do.

    Attributes:
        temporary: whether the same push may go through later: the Hub is down, busy or out of reach.
    """

    def __init__(self, message: str, temporary: bool = False):
        super().__init__(message)
        self.temporary = temporary


class CheckpointSaveError(OSError):
    """A checkpoint or a prompt that could not be written: a full disk above all. Those written before are whole."""


class TrainingInterrupted(SystemExit):
    """A signal has ended the run, which is saved. Uncaught, it ends the process with 128 and the signal's number.

    Attributes:
        signum: SIGTERM (exit code 143) or SIGINT (130).
        checkpoint: the folder to resume from; None where training was over already.
    """

    def __init__(self, signum: int, checkpoint: str | None):
        super().__init__(128 + signum)
        self.signum, self.checkpoint = signum, checkpoint


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)

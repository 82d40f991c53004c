"""Define the errors that this package raises: for invalid input, and for runs that end early."""


class PromptTuningError(ValueError):
    """Invalid input.

    The message names the given value, the expected value and the fix. The command prints it as one line.
    """


class PromptLoadError(PromptTuningError):
    """A saved prompt could not be loaded, is damaged or is unsafe. The message names the file and the fault."""


class HubUnavailableError(PromptLoadError):
    """The Hub is unavailable or cannot be reached. The message quotes the Hub. A retry later may succeed."""


class PromptMismatchError(PromptLoadError):
    """A saved prompt was trained on another backbone. The message names what differs."""


class PromptPushError(PromptTuningError):
    """A push to the Hub failed. The message quotes the Hub and says how to fix it.

    Attributes:
        temporary: whether the same push may succeed later: the Hub is down, busy or unreachable.
    """

    def __init__(self, message: str, temporary: bool = False):
        super().__init__(message)
        self.temporary = temporary


class CheckpointSaveError(OSError):
    """A checkpoint or a prompt could not be written, usually because the disk is full. Earlier ones are complete."""


class TrainingInterrupted(SystemExit):
    """A signal ended the run after it was saved. If not caught, the process exits with 128 plus the signal number.

    Attributes:
        signum: SIGTERM (exit code 143) or SIGINT (130).
        checkpoint: the folder to resume from; None if training had already finished.
    """

    def __init__(self, signum: int, checkpoint: str | None):
        super().__init__(128 + signum)
        self.signum, self.checkpoint = signum, checkpoint


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's `repr` if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def sentence(text: str) -> str:
    """Return a text with a full stop at its end, for another library's error in front of a sentence."""
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."

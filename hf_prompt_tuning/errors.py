"""The kinds of error that this package raises for input it refuses."""


class PromptTuningError(ValueError):
    """Input that cannot be used as it is.

    The message names the value that was got, what was expected and how to mend it. The command prints it as one line.
    """


class PromptLoadError(PromptTuningError):
    """A saved prompt that cannot be had, or that is damaged or unsafe; the message names the file and its fault."""


class PromptMismatchError(PromptLoadError):
    """A saved prompt and a backbone that it was not trained on; the message names what differs."""


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)

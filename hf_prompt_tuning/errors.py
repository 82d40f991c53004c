"""The one kind of error that this package raises for input it refuses."""


class PromptTuningError(ValueError):
    """Input that cannot be used as it is.

    The message names the value that was got, what was expected and how to mend it. The command prints it as one line.
    """

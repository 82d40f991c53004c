"""Teach a prompt from the command line.

    hf-prompt-tuning teach --model MODEL --teacher_file system.txt --train_file questions.jsonl -P 16

This is the command that trains, for a run that has a teacher. Its arguments, and the defaults that a teacher gives
them, are the same.
"""

from collections.abc import Sequence

from ..errors import PromptTuningError
from . import train
from .arguments import given_names
from .main import run
from .teacher_arguments import OF_TEACHER


def main(argv: Sequence[str] | None = None) -> None:
    """Train a prompt as `train` does. Raise PromptTuningError if nothing teaches it."""
    if not given_names(argv) & set(OF_TEACHER):
        raise PromptTuningError(
            f"nothing teaches the prompt; give --teacher_file FILE, the text that it stands in place of, or one of "
            f"{', '.join(OF_TEACHER)}."
        )
    train.main(argv)


if __name__ == "__main__":
    run(main)

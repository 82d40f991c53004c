"""The command `hf-prompt-tuning`: train or teach prompts, look at them, or export them."""

import sys
from importlib import import_module

COMMANDS = ("train", "teach", "inspect", "export")
USAGE = """\
usage: hf-prompt-tuning train CONFIG.yaml [--flag value ...]    train prompts, evaluate and save them
       hf-prompt-tuning teach --teacher_file FILE [--flag ...]  train one that stands in place of a text
       hf-prompt-tuning inspect PROMPT [PROMPT ...]             show what prompts learned
       hf-prompt-tuning export PROMPT [PROMPT ...] --to KIND OUT
                                                                write them for a server

`--help` behind the word lists the arguments; train is the default.
"""


def main() -> None:
    """Run the command that the first word names; train, if it names none."""
    words = sys.argv[1:]
    if not words:
        sys.exit(f"{USAGE}error: no command")
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return
    word = "train"
    if words[0] in COMMANDS:
        word = sys.argv.pop(1)
    # Now, not above: the usage needs none of them.
    from .main import run

    run(import_module(f".{word}", __package__).main)

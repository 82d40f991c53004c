"""The command `hf-prompt-tuning`: train prompts, or look at them."""

import sys

USAGE = """\
usage: hf-prompt-tuning train CONFIG.yaml [--flag value ...]    train prompts, evaluate and save them
       hf-prompt-tuning inspect PROMPT [PROMPT ...]             show what prompts learned

`hf-prompt-tuning train --help` and `hf-prompt-tuning inspect --help` list the arguments; train is the default.
"""


def main() -> None:
    """Run the command that the first word names; train, if it names none."""
    words = sys.argv[1:]
    if not words:
        sys.exit(f"{USAGE}error: no command")
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return
    inspects = words[0] == "inspect"
    if words[0] in ("train", "inspect"):
        del sys.argv[1]
    # Now, not above: the usage needs neither.
    from .main import run

    if inspects:
        from .inspect import main as chosen
    else:
        from .train import main as chosen
    run(chosen)

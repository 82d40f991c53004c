#!/usr/bin/env python
"""Tune a soft prompt for a frozen language model.

    accelerate launch run_prompt_tuning.py CONFIG.yaml [--flag value ...]

`--help` lists every argument. If your task needs more, copy hf_prompt_tuning/cli/train.py here and change the copy.
"""

from hf_prompt_tuning.cli.main import run
from hf_prompt_tuning.cli.train import main

if __name__ == "__main__":
    run(main)

"""`python -m hf_prompt_tuning` (or `accelerate launch -m hf_prompt_tuning`) is `run_prompt_tuning.py`."""

from hf_prompt_tuning.cli import run
from run_prompt_tuning import main

if __name__ == "__main__":
    run(main)

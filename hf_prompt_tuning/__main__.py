"""Run `run_prompt_tuning.py` as `python -m hf_prompt_tuning` or `accelerate launch -m hf_prompt_tuning`."""

from run_prompt_tuning import main

from .cli.main import run

if __name__ == "__main__":
    run(main)

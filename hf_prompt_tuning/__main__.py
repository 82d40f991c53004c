"""Run the command as `python -m hf_prompt_tuning` or `accelerate launch -m hf_prompt_tuning`."""

from .cli.command import main

if __name__ == "__main__":
    main()

"""Train prompts with the Trainer of transformers."""

"""Train and use several prompts on one backbone."""

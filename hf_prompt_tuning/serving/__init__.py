"""Use prompts from pipelines and other engines."""

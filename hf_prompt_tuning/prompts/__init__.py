"""Read and write prompts as files, without a model."""

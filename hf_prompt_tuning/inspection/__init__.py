"""Inspect what a prompt has learned."""

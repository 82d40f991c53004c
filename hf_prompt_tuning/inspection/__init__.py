"""Look at what a prompt learned."""

"""Run the package from the command line."""

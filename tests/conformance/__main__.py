"""Draws thousands of cases, says how many were equal to the oracle and how many refused, and shows what is wrong.

python -m tests.conformance [--cases 10000] [--seed 0] [--processes 2] [--entry-point generate]
"""

import argparse
import sys

from .soak import soak

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--entry-point")
    sys.exit(soak(**vars(parser.parse_args())))

"""Runs the suite on sets of versions, and writes down what passed.

python -m tools.window [oldest newest ...] [--tests tests/unit ...] [--short] [--again] [--environments FOLDER]
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from . import results
from .environments import NotInstalledError, cache, environment
from .sets import version_set

SETS = ("oldest", "llamafactory", "axolotl", "vllm", "newest")
SHORT = (
    "tests/exactness/test_architectures.py",
    "tests/exactness/test_fast_layouts.py",
    "tests/exactness/test_foreign_trainers.py",
    "tests/exactness/test_generation.py",
    "tests/exactness/test_inference.py",
    "tests/exactness/test_layouts.py",
    "tests/sessions/test_sharded.py",
    "tests/unit/hub/test_hub_loading.py",
    "tests/unit/models/test_modeling.py",
    "tests/unit/models/test_wrapping.py",
    "tests/unit/prompts/test_prompt_files.py",
    "tests/unit/test_compat.py",
    "tests/unit/training/test_hooks.py",
    "tests/unit/training/test_trainer.py",
)
"""A part of the suite that touches each difference between versions, for CI."""


def main(arguments: list[str]) -> int:
    """Run the sets that are named, all of them whatever fails; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.window", description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--tests", nargs="+", default=[], help="files or folders; nothing is written down then")
    parser.add_argument("--short", action="store_true", help="a part of the suite; nothing is written down then")
    parser.add_argument("--again", action="store_true", help="only what failed in the last run")
    parser.add_argument("--environments", type=Path, default=cache(), help="the folder to keep them in")
    parser.add_argument("--limit", type=float, default=60, help="minutes for each set, without its installation")
    given = parser.parse_args(arguments)
    part = [*(SHORT if given.short else ()), *given.tests]
    if part and given.again:
        parser.error("--again runs the tests that failed, and no others; leave out --tests and --short")
    sets, lines = [version_set(name) for name in given.sets], {}
    commit = None if part else results.commit()
    for chosen in sets:
        print(f"window: the set {chosen.name}", flush=True)
        try:
            tests = results.tests_to_repeat(chosen.name) if given.again else part
            if given.again and not tests:
                lines[chosen.name] = "nothing failed, 0 failed"
                continue
            # A set without pins is resolved on the day; a part of the suite takes that of the week.
            with environment(chosen, given.environments, days=7 if given.short else 1) as python:
                result = results.run(python, tests, 60 * given.limit)
        except (NotInstalledError, results.NotRepeatableError, OSError, subprocess.SubprocessError) as error:
            lines[chosen.name] = f"did not run: {error}"
            continue
        lines[chosen.name] = ", ".join(f"{result[name]} {name}" for name in results.COUNTS)
        if given.again:
            results.write(chosen.name, results.with_repeated(results.last(chosen.name), result, commit))
        elif not part:
            results.write(chosen.name, {**result, "commit": commit})
    print("\nwindow:", *(f"{name}: {line}" for name, line in lines.items()), sep="\n  ", flush=True)
    return int(any(not line.endswith(" 0 failed") for line in lines.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the tests, too
    sys.exit(main(sys.argv[1:]))

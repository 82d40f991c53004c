"""What passed in which set: run, counted, and written into docs/window.json and the table of docs/reliability.md."""

import json
import os
import re
import signal
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from .sets import ROOT

RESULTS, PAGE = ROOT / "docs/window.json", ROOT / "docs/reliability.md"
TABLE = re.compile(r"(<!-- window: written by `make test-window` -->\n).*?(<!-- /window -->)", re.DOTALL)
PACKAGES = ("transformers", "peft", "accelerate", "datasets", "huggingface_hub", "trl", "torch", "numpy")
COUNTS = ("passed", "skipped", "failed")
SOME_FAILED = 1
"""pytest's exit status when all tests ran and some failed."""
ASK = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
def known(name):
    try: return version(name)
    except PackageNotFoundError: return None
print(json.dumps({"Python": platform.python_version()} | {name: known(name) for name in sys.argv[1:]}))
"""


class NotRepeatableError(Exception):
    """It is not known which tests failed in a set's last run."""


def commit() -> str:
    """Return the commit that is checked out, with "+" if files differ from it, but for those that are written here."""
    written = [f":(exclude){file.relative_to(ROOT)}" for file in (RESULTS, PAGE)]
    said = [["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", ".", *written]]
    head, changes = (
        subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
        for words in said
    )
    return head + ("+" if changes else "")


def run(python: Path, tests: Sequence[str], limit: float) -> dict[str, Any]:
    """Run tests by an environment's interpreter, on all cores; return its versions and the counts.

    `failed_tests` names the tests that failed, and the files that could not be collected; empty if the run did not
    come to its end.

    Args:
        python: the interpreter.
        tests: files, folders or names of tests; all tests if empty.
        limit: seconds after which the run is ended and counts as a failure.
    """
    versions = subprocess.run([str(python), "-c", ASK, *PACKAGES], check=True, capture_output=True, text=True).stdout
    values = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    values.pop("PYTHONPATH", None)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, cache = Path(folder) / "report.xml", Path(folder) / "cache"
        words = [
            "-m",
            "pytest",
            "--numprocesses",
            str(os.cpu_count()),
            "--dist",
            "loadfile",
            "--junit-xml",
            str(report),
            "--override-ini",
            f"cache_dir={cache}",
        ]
        process = subprocess.Popen([str(python), *words, *tests], cwd=ROOT, env=values, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            print(f"window: ended after {limit / 60:.0f} minutes", flush=True)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        counts, failed_tests = _counts(report), _failed_tests(cache) if code == SOME_FAILED else []
    if code != 0 and not counts["failed"]:
        counts["failed"] = 1  # the run as a whole
    minutes = round((time.monotonic() - start) / 60, 1)
    found = {"versions": json.loads(versions), **counts, "minutes": minutes, "date": date.today().isoformat()}
    return found | {"failed_tests": failed_tests}


def _counts(report: Path) -> dict[str, int]:
    if not report.is_file():
        return dict.fromkeys(COUNTS, 0)
    suites = [suite.attrib for suite in ElementTree.parse(report).iter("testsuite")]
    tests, skipped, failures, errors = (
        sum(int(suite[name]) for suite in suites) for name in ("tests", "skipped", "failures", "errors")
    )
    failed = failures + errors
    return {"passed": tests - skipped - failed, "skipped": skipped, "failed": failed}


def _failed_tests(cache: Path) -> list[str]:
    """Return the names under which pytest runs what failed, as its option --last-failed keeps them."""
    return sorted(_read(cache / "v/cache/lastfailed"))


def tests_to_repeat(name: str, file: Path = RESULTS) -> list[str]:
    """Return the tests that failed in a set's last run; none if it passed.

    Raises:
        NotRepeatableError: the set never ran, or its run as a whole failed, so that no tests can be named.
    """
    if (last := _read(file).get(name)) is None:
        raise NotRepeatableError(f"{name} never ran; run it without --again")
    if _failed_as_a_whole(last):
        raise NotRepeatableError(f"the last run of {name} failed as a whole; run it again without --again")
    return last["failed_tests"]


def with_repeated(last: Mapping[str, Any], again: Mapping[str, Any], commit: str) -> dict[str, Any]:
    """Return a set's last result with what the tests that had failed give now, at this commit.

    A repeated run that failed as a whole tells nothing of them.
    """
    if _failed_as_a_whole(again):
        return dict(last)
    counts = {name: last[name] + again[name] for name in ("passed", "skipped")}
    return {**last, **counts, **{name: again[name] for name in ("failed", "failed_tests")}, "again": commit}


def _failed_as_a_whole(result: Mapping[str, Any]) -> bool:
    return result["failed"] > 0 and not result["failed_tests"]


def last(name: str, file: Path = RESULTS) -> dict[str, Any]:
    """Return a set's last result."""
    return _read(file)[name]


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write(name: str, result: Mapping[str, Any], file: Path = RESULTS, page: Path = PAGE) -> None:
    """Put a set's result into the file, in the place of its last one, and the table of the file into the page."""
    results = _read(file)
    results[name] = dict(result)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    page.write_text(TABLE.sub(lambda found: found[1] + table(results) + found[2], text), encoding="utf-8")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table with a column for each set."""
    names = list(results)
    rows = [["set", *names], ["---"] * (len(names) + 1)]
    for version in ("Python", *PACKAGES):
        rows.append([version, *(results[name]["versions"][version] or "–" for name in names)])
    for value in (*COUNTS, "minutes", "date", "commit"):
        rows.append([value, *(str(results[name][value]) for name in names)])
    rows.append(["failed first, run again at", *(results[name].get("again") or "–" for name in names)])
    return "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"

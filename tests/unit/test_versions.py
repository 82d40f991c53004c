"""The ranges of setup.cfg, the tested versions, and the workflows that run the suite at both ends of the ranges."""

import configparser
import re
import subprocess

import pytest
import yaml
from packaging.requirements import Requirement

from tests.shared.repository import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def requirements() -> dict[str, Requirement]:
    """Every requirement of setup.cfg, by its name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    found = [Requirement(line) for block in lines for line in block.splitlines() if re.match(r"\w", line)]
    return {requirement.name.lower(): requirement for requirement in found}


def pins(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name.lower(): pinned for name, pinned in (line.split("==") for line in lines)}


def test_the_tested_versions_are_within_the_ranges():
    tested = pins((ROOT / "constraints.txt").read_text())
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(tested[name]), name


def test_the_oldest_are_the_lower_bounds(tmp_path):
    """As `make test-oldest` writes them down."""
    file = tmp_path / "env-oldest/constraints.txt"
    subprocess.run(["make", "-s", "-C", ROOT, str(file)], check=True, capture_output=True)
    oldest = pins(file.read_text())
    assert set(oldest) == set(requirements())
    for name, requirement in requirements().items():
        lower, upper = sorted(requirement.specifier, key=lambda bound: bound.operator, reverse=True)
        assert (lower.operator, upper.operator, lower.version) == (">=", "<", oldest[name])


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_the_workflows_run_what_is_there(file):
    assert {file.stem for file in WORKFLOWS} == {"ci", "weekly"}
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for job in workflow["jobs"].values():
        for target in job.get("strategy", {}).get("matrix", {}).get("target", []):
            assert target in targets
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.search(r"@v\d+\.\d+\.\d+$", step.get("uses", "@v0.0.0"))
        assert job["steps"][-1]["run"] in (".ci/run", "make ${{ matrix.target }}")
    assert (ROOT / ".ci/run").stat().st_mode & 0o100

"""The ranges of setup.cfg, the tested versions, and the workflows that run the suite on every set of versions."""

import configparser
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.shared.repository import ROOT
from tools.window.__main__ import SETS
from tools.window.sets import version_set

CONSTRAINTS = ROOT / "constraints"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def requirements(*extras: str) -> dict[str, Requirement]:
    """The requirements of setup.cfg by their names: of the package and these extras (all, if none is named)."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options = setup["options.extras_require"]
    lines = [setup["options"]["install_requires"], *(options[name] for name in extras or options)]
    found = [Requirement(line) for block in lines for line in block.splitlines() if re.match(r"\w", line)]
    return {requirement.name.lower(): requirement for requirement in found}


def pins(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {name.lower(): pinned for name, pinned in (line.split("==") for line in lines)}


def test_every_requirement_has_a_tested_version():
    assert set(requirements()) - set(pins(CONSTRAINTS / "tested.txt")) == set()


@pytest.mark.parametrize("file", sorted(CONSTRAINTS.glob("*.txt")), ids=lambda file: file.stem)
def test_the_pins_are_within_the_ranges(file):
    allowed = requirements()
    for name, version in pins(file).items():
        assert name not in allowed or allowed[name].specifier.contains(version), name


def test_the_oldest_are_the_lower_bounds():
    lower = {
        name: min(bound.version for bound in requirement.specifier if bound.operator == ">=")
        for name, requirement in requirements("train", "gguf", "optuna").items()
    }
    assert {name: Version(version) for name, version in pins(CONSTRAINTS / "oldest.txt").items()} == {
        name: Version(version) for name, version in lower.items()
    }


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_the_workflows_run_what_is_there(file):
    assert {file.stem for file in WORKFLOWS} == {"ci", "weekly"}
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.search(r"@v\d+\.\d+\.\d+$", step.get("uses", "@v0.0.0"))
        assert job["steps"][-1]["run"] in (".ci/run", "make test-window SETS=${{ matrix.set }}")
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_every_set_is_run_weekly_on_its_python():
    matrix = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())["jobs"]["window"]["strategy"][
        "matrix"
    ]
    python = dict.fromkeys(matrix["set"], matrix["python"][0])
    python |= {entry["set"]: entry["python"] for entry in matrix["include"]}
    assert python == {name: version_set(name).python for name in SETS}


def test_ci_runs_targets_that_are_there():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    run = re.findall(r"^ *make ([\w-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert set(run) < set(targets) and {"test", "test-window-short"} < set(run)

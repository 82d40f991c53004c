"""On an accelerator everything gives what it gives on the CPU, and no tensor is on the wrong device.

There is a made-up accelerator (`tests/shared/fake_device.py`), in a process of its own: torch keeps it for good.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.sessions.on_fake_device import CHECKS, DEVICE
from tests.shared.fake_device import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="this torch takes no device that is written in Python")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("devices") / "found.json"
    command = [sys.executable, "-W", "ignore", "-m", "tests.sessions.on_fake_device", file]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert not done.returncode, done.stderr
    return json.loads(file.read_text(encoding="utf-8"))


def flat(value):
    """The numbers and texts of a tree, in its order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [one for part in value for one in flat(part)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", CHECKS)
def test_results_are_those_of_the_cpu(found, name):
    here, there = found[name]["cpu"], found[name][DEVICE]
    assert isinstance(here, list), here  # an error's text
    assert isinstance(there, list), there
    here, there = flat(here), flat(there)
    assert len(here) == len(there) > 8
    for one, other in zip(here, there, strict=True):
        assert other == (pytest.approx(one, rel=1e-4, abs=1e-5) if isinstance(one, float) else one)


def test_the_device_refuses_what_cuda_refuses(found):
    refused = ["sum", "number to cat", "numpy", "generator", "index of the CPU's", "embedding", "in place"]
    assert found["refusals"] == refused

"""The quick form of `make soak`: a few deaths of the real command."""

import json
import os
import subprocess
import sys

from tests.shared.versions import RESUMES_ON_CPUS


def test_killed_runs_end_as_if_never_interrupted():
    """The session itself checks each death and each end; every kind of run, one death each."""
    kinds = 4 if RESUMES_ON_CPUS else 3  # one is of two processes
    done = subprocess.run(
        [sys.executable, "-m", "tests.sessions.soak_interruption", "--kills", str(kinds)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == kinds
    assert figures["runs that ended as if never interrupted, bit for bit"] >= kinds

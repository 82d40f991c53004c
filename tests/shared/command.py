"""The command in a process of its own."""

import os
import subprocess
import sys

from tests.shared.repository import ROOT


def command(*words, cwd=ROOT, **variables):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )

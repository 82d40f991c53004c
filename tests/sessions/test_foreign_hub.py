"""What foreign trainers push is a prompt that loads (`foreign_hub_session.py` is what happens)."""

import json
import os
import subprocess
import sys

from tests.shared.versions import HAS_TRL


def test_what_they_push_loads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.sessions.foreign_hub_session", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    trainers = ["Trainer", "Seq2SeqTrainer"] + ["SFTTrainer"] * HAS_TRL
    assert set(facts) == {f"{name}{how}" for name in trainers for how in ("", " callback")}
    for fact in facts.values():
        assert {"adapter_config.json", "adapter_model.safetensors", "prompt_tuning.json", "README.md"} <= set(
            fact["files"]
        )
        assert fact["distance"] == 0
    for name in trainers:
        assert facts[f"{name} callback"]["loss"] == facts[name]["best"]

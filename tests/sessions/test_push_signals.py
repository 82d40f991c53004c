"""A signal ends a run that pushes when its push has arrived, and a Hub that hangs does not keep it."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.shared.hub_client import pulled
from tests.shared.hub_server import HubServer

COMMIT = "/api/models/*/commit/*"


@pytest.fixture
def hub():
    with HubServer(tokens={"hf_alice": "alice"}) as server:
        yield server


class Run:
    """The session in its process; what it prints comes line by line."""

    def __init__(self, hub, folder, door="save", seconds=2):
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        environment = hub.environment(folder / "home", token="hf_alice")
        environment |= {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        session = ["-m", "tests.sessions.pushed_session", str(folder), door, str(seconds)]
        words = [sys.executable, "-W", "ignore", *session]
        self.process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def until(self, line):
        for said in self.process.stdout:
            if said.startswith(line):
                return
        raise AssertionError(self.process.stderr.read())

    def ended(self, seconds=60):
        """The exit code, what was logged, and how long it took."""
        start = time.monotonic()
        _, log = self.process.communicate(timeout=seconds)
        return self.process.returncode, log, time.monotonic() - start

    def left(self):
        return [file for file in self.temporary.iterdir() if file.name.startswith("prompt-push-")]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_the_signal_saves_is_on_the_hub_when_the_run_has_ended(signum, hub, tmp_path):
    """Though a push was in progress, and the Hub takes its time."""
    run = Run(hub, tmp_path, seconds=60)  # so that no push is left, however slow the machine is
    run.until("step 2")
    hub.fail(COMMIT, delay=0.3)
    run.until("step 6")
    run.process.send_signal(signum)
    code, log, _ = run.ended()
    assert code == 128 + signum and "Interrupted; go on with" in log
    assert "cannot schedule new futures" not in log and "push during training failed" not in log
    last = max((tmp_path / "run").glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    title = f"Training in progress, step {last.name.split('-')[1]}"
    titles = [said for _, said in hub.commits("alice/p")]
    assert titles[-2:] == [title, f"{title}, checkpoint"], titles
    folder = pulled(hub, tmp_path / "pulled", "alice/p")
    vectors = [load_file(file / "adapter_model.safetensors") for file in (last, folder, folder / "last-checkpoint")]
    assert all(torch.equal(vectors[0]["prompt_embeddings"], one["prompt_embeddings"]) for one in vectors)
    assert run.left() == []


def test_a_hub_that_hangs_is_left(hub, tmp_path):
    run = Run(hub, tmp_path)
    hub.fail("/lfs/*", delay=300)
    run.until("step 4")
    run.process.send_signal(signal.SIGTERM)
    code, log, seconds = run.ended()
    assert code == 143 and seconds < 15
    assert "pushes have not ended, and are left" in log and "Traceback" not in log
    assert (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").exists()
    assert run.left() == []


def test_a_second_signal_ends_at_once(hub, tmp_path):
    run = Run(hub, tmp_path)
    hub.fail(COMMIT, delay=300)
    run.until("step 4")
    run.process.send_signal(signal.SIGTERM)
    time.sleep(1.3)  # one that comes sooner is taken for the same
    run.process.send_signal(signal.SIGTERM)
    code, _, seconds = run.ended()
    assert code == -signal.SIGTERM and seconds < 1
    assert run.left() == []


def test_a_signal_during_the_last_push(hub, tmp_path):
    run = Run(hub, tmp_path, "end")
    hub.fail(COMMIT, delay=1)
    run.until("pushing")
    time.sleep(0.5)
    run.process.send_signal(signal.SIGTERM)
    code, log, seconds = run.ended()
    assert code == 143 and seconds < 15 and "ending after this push" in log
    assert [title for _, title in hub.commits("alice/p")][1:] == ["End of training"]
    assert run.left() == []
    assert os.path.exists(tmp_path / "run" / "adapter_model.safetensors")

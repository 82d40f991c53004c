"""The command in forked children, to be killed there, and a disk that can be filled.

Forked from a process that has imported everything already, a child trains after a second, not after seven.
"""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import run_prompt_tuning
from hf_prompt_tuning.cli.main import run
from hf_prompt_tuning.training.checkpoint_folder import UNFINISHED


def slowly(do: Callable) -> Callable:
    """The same, taking its time as on a slow disk."""

    def done(*args):
        time.sleep(0.02)
        return do(*args)

    return done


def child(words: list[str], log: Path, file_size: int | None, place: dict[str, str]) -> NoReturn:
    """The command, in the process that was just forked."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(place)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this runs in the background
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
        os.fsync, Path.rename = slowly(os.fsync), slowly(Path.rename)
        sys.argv = ["run_prompt_tuning.py", *words]
        run(run_prompt_tuning.main)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass
class Life:
    """The processes of one start of the command."""

    output: Path
    pids: list[int] = field(default_factory=list)

    @classmethod
    def begin(cls, config: Path, output: Path, flags: dict, file_size: int | None = None) -> "Life":
        life, port, processes = cls(output), free_port(), flags.get("processes", 1)
        words = [str(config), f"--output_dir={output}", "--resume_from_checkpoint=true"]
        words += [f"--{name}={value}" for name, value in flags.items() if name != "processes"]
        log = config.with_name("log.txt")
        log.write_text("")
        for rank in range(processes):
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "RANK": rank}
            place = {name: str(value) for name, value in (place | {"LOCAL_RANK": rank}).items()}
            if pid := os.fork():
                life.pids.append(pid)
            else:
                child(words, log if file_size is None else Path(os.devnull), file_size, place if processes > 1 else {})
        return life

    def codes(self) -> list[int]:
        """The exit codes, once all processes have ended; 20 s after the first one the others are killed."""
        codes: dict[int, int] = {}
        until = None
        while len(codes) < len(self.pids):
            for pid in set(self.pids) - set(codes):
                if until is not None and time.monotonic() > until:
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid], until = os.waitstatus_to_exitcode(status), time.monotonic() + 20
            time.sleep(0.005)
        return list(codes.values())

    def strike(self, name: str, in_a_save: bool, draw: random.Random, seconds: float) -> bool:
        """Sends a signal to one of the processes, at a random moment of its life or of a save; whether one went on."""
        until = time.monotonic() + (seconds if in_a_save else draw.uniform(0, seconds))
        while time.monotonic() < until and not (in_a_save and (self.output / UNFINISHED).exists()):
            time.sleep(0.002)
        if in_a_save:
            time.sleep(draw.uniform(0, 0.3))
        saving = (self.output / UNFINISHED).exists()
        os.kill(draw.choice(self.pids), signal.Signals[name])
        return saving


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Disk:
    """A small disk of its own, where this process may mount one."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        self.mounted = bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True).returncode

    def fill(self, but: int) -> None:
        free = shutil.disk_usage(self.folder).free
        (self.folder / "filler").write_bytes(b"\0" * max(free - but, 0))

    def drain(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)

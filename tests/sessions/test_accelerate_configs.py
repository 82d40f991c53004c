"""The configs of examples/accelerate/, as Accelerate's own launcher reads them, and launched where a CPU can."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests.sessions.accelerate_on_cpu import launch_arguments

CONFIGS = Path("examples/accelerate")
SHOW = """
import json, os
names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION")
# In one piece, so that the processes' lines do not mix.
os.write(1, (json.dumps({name: os.environ.get(name) for name in names}) + "\\n").encode())
"""


@pytest.fixture
def environment(monkeypatch):
    """What a launcher writes into this process's environment goes again."""
    for name, value in list(os.environ.items()):
        monkeypatch.setenv(name, value)
    return monkeypatch


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(config, script, *flags):
    command = ["accelerate.commands.launch", "--config_file", str(CONFIGS / config), *flags, str(script)]
    return subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_these_are_all():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {
        "multi_gpu.yaml",
        "fsdp2.yaml",
        "zero3.yaml",
        "two_nodes.yaml",
    }


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_accelerates_loader_knows_every_key(config):
    """It refuses a key that it does not know."""
    assert load_config_from_file(str(config)).compute_environment == "LOCAL_MACHINE"


def test_fsdp2_as_the_processes_see_it(environment):
    variables = prepare_multi_gpu_env(launch_arguments(CONFIGS / "fsdp2.yaml"))
    assert (variables["ACCELERATE_USE_FSDP"], variables["FSDP_VERSION"]) == ("true", "2")
    assert variables["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert variables["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_zero3_as_the_processes_see_it(environment):
    arguments = launch_arguments(CONFIGS / "zero3.yaml")
    arguments.deepspeed_fields_from_accelerate_config = "deepspeed_config_file"  # as `accelerate launch` sets it
    _, variables = prepare_deepspeed_cmd_env(arguments)
    assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
    config = json.loads(Path(variables["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text())
    assert config["zero_optimization"]["stage"] == 3
    # Parameters of so many numbers stay whole: a prompt of 100 vectors does for every backbone up to a width of 10000.
    assert config["zero_optimization"]["stage3_param_persistence_threshold"] >= 100 * 10000


def test_one_machine_is_launched(tmp_path):
    script = tmp_path / "show.py"
    script.write_text(SHOW)
    ports = [["--main_process_port", free_port()] for _ in range(2)]
    several, sharded = (start(c, script, *p) for c, p in zip(("multi_gpu.yaml", "fsdp2.yaml"), ports, strict=True))
    for process, fsdp in ((several, None), (sharded, "true")):
        found = sorted(said(process), key=lambda one: one["RANK"])
        assert [(one["WORLD_SIZE"], one["RANK"]) for one in found] == [("2", "0"), ("2", "1")]
        assert {(one["ACCELERATE_USE_FSDP"], one["ACCELERATE_MIXED_PRECISION"]) for one in found} == {(fsdp, "bf16")}


def test_two_machines_find_each_other(tmp_path):
    """Both of them this one, with a process each."""
    script = tmp_path / "show.py"
    script.write_text(SHOW)
    here = ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port(), "--num_processes", "2"]
    machines = [start("two_nodes.yaml", script, *here, "--machine_rank", rank) for rank in ("0", "1")]
    for rank, machine in enumerate(machines):
        found = said(machine)
        assert [(one["WORLD_SIZE"], one["RANK"], one["LOCAL_RANK"]) for one in found] == [("2", str(rank), "0")]

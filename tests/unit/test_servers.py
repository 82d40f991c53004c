"""What `make test-serving` needs is made once, and made anew if it is to be made of something else."""

import subprocess
import tarfile

import pytest

from tools import servers


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands that are run, each of which leaves what the real one does."""
    run = []

    def fake(words, check, env=None):
        run.append([str(word) for word in words])
        if "download" in words:
            source = tmp_path / "source" / servers.SOURCE / "vendor/llama.cpp"
            source.mkdir(parents=True, exist_ok=True)
            with tarfile.open(tmp_path / f"llama/{servers.SOURCE}.tar.gz", "w:gz") as archive:
                archive.add(tmp_path / "source" / servers.SOURCE, servers.SOURCE)
        elif "--target" in words and "install" in words:
            (tmp_path / "serving").mkdir(exist_ok=True)
        elif "--build" in words:
            (tmp_path / "llama/build/bin").mkdir(parents=True)
            (tmp_path / "llama/build/bin/llama-server").touch()

    monkeypatch.setattr(servers.subprocess, "run", fake)
    return run


def test_a_server_is_built_once(commands, tmp_path):
    program = servers.llama_server(tmp_path)
    assert program == tmp_path / "llama/build/bin/llama-server" and program.is_file()
    assert servers.llama_cpp(tmp_path) == tmp_path / "llama" / servers.SOURCE / "vendor/llama.cpp"
    first = len(commands)
    assert sum("llama_cpp_python==0.3.36" in words for words in commands) == 1
    assert servers.llama_server(tmp_path) == program and servers.packages(tmp_path) == tmp_path / "serving"
    assert len(commands) == first


def test_other_options_and_an_interruption_begin_anew(commands, monkeypatch, tmp_path):
    servers.llama_server(tmp_path)
    monkeypatch.setattr(servers, "OPTIONS", (*servers.OPTIONS, "-DLLAMA_X=ON"))
    before = len(commands)
    servers.llama_server(tmp_path)
    assert "-DLLAMA_X=ON" in commands[-2] and any("download" in words for words in commands[before:])
    (tmp_path / "serving" / servers.MADE_OF).unlink()  # it was interrupted
    before = len(commands)
    servers.packages(tmp_path)
    assert [words[-len(servers.PACKAGES) :] for words in commands[before:]] == [list(servers.PACKAGES)]


def test_a_build_that_failed_goes_on(commands, monkeypatch, tmp_path):
    fake = servers.subprocess.run

    def fails(words, check, env=None):
        if "--build" in words:
            raise subprocess.CalledProcessError(1, words)
        fake(words, check, env)

    with monkeypatch.context() as patch:
        patch.setattr(servers.subprocess, "run", fails)
        with pytest.raises(subprocess.CalledProcessError):
            servers.llama_server(tmp_path)
    before = len(commands)
    servers.llama_server(tmp_path)
    assert not any("download" in words for words in commands[before:]) and "--build" in commands[-1]

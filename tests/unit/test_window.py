"""`make test-window`: environments that are made once, runs that go on after a failure, a table that nobody types."""

import json
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.shared.repository import ROOT
from tools.window import __main__ as command
from tools.window import environments, results, sets

RESULT = {
    "versions": dict.fromkeys(("Python", *results.PACKAGES), "1.0"),
    "passed": 5,
    "skipped": 1,
    "failed": 0,
    "minutes": 0.1,
    "date": "2026-11-26",
    "commit": "abc1234",
}


@pytest.fixture
def pip(monkeypatch):
    """What is installed, in place of pip; an environment is a link to this interpreter."""
    installed = []

    def virtual(python: str, made: Path) -> None:
        (made / "bin").mkdir(parents=True)
        (made / "bin/python").symlink_to(sys.executable)

    monkeypatch.setattr(environments, "_virtual", virtual)
    monkeypatch.setattr(environments, "_install", lambda made, *words: installed.append(words[-1]))
    return installed


@pytest.fixture
def oldest(tmp_path):
    file = tmp_path / "constraints/oldest.txt"
    file.parent.mkdir()
    file.write_text("# Old.\n# python: 3.10\n# extras: test, gguf\ntorch==2.4.0\n")
    return sets.version_set("oldest", file.parent)


def lend(chosen, folder: Path, days: int = 1) -> Path:
    with environments.environment(chosen, folder, days) as python:
        assert sets.version_of(str(python)) is not None
        return python


def test_the_page_says_what_the_file_says():
    told = json.loads(results.RESULTS.read_text(encoding="utf-8"))
    found = results.TABLE.search(results.PAGE.read_text(encoding="utf-8"))
    assert found[0] == found[1] + results.table(told) + found[2]
    assert set(told) <= {file.stem for file in (ROOT / "constraints").glob("*.txt")}


def test_a_set_says_its_python_and_extras(oldest):
    assert (oldest.python, oldest.extras, oldest.has_pins) == ("3.10", "test,gguf", True)
    assert {sets.version_set(name).extras for name in command.SETS} == {"test,gguf", "test,gguf,trl"}
    assert not sets.version_set("newest").has_pins
    with pytest.raises(
        SystemExit, match="no set of versions is called oldst; there are axolotl, llamafactory, newest"
    ):
        sets.version_set("oldst")


def test_another_python_takes_the_place_of_one_that_is_not_installed(tmp_path, capsys):
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert sets.interpreter(here, tmp_path) == sys.executable
    assert capsys.readouterr().out == ""
    assert sets.interpreter("3.99", tmp_path) == sys.executable
    assert "Python 3.99 is not installed here" in capsys.readouterr().out


def test_an_environment_is_made_once_and_again_when_something_changed(tmp_path, oldest, pip, monkeypatch):
    first = lend(oldest, tmp_path)
    assert pip == ["setuptools>=77", f"{ROOT}[test,gguf]"]
    assert lend(oldest, tmp_path) == first and len(pip) == 2
    monkeypatch.setattr(environments, "ROOT", tmp_path / "another checkout")
    assert lend(oldest, tmp_path) == first and pip[2:] == [str(tmp_path / "another checkout")]
    oldest.file.write_text(oldest.file.read_text() + "numpy==1.26.0\n")
    second = lend(oldest, tmp_path)
    assert second != first and not first.exists() and len(pip) == 5


def test_half_an_environment_is_not_used(tmp_path, oldest, pip, monkeypatch):
    def fails(made: Path, *words: str) -> None:
        raise environments.NotInstalledError("pip install: no network")

    with monkeypatch.context() as patch:
        patch.setattr(environments, "_install", fails)
        with pytest.raises(environments.NotInstalledError, match="no network"):
            lend(oldest, tmp_path)
    python = lend(oldest, tmp_path)
    assert len(pip) == 2
    python.unlink()
    assert lend(oldest, tmp_path) == python and len(pip) == 4


def test_what_has_no_pins_is_resolved_anew(tmp_path, oldest, pip):
    oldest.file.write_text("# python: 3.11\n# extras: test\n")
    made = lend(oldest, tmp_path).parents[1] / environments.COMPLETE
    yesterday = date.today() - timedelta(days=1)
    made.write_text(json.dumps(json.loads(made.read_text()) | {"made": yesterday.isoformat()}))
    lend(oldest, tmp_path, days=7)
    assert len(pip) == 2
    lend(oldest, tmp_path, days=1)
    assert len(pip) == 4


def test_a_run_is_counted(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert False\n"
        "@pytest.mark.skip\ndef test_c(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError\n"
        "def test_d(broken): pass\n"
        "class TestE:\n    @pytest.mark.parametrize('f', ['g.h'])\n    def test_f(self, f): assert False\n"
    )
    (tmp_path / "test_other.py").write_text("import no_such_module")
    run = results.run(Path(sys.executable), [str(tmp_path)], 600)
    assert [run[name] for name in results.COUNTS] == [1, 1, 4]
    names = ["test_other.py", "test_some.py::TestE::test_f[g.h]", "test_some.py::test_b", "test_some.py::test_d"]
    assert [test.rpartition("/")[2] for test in run["failed_tests"]] == names
    again = results.run(Path(sys.executable), [str(tmp_path / name) for name in names], 100)
    assert [again[name] for name in results.COUNTS] == [0, 0, 4] and again["failed_tests"] == run["failed_tests"]
    assert run["versions"]["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(run["versions"]) == {"Python", *results.PACKAGES}


@pytest.mark.parametrize(
    ("name", "code", "limit"),
    [("test_some.py", "import time; time.sleep(100)", 3), ("conftest.py", "import no_such_module", 100)],
)
def test_a_run_that_hangs_or_does_not_start_is_a_failure(tmp_path, name, code, limit):
    (tmp_path / name).write_text(code)
    run = results.run(Path(sys.executable), [str(tmp_path)], limit)
    assert [run[name] for name in results.COUNTS] == [0, 0, 1] and run["failed_tests"] == []


def test_a_result_takes_the_place_of_the_last_one(tmp_path):
    file, page = tmp_path / "window.json", tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- window: written by `make test-window` -->\n<!-- /window -->\n\nAfter.\n")
    for name, passed in (("oldest", 5), ("newest", 6), ("oldest", 7)):
        results.write(name, RESULT | {"passed": passed}, file, page)
    assert {name: told["passed"] for name, told in json.loads(file.read_text()).items()} == {"oldest": 7, "newest": 6}
    text = page.read_text()
    assert "| set | oldest | newest |\n| --- | --- | --- |\n| Python | 1.0 | 1.0 |\n" in text
    assert "| passed | 7 | 6 |\n| skipped | 1 | 1 |\n| failed | 0 | 0 |\n" in text
    assert text.startswith("Before.\n\n<!--") and text.endswith("<!-- /window -->\n\nAfter.\n")


def test_what_failed_is_run_again_and_the_table_says_so(tmp_path, monkeypatch):
    file, page = tmp_path / "window.json", tmp_path / "page.md"
    page.write_text("<!-- window: written by `make test-window` -->\n<!-- /window -->\n")
    last = RESULT | {"failed": 2, "failed_tests": ["tests/a.py::b", "tests/a.py::c[d-e]"]}
    results.write("oldest", last, file, page)
    results.write("newest", RESULT | {"failed_tests": []}, file, page)
    results.write("vllm", RESULT | {"failed": 1, "failed_tests": []}, file, page)
    assert results.tests_to_repeat("oldest", file) == last["failed_tests"]
    assert results.tests_to_repeat("newest", file) == []
    with pytest.raises(
        results.NotRepeatableError, match="run of vllm failed as a whole; run it again without --again"
    ):
        results.tests_to_repeat("vllm", file)
    with pytest.raises(results.NotRepeatableError, match="axolotl never ran; run it without --again"):
        results.tests_to_repeat("axolotl", file)
    again = RESULT | {"passed": 1, "skipped": 0, "failed": 1, "failed_tests": ["tests/a.py::b"]}
    results.write("oldest", results.with_repeated(last, again, "def5678"), file, page)
    told = json.loads(file.read_text())["oldest"]
    assert [told[name] for name in (*results.COUNTS, "commit", "again")] == [6, 1, 1, "abc1234", "def5678"]
    assert "| failed first, run again at | def5678 | – | – |\n" in page.read_text()
    died = RESULT | {"passed": 0, "skipped": 0, "failed": 1, "failed_tests": []}
    assert results.with_repeated(told, died, "123abcd") == told


def test_results_are_no_change_of_the_commit_that_gave_them(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "docs/window.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "docs/page.md")
    (tmp_path / "docs").mkdir()
    for name in ("docs/window.json", "docs/page.md", "code.py"):
        (tmp_path / name).write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = results.commit()
    (tmp_path / "docs/window.json").write_text("after")
    (tmp_path / "docs/page.md").write_text("after")
    assert results.commit() == commit
    (tmp_path / "code.py").write_text("after")
    assert results.commit() == f"{commit}+"


def test_a_set_that_fails_does_not_stop_the_others(tmp_path, pip, monkeypatch, capsys):
    written, failed = {}, iter([1, 0])

    def environment(chosen, folder, days):
        if chosen.name == "vllm":
            raise environments.NotInstalledError("pip install: no network")
        return monkeypatch.context()

    monkeypatch.setattr(command, "environment", environment)
    monkeypatch.setattr(results, "run", lambda python, tests, limit: RESULT | {"failed": next(failed)})
    monkeypatch.setattr(results, "write", written.__setitem__)
    assert command.main(["oldest", "vllm", "newest"]) == 1
    assert {name: told["failed"] for name, told in written.items()} == {"oldest": 1, "newest": 0}
    told = capsys.readouterr().out
    assert "oldest: 5 passed, 1 skipped, 1 failed\n  vllm: did not run: pip install: no network\n  newest: 5" in told
    failed = iter([0])
    written.clear()
    assert command.main(["newest", "--tests", "tests/unit/test_compat.py"]) == 0
    assert written == {}


def test_again_runs_what_failed_in_each_set_that_has_something(monkeypatch, capsys):
    last = {
        "oldest": RESULT | {"failed": 2, "failed_tests": ["tests/a.py::b", "tests/a.py::c"]},
        "vllm": RESULT | {"failed": 1, "failed_tests": []},
        "newest": RESULT | {"failed_tests": []},
        "axolotl": RESULT | {"failed": 1, "failed_tests": ["tests/d.py"]},
    }
    died = RESULT | {"passed": 0, "skipped": 0, "failed": 1, "failed_tests": []}
    ran, written = [], {}
    given = iter([RESULT | {"passed": 2, "skipped": 0, "failed_tests": []}, died])
    monkeypatch.setattr(command, "environment", lambda *words, **days: monkeypatch.context())
    monkeypatch.setattr(results, "_read", lambda file: last)
    monkeypatch.setattr(results, "commit", lambda: "def5678")
    monkeypatch.setattr(results, "run", lambda python, tests, limit: ran.append(tests) or next(given))
    monkeypatch.setattr(results, "write", written.__setitem__)
    assert command.main(["--again", "oldest", "vllm", "newest", "axolotl"]) == 1
    assert ran == [["tests/a.py::b", "tests/a.py::c"], ["tests/d.py"]]
    assert written["axolotl"] == last["axolotl"]  # with the tests that are still to repeat
    assert (written["oldest"]["failed"], written["oldest"]["again"], set(written)) == (
        0,
        "def5678",
        {"oldest", "axolotl"},
    )
    told = capsys.readouterr().out
    assert "oldest: 2 passed, 0 skipped, 0 failed\n  vllm: did not run: the last run of vllm failed as a whole" in told
    with pytest.raises(SystemExit):
        command.main(["--again", "--short"])
    assert "leave out --tests and --short" in capsys.readouterr().err


def test_ci_runs_what_is_there():
    assert all((ROOT / path).exists() for path in command.SHORT)
    assert set(command.SETS) | {"tested"} == {file.stem for file in (ROOT / "constraints").glob("*.txt")}

"""docs/errors.md has a row for each kind of error, with the exit code that the command ends with."""

import errno
import re

import pytest

from hf_prompt_tuning import errors
from hf_prompt_tuning.cli.main import run
from tests.shared.repository import ROOT

PAGE = ROOT / "docs/errors.md"
KINDS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
KINDS["FloatingPointError"] = FloatingPointError
ARGUMENTS = {"CheckpointSaveError": (errno.ENOSPC, "full"), "TrainingInterrupted": (15, None)}
ROWS = re.findall(r"^\| `(\w+)`(?: \(an? `(\w+)`\))? \|.*\| ([\d, ]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)


def test_every_kind_has_one_row():
    assert sorted(name for name, _, _ in ROWS) == sorted(KINDS)


@pytest.mark.parametrize(("name", "parent", "codes"), ROWS, ids=[name for name, _, _ in ROWS])
def test_the_row_names_the_parent_and_the_exit_code(name, parent, codes, capsys):
    def fail():
        raise KINDS[name](*ARGUMENTS.get(name, ("what is wrong",)))

    assert parent in ("", KINDS[name].__base__.__name__)
    with pytest.raises(SystemExit) as ended:
        run(fail)
    assert str(ended.value.code) in codes.split(", ")
    message = capsys.readouterr().err.strip()
    assert name == "TrainingInterrupted" or (message.startswith("error: ") and "\n" not in message)

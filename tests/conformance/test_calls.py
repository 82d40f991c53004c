"""Some two hundred drawn calls, the same ones every time: each is right, or refused by name."""

import pytest

from .entry_points import CALLS
from .oracle import __file__ as oracle
from .run import few_of, require_right


@pytest.mark.filterwarnings("ignore")  # of models' own slow paths and of tiny sizes
@pytest.mark.parametrize("entry", CALLS, ids=lambda entry: entry.name)
def test_drawn_calls_are_right_or_refused(entry):
    require_right(entry, few_of(entry))


def test_the_oracle_is_small_and_knows_nothing_of_the_package():
    with open(oracle, encoding="utf-8") as file:
        lines = file.readlines()
    assert len(lines) < 100
    assert not any("hf_prompt_tuning" in line or "from ." in line for line in lines)

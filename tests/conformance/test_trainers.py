"""Some hundred drawn runs of trainers, the same ones every time: each is right, or refused by name."""

import pytest

from .entry_points import TRAINERS
from .run import few_of, require_right


@pytest.mark.filterwarnings("ignore")  # of models' own slow paths and of tiny sizes
@pytest.mark.parametrize("entry", TRAINERS, ids=lambda entry: entry.name)
def test_drawn_runs_are_right_or_refused(entry):
    require_right(entry, few_of(entry))

"""What people see of a row with pictures: the names of its files."""

import pytest
from PIL import Image

from hf_prompt_tuning import PromptTemplate
from hf_prompt_tuning.data.shown_pictures import shown


def named(name):
    return {"bytes": None, "path": f"folder/{name}"}


@pytest.mark.parametrize(
    ("photos", "text"),
    [
        ([named("a.png"), named("b.png")], "[a.png][b.png] is red"),
        ([], " is red"),
        ((), " is red"),
        (named("a.png"), "[a.png] is red"),
        (Image.new("RGB", (2, 2)), "[picture] is red"),
        (None, " is red"),
    ],
)
def test_a_row_with_several_pictures_one_or_none(photos, text):
    assert shown(PromptTemplate("{photos} is {shade}", "yes"), {"photos": photos, "shade": "red"}) == text

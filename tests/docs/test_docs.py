"""The reference holds what is public. That links lead somewhere is for `make docs`, which is strict."""

import hf_prompt_tuning
from tests.shared.repository import ROOT

REFERENCE = ROOT / "docs" / "reference"


def test_every_public_name_is_in_the_reference_once():
    lines = [line for page in REFERENCE.glob("*.md") for line in page.read_text().splitlines()]
    entries = [line.removeprefix("::: hf_prompt_tuning.") for line in lines if line.startswith("::: ")]
    assert sorted(entries) == sorted(hf_prompt_tuning.__all__)

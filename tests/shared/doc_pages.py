"""The code blocks of the pages."""

import re

from tests.shared.repository import ROOT


def blocks(page: str) -> list[str]:
    """The blocks of a page in docs/."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def run(page: str, names: dict) -> dict:
    """Run one block after another with these names; return all names."""
    for code in blocks(page):
        exec(compile(code, page, "exec"), names)
    return names

"""The code blocks of the how-to pages."""

import re

from tests.shared.repository import ROOT

PAGES = ROOT / "docs/how-to"


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(), re.DOTALL | re.MULTILINE)


def run(page, names):
    for code in blocks(page):
        exec(compile(code, page, "exec"), names)
    return names

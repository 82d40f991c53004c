"""docs/errors.md tells every error that the package raises, and each has its test."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from hf_prompt_tuning import errors

ROOT = Path(__file__).parent.parent
RAISED = {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
RAISED.add("FloatingPointError")


def message(node: ast.expr) -> str:
    """A message as the code writes it, with … for every value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(message, node.values))
    return "…"


def raised() -> Iterator[tuple[str, str]]:
    """Where each error is made, and its message."""
    for file in sorted((ROOT / "hf_prompt_tuning").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED and node.args:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", message(node.args[0])


def rows() -> list[str]:
    """The first cell of each row of the tables."""
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(.*?)` \| .+ \| .+ \|$", text, re.MULTILINE)


def texts_of_the_tests() -> list[str]:
    """Every text in the tests' code, of docstrings none."""
    texts = []
    for file in (ROOT / "tests").glob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                texts.append(re.sub(r"\\([^\w\s])", r"\1", node.value))
    return texts


def holds(text: str, fragment: str) -> bool:
    return re.search(".*".join(map(re.escape, fragment.split("…"))), text, re.DOTALL) is not None


def test_every_error_is_in_the_table_once():
    found = {f"{where} raises {text!r}": [row for row in rows() if holds(text, row)] for where, text in raised()}
    assert len(found) > 100
    wrong = {text: which for text, which in found.items() if len(which) != 1}
    assert not wrong, "give each of these one row of docs/errors.md"


def test_every_row_is_raised_and_tested():
    texts, messages = texts_of_the_tests(), [text for _, text in raised()]
    assert len(rows()) == len(set(rows()))
    assert [row for row in rows() if not any(holds(text, row) for text in messages)] == []
    assert [row for row in rows() if not any(holds(text, row) for text in texts)] == []

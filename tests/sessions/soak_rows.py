"""Writes data files, damages most of them at random, and reads them: each is read as it says, or refused by row.

    python -m tests.sessions.soak_rows [--files 3000] [--seed 0]

What is read of a damaged file is compared with another reader: Python's json a line, pandas' csv.
"""

import argparse
import csv
import io
import json
import random
import re
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.data.files import read_file
from tests.shared.versions import PANDAS_READS_NULS

PIECES = (
    "never came",
    "é",
    "😀",
    "שלום",
    "日本",
    '"',
    "'",
    ",",
    "\\",
    "{",
    "}",
    "[",
    "null",
    "007",
    "",
    " ",
    "\u2028",
)
WHERE = re.compile(r"^(row \d+|the header)( \(line \d+\))? of the data file '[^']+' cannot be used: .+\.$", re.DOTALL)
WHOLE = re.compile(r"^the data file '[^']+' (is empty|has no rows);")
SINGLE = b'\n\r\t",\\{}[]:x0\0'
BYTES = (*(SINGLE[i : i + 1] for i in range(len(SINGLE))), b"\xe9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800")


def rows_of(draw: random.Random, suffix: str) -> list[dict[str, str]]:
    """Some rows of two columns, of texts that the format can hold."""
    pieces = PIECES if suffix == ".tsv" else (*PIECES, "\n", "\t", "\r\n")
    return [
        {"text": "x" + "".join(draw.choices(pieces, k=draw.randint(0, 6))), "label": draw.choice("12")}
        for _ in range(draw.randint(1, 8))
    ]


def written(rows: list[dict[str, str]], suffix: str) -> bytes:
    if suffix == ".json":
        return json.dumps(rows, ensure_ascii=False).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if suffix == ".tsv":
        return "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *map(dict.values, rows)]).encode()
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, ["text", "label"])
    table.writeheader()
    table.writerows(rows)
    return file.getvalue().encode()


def damaged(content: bytes, draw: random.Random) -> bytes:
    """One to three bytes (or short runs of them) put in, taken out or replaced, or the end cut off."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content) + 1)
        how = draw.choice(["put in", "taken out", "replaced", "cut"])
        if how == "cut":
            content = content[:at]
        else:
            rest = at if how == "put in" else at + draw.randint(1, 3)
            content = content[:at] + (b"" if how == "taken out" else draw.choice(BYTES)) + content[rest:]
    return content


def read_by_others(content: bytes, suffix: str) -> list[dict] | None:
    """The rows as another reader has them; None where it has no opinion."""
    if suffix in (".json", ".jsonl"):
        text = content.decode("utf-8-sig")
        if suffix == ".json" and text.strip().startswith("["):
            return json.loads(text)
        lines = [line.removeprefix("\ufeff") for line in text.split("\n")]
        return [json.loads(line) for line in lines if line.strip()]
    if any(line and not line.strip() for line in content.splitlines()):
        return None  # a blank line to pandas, a value to csv
    if b"\0" in content and not PANDAS_READS_NULS:
        return None
    how = {"sep": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, index_col=False, **how)
    except ValueError:  # its parser knows fewer files than ours
        return None
    return table.to_dict("records")


def same(found: list[dict], expected: list[dict]) -> bool:
    """A row that lacks a column has a missing value there."""
    names = dict.fromkeys(name for row in expected for name in row)
    return found == [{name: row.get(name) for name in names} for row in expected]


def soak(files: int, seed: int) -> Counter:
    """Figures of so many files."""
    figures, draw = Counter(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(files):
            suffix = draw.choice([".jsonl", ".json", ".csv", ".tsv"])
            rows = rows_of(draw, suffix)
            content, whole = written(rows, suffix), draw.random() < 0.2
            if not whole:
                content = damaged(content, draw)
            file = Path(folder) / f"{i}{suffix}"
            file.write_bytes(content)
            try:
                found = read_file(file).to_list()
            except PromptTuningError as error:
                assert not whole, f"{content!r} was refused: {error}"
                assert WHERE.match(str(error)) or WHOLE.match(str(error)), f"{content!r}: {error}"
                figures["rows refused" if WHERE.match(str(error)) else "files without rows refused"] += 1
            else:
                expected = rows if whole else read_by_others(content, suffix)
                assert expected is None or same(found, expected), f"{content!r}: {found}, not {expected}"
                kind = "whole" if whole else "damaged" if expected is not None else "damaged, not compared"
                figures[f"files read as they say ({kind})"] += 1
            file.unlink()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(soak(**vars(parser.parse_args()))))

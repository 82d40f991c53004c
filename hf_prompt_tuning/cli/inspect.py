"""Inspect prompts from the command line.

    hf-prompt-tuning inspect PROMPT [PROMPT ...] [--data FILE] [--html FILE] [--json FILE]

This file does not hide the standard library's `inspect`, because imports are absolute.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import datasets
import transformers

from ..data.files import read_file
from ..errors import PromptTuningError
from ..inspection.inspector import inspect_prompt
from .main import run
from .pictures import pictures_of_file


def parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    flags = argparse.ArgumentParser(
        prog="hf-prompt-tuning inspect",
        description="Show what soft prompts have learned: as text, and as JSON or a page if a file is named.",
    )
    flags.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help="folder or Hub id of a prompt; several are compared"
    )
    flags.add_argument("--backbone", help="folder or Hub id of the backbone (default: the one that the prompt names)")
    flags.add_argument("--gguf_file", help="GGUF file to load the backbone from")
    flags.add_argument("--dtype", help="float32, bfloat16 or float16 for the backbone (default: its own)")
    flags.add_argument("--ignore_mismatch", action="store_true", help="accept another backbone than the prompt's")
    flags.add_argument("--data", help="rows with the template's columns: csv, tsv, json, jsonl, parquet or arrow")
    flags.add_argument("--column_names", nargs="+", help="columns of a csv or tsv file without a header line")
    flags.add_argument("--image_columns", nargs="+", help="columns of --data that name files of pictures")
    flags.add_argument("--max_rows", type=int, default=100, help="number of rows to sample (default: 100)")
    flags.add_argument("--words", type=int, default=5, help="number of nearest words for each position (default: 5)")
    flags.add_argument("--batch_size", type=int, default=32, help="rows in a batch (default: 32)")
    flags.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    flags.add_argument("--html", metavar="FILE", help="write a page to this file")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Inspect the named prompts, and print or write the results. Raise PromptTuningError if one is invalid."""
    args = parser().parse_args(argv)
    if args.max_rows < 1:
        raise PromptTuningError(f"max_rows is {args.max_rows}; give 1 or more.")
    for file in filter(None, (args.json, args.html)):  # fail before the work, not after it
        if not Path(file).absolute().parent.is_dir():
            raise PromptTuningError(f"{file!r} cannot be written: there is no such folder. Create it first.")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    data = None
    if args.data is not None:
        data = pictures_of_file(read_file(args.data, args.column_names), args.image_columns, args.data)
        data = data.shuffle(seed=0).select(range(min(args.max_rows, len(data))))
    loading = {name: getattr(args, name) for name in ("gguf_file", "dtype") if getattr(args, name) is not None}
    inspection = inspect_prompt(
        args.prompts,
        data=data,
        backbone=args.backbone,
        words=args.words,
        batch_size=args.batch_size,
        ignore_mismatch=args.ignore_mismatch,
        **loading,
    )
    for file, render in ((args.json, inspection.to_json), (args.html, inspection.to_html)):
        if file is not None:
            Path(file).write_text(render(), encoding="utf-8")
    print(inspection.to_text(), end="")


if __name__ == "__main__":
    run(main)

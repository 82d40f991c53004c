"""Draws thousands of cases, says how many were equal to the oracle and how many refused, and shows what is wrong.

python -m tests.conformance [--cases 10000] [--seed 0] [--processes 2] [--entry-point generate]
"""

import logging
import multiprocessing
import time
import traceback
import warnings
from collections import Counter

import datasets
import torch
import transformers

from .entry_points import ENTRY_POINTS
from .run import require_right

CHUNK = 100
"""Cases of one drawing: after a wrong one the next drawing goes on."""

DRAWINGS = 40
"""Of one process: the libraries' memory grows with each trainer."""


def quiet() -> None:
    """Models' own warnings, of slow paths and tiny sizes, are no news here."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def chunks(cases: int, seed: int, only: str | None) -> list[tuple[int, int, int]]:
    """Entry point, count and seed of each drawing."""
    chosen = [i for i, entry in enumerate(ENTRY_POINTS) if only in (None, entry.name)]
    of, found = sum(ENTRY_POINTS[i].cases for i in chosen), []
    for i in chosen:
        left = max(1, round(cases * ENTRY_POINTS[i].cases / of))
        while left > 0:
            found.append((i, min(left, CHUNK), seed * 100_000 + len(found)))
            left -= CHUNK
    return found


def drawn(chunk: tuple[int, int, int]) -> tuple[Counter, str]:
    """The figures of a drawing, and what was wrong."""
    number, count, seed = chunk
    figures: Counter = Counter()
    start = time.perf_counter()
    try:
        require_right(ENTRY_POINTS[number], count, seed, figures)
        wrong = ""
    except Exception:
        wrong = f"{ENTRY_POINTS[number].name}, seed {seed}:\n{traceback.format_exc(limit=-6)}"
    figures["seconds", ENTRY_POINTS[number].name] = time.perf_counter() - start
    return figures, wrong


def soak(cases: int, seed: int, processes: int, entry_point: str | None) -> int:
    """Prints figures and faults; 1 where something was wrong."""
    figures, faults = Counter(), 0
    with multiprocessing.get_context("spawn").Pool(processes, quiet, maxtasksperchild=DRAWINGS) as pool:
        for found, wrong in pool.imap_unordered(drawn, chunks(cases, seed, entry_point)):
            figures.update(found)
            if wrong:
                faults += 1
                print(f"WRONG: {wrong}", flush=True)
    for section in dict.fromkeys(section for section, _ in figures):
        print(f"{section}:")
        for (of, name), count in figures.most_common():
            if of == section:
                print(f"{count:8.0f}  {name}")
    print(f"{faults} drawings found something wrong")
    return int(faults > 0)

"""Keep the results of quality.py in a file, and make a table and a plot of them."""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from quality_methods import METHODS, REFERENCES

from hf_prompt_tuning import PromptTuningError

Entry = dict[str, Any]
Group = tuple[str, str]
"""A task and a size."""
START, END = "<!-- the tables: python benchmarks/quality.py --table -->", "<!-- the end of the tables -->"
"""The marks of a page between which the tables stand."""
FEWEST_SEEDS = 3
"""Means of fewer seeds are not compared with full fine-tuning."""
COLUMNS = [
    "task",
    "rows",
    "method",
    "seeds",
    "accuracy",
    "macro F1",
    "seconds",
    "to PEFT's accuracy",
    "trained numbers",
]


class Results:
    """Entries of runs in a JSON file, which several processes may add to.

    An entry of the kind "run" is a reported run, one of the kind "choice" a run that a learning rate is chosen by.
    """

    def __init__(self, file: Path):
        self.file = file

    def entries(self, kind: str) -> list[Entry]:
        """Return the entries of a kind, in the order in which they were added."""
        return [entry for entry in self._all() if entry["kind"] == kind]

    def _all(self) -> list[Entry]:
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else []

    def find(self, key: Entry) -> Entry | None:
        """Return the entry that has all values of a key, or None."""
        return next((entry for entry in self.entries(key["kind"]) if key.items() <= entry.items()), None)

    def add(self, entry: Entry) -> None:
        """Add an entry to what is in the file now. The file is replaced at once, so that it is never half written."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.file.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = [*self._all(), entry]
            entries.sort(key=lambda each: each["kind"])
            part = self.file.with_suffix(".part")
            part.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n", encoding="utf-8")
            os.replace(part, self.file)
        finally:
            os.close(lock)


def groups(runs: Sequence[Entry]) -> list[Group]:
    """Return the tasks and sizes that there are runs of."""
    return list(dict.fromkeys((entry["task"], entry["size"]) for entry in runs))


def of_method(runs: Sequence[Entry], group: Group, method: str) -> list[list[Entry]]:
    """Return a method's runs by seed, each with all its folds. Seeds that lack a fold do not count.

    Raise PromptTuningError if two runs are of one seed and fold.
    """
    by_seed: dict[int, list[Entry]] = {}
    for entry in runs:
        if (entry["task"], entry["size"], entry["method"]) == (*group, method):
            others = by_seed.setdefault(entry["seed"], [])
            if any(other["fold"] == entry["fold"] for other in others):
                raise PromptTuningError(
                    f"the results have two runs of {method}, {group[0]}, {group[1]} with the seed {entry['seed']} "
                    "(with other epochs, or other numbers of rows); remove one from the file."
                )
            others.append(entry)
    return [entries for _, entries in sorted(by_seed.items()) if len(entries) == entries[0]["folds"]]


def values(seeds: Sequence[Sequence[Entry]], name: str) -> list[float]:
    """Return each seed's value: the mean of its folds."""
    return [mean(entry[name] for entry in entries) for entries in seeds]


def mean_curve(seeds: Sequence[Sequence[Entry]]) -> list[tuple[float, float]]:
    """Return the mean seconds and the mean accuracy at each point, over seeds and folds; empty if one has no curve."""
    curves = [entry["curve"] for entries in seeds for entry in entries]
    if not all(curves):
        return []
    return [(mean(p[1] for p in points), mean(p[2] for p in points)) for points in zip(*curves, strict=True)]


def seconds_to(curve: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """Return the seconds until a curve is first at an accuracy; None if it never is."""
    return next((seconds for seconds, reached in curve if reached >= accuracy), None)


def is_of_one_machine(*methods: Sequence[Sequence[Entry]]) -> bool:
    """Tell whether all of these runs were made on one machine, so that their seconds can be compared."""
    return len({entry["machine"] for seeds in methods for entries in seeds for entry in entries}) == 1


def to_reference(runs: Sequence[Entry], group: Group, method: str) -> str:
    """Return a method's time to the accuracy with which PEFT's recipe ends, and its share of that recipe's time."""
    reference = next((found for name in REFERENCES if (found := of_method(runs, group, name))), None)
    seeds = of_method(runs, group, method)
    curve, its_curve = mean_curve(seeds), mean_curve(reference or [])
    if not curve or not its_curve or not is_of_one_machine(reference, seeds):
        return "–"
    whole, accuracy = its_curve[-1]
    seconds = seconds_to(curve, accuracy)
    return "not reached" if seconds is None else f"{seconds:.0f} s ({seconds / whole:.2f})"


def shown(numbers: Sequence[float]) -> str:
    spread = f" ± {stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.3f}{spread}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def table(runs: Sequence[Entry]) -> str:
    """Return means and standard deviations over seeds, by task, size and method, as Markdown."""
    lines = [COLUMNS]
    for group in groups(runs):
        for method in METHODS:
            if not (seeds := of_method(runs, group, method)):
                continue
            count, entry = str(len(seeds)), seeds[0][0]
            has_seconds = entry["trained"] and is_of_one_machine(seeds)
            seconds = f"{mean(values(seeds, 'seconds')):.0f}" if has_seconds else "–"
            cells = [shown(values(seeds, name)) for name in ("accuracy", "f1")]
            trained = f"{entry['trained']:,}"
            task, size = group
            size = f"all, {entry['training_rows']:,}" if size == "all" else size
            reached = to_reference(runs, group, method)
            lines.append([task, size, f"`{method}`", count, *cells, seconds, reached, trained])
    return markdown(lines)


def behind_full(runs: Sequence[Entry]) -> str:
    """Return by how many points of macro F1 each method differs from full fine-tuning, in the mean of tasks.

    Compared are the seeds that both have, where these are three or more. Return "" if there are none.
    """
    lines = [["method", "tasks and sizes", "points of macro F1 beside `full`"]]
    for method in METHODS:
        differences = []
        for group in groups(runs):
            own, whole = (
                {entries[0]["seed"]: entries for entries in of_method(runs, group, name)} for name in (method, "full")
            )
            seeds = sorted(own.keys() & whole.keys())
            if len(seeds) >= FEWEST_SEEDS:
                own, whole = ([found[seed] for seed in seeds] for found in (own, whole))
                differences.append(100 * (mean(values(own, "f1")) - mean(values(whole, "f1"))))
        if differences:
            lines.append([f"`{method}`", str(len(differences)), f"{mean(differences):+.1f}"])
    return markdown(lines) if len(lines) > 1 else ""


def tables(runs: Sequence[Entry]) -> str:
    """Return both tables as Markdown; the first alone if there is nothing to compare with full fine-tuning."""
    return f"{table(runs)}\n\n{behind_full(runs)}".strip()


def write_tables(runs: Sequence[Entry], page: Path) -> None:
    """Write the tables into a page, between its marks. Raise PromptTuningError if it has none."""
    text = page.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise PromptTuningError(f"{page} has no {START} and {END}, between which the tables stand; put them there.")
    page.write_text(f"{before}{start}\n\n{tables(runs)}\n\n{end}{after}", encoding="utf-8")


def look(number: int) -> dict[str, str]:
    """Return the colour and the marker of a method's points. There are ten colours, and then other markers."""
    return {"color": f"C{number % 10}", "fmt": "os^D"[number // 10]}


def plot(runs: Sequence[Entry], file: Path) -> None:
    """Draw the mean macro F1 of each method, with its spread between seeds, a row for each task and size."""
    rows = groups(runs)
    methods = [name for name in METHODS if any(of_method(runs, group, name) for group in rows)]
    figure = Figure(figsize=(8, 1.2 + 0.9 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, method in enumerate(methods):
        points = [
            (y, values(seeds, "f1")) for y, group in enumerate(rows) if (seeds := of_method(runs, group, method))
        ]
        heights = [y + 0.6 * (i / max(len(methods) - 1, 1) - 0.5) for y, _ in points]
        spreads = [stdev(found) if len(found) > 1 else 0 for _, found in points]
        means = [mean(found) for _, found in points]
        axes.errorbar(means, heights, xerr=spreads, markersize=5, label=method, **look(i))
    axes.set(yticks=range(len(rows)), yticklabels=[f"{task}, {size}" for task, size in rows], xlabel="macro F1")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=130)

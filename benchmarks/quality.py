"""What a prompt learns beside other methods: tasks with few and many rows, several seeds, the same rows for all.

    python benchmarks/quality.py --data FOLDER [--tasks sst2 …] [--sizes all …] [--methods ours full …] [--seeds 0 …]
    python benchmarks/quality.py --quick       # ten minutes of one core: the demo's messages, one seed. No result
    python benchmarks/quality.py --table       # the tables and the plot of docs/quality.md, of the runs so far

FOLDER holds the files that benchmarks/README.md names. quality_tasks.yaml describes the tasks, and `--task FILE.yaml`
adds others; quality_methods.py has the methods. Each run is added to benchmarks/results/quality.json, and a run that
is there is not run again, so any part can be run at any time, also in several processes. Where a method has several
learning rates, one is chosen on rows that are not reported, once for a task and size (for each fold, if a task has
folds and no `choose_on`).
"""

import argparse
import platform
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from quality_methods import METHODS, measure
from quality_results import Results, plot, tables, write_tables
from quality_tasks import Split, Task, choosing_split, read_tasks, reported_splits

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "quality.json"
PAGE, PLOT = (HERE.parent / "docs" / name for name in ("quality.md", "quality.png"))
QUICK = HERE.parent / "outputs" / "quality_quick.json"
SLOW = ("three_draws", "auto_examples", "five_orders", "five_orders_averaged")
"""Methods of several prompts from starts that others have, which a quick run leaves out."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
NO_RESULT = "One seed of one small task: this shows that the benchmark runs, and is no result."


class Benchmark:
    """Make the runs that are missing.

    Args:
        backbone, tokenizer, name: the backbone that all methods start from, and its name in the results.
        tasks: all tasks, by name; some may be chosen on others.
        results: where the runs are kept.
        points, watched: a curve has so many points, each an evaluation of so many reported rows.
        reported: the largest number of rows of a test file that are reported, the same for all runs.
        machine: the machine's name in the results; seconds of different machines are not compared.
    """

    def __init__(
        self,
        backbone: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        name: str,
        tasks: dict[str, Task],
        results: Results,
        points: int = 10,
        watched: int = 100,
        reported: int = 600,
        machine: str = "",
    ):
        if backbone.config.is_encoder_decoder:
            raise PromptTuningError(f"{name} is an encoder-decoder; this benchmark is of decoders.")
        self.backbone, self.tokenizer, self.name = backbone, tokenizer, name
        self.tasks, self.results = tasks, results
        self.points, self.watched, self.reported = points, watched, reported
        self.machine = machine

    def run(self, task: Task, size: int | str, method_name: str, seed: int) -> None:
        """Make the runs of a task's size, a method and a seed that are missing, and print each."""
        method, epochs = METHODS[method_name], task.sizes[size]
        for split in reported_splits(task, size, seed, self.reported):
            if method.most_rows is not None and len(split.train) > method.most_rows:
                print(f"{task.name}, {size}: {method_name} is for at most {method.most_rows} rows")
                return
            key = {"kind": "run", **self.key(split, size, method_name, method.epochs or epochs)}
            key |= {"seed": seed, "fold": split.fold, "folds": task.folds or 1, "reported_rows": len(split.held_out)}
            if self.results.find(key) is not None:
                continue
            rate = self.rate(split, size, method_name, epochs)
            watched = {"points": self.points, "watched": self.watched}
            found = measure(method_name, self.backbone, self.tokenizer, split, rate, epochs, **watched)
            for end, values in found.items():
                if self.results.find(key | {"method": end}) is None:
                    self.add(key | {"method": end, "rate": rate}, values)

    def rate(self, split: Split, size: int | str, method_name: str, epochs: int) -> float | None:
        """Return a method's learning rate: the only one, or the one with the best macro F1 on rows apart.

        The loss decides between equals. A best one at an end of the grid is told, because a further one may be better.
        """
        method, found = METHODS[method_name], []
        if len(method.rates) < 2:
            return method.rates[0] if method.rates else None
        choosing = choosing_split(split, self.tasks)
        for rate in method.rates:
            key = {"kind": "choice", **self.key(choosing, size, method_name, epochs), "task": split.task.name}
            key |= {"chosen_on": choosing.task.name, "rows_apart": len(choosing.held_out), "rate": rate}
            key |= {"seed": choosing.seed, "fold": choosing.fold}
            if self.results.find(key) is None:
                found_at = measure(method_name, self.backbone, self.tokenizer, choosing, rate, epochs)
                self.add(key, found_at[method_name])
            found.append(self.results.find(key))
        best = max(found, key=lambda entry: (entry["f1"], -entry["loss"]))["rate"]
        if best in (min(method.rates), max(method.rates)):
            print(f"{split.task.name}, {size}: the best rate of {method_name}, {best}, is at an end of its grid")
        return best

    def key(self, split: Split, size: int | str, method: str, epochs: int) -> dict[str, Any]:
        """Return what tells a run from others, but for its seed and its held-out rows."""
        key = {"backbone": self.name, "task": split.task.name, "size": str(size), "method": method}
        return key | {"training_rows": len(split.train), "epochs": epochs}

    def add(self, key: dict[str, Any], found: dict[str, Any]) -> None:
        versions = " ".join(f"{library.__name__} {library.__version__}" for library in (torch, transformers, peft))
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
        entry = key | found | {"device": device, "machine": self.machine, "versions": versions}
        self.results.add(entry)
        print({name: value for name, value in entry.items() if name not in ("curve", "versions")}, flush=True)


def this_machine() -> str:
    """Return what tells this machine from others, since its last start: virtual ones often share a name."""
    return BOOT.read_text().strip() if BOOT.exists() else platform.node()


def sizes_of(task: Task, asked: list[str] | None) -> Iterator[int | str]:
    """Yield the task's sizes that are asked for; by default all."""
    yield from (size for size in task.sizes if asked is None or str(size) in asked)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the tasks' files")
    parser.add_argument("--task", type=Path, action="append", default=[], help="file that describes further tasks")
    parser.add_argument("--tasks", nargs="+", help="names of tasks; default: all")
    parser.add_argument("--sizes", nargs="+", help="numbers of rows, or all; default: all that a task has")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--reported_rows", type=int, default=600, help="at most so many rows of a test file")
    parser.add_argument("--points", type=int, default=10, help="evaluations on the way; 0 for no curve, in less time")
    parser.add_argument("--quick", action="store_true", help="the demo with 24 rows, one seed; in a file of its own")
    parser.add_argument("--table", action="store_true", help="only make the tables and the plot")
    parser.add_argument("--machine", default=this_machine(), help="only seconds of one name are compared")
    parser.add_argument("--name", default="SmolLM2-135M-Instruct", help="the backbone's name in the results")
    parser.add_argument("--model_name_or_path", default=".cache/smollm2")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf", help='"" for none')
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    if args.quick:
        args.tasks, args.sizes, args.seeds = ["demo"], ["24"], [0]
        args.methods = [name for name in args.methods if METHODS[name].most_rows is None and name not in SLOW]
    return args


def make_runs(args: argparse.Namespace, results: Results) -> None:
    """Make the runs that are asked for and missing. Raise PromptTuningError if a task is not known."""
    tasks: dict[str, Task] = {}
    for file in [HERE / "quality_tasks.yaml", *args.task]:
        tasks |= read_tasks(file, args.data)
    if unknown := [name for name in args.tasks or () if name not in tasks]:
        raise PromptTuningError(f"--tasks has {unknown[0]!r}; the tasks are {', '.join(tasks)}.")
    datasets.disable_progress_bars()
    model = ModelArguments(args.model_name_or_path, gguf_file=args.gguf_file or None, dtype=args.dtype)
    backbone, tokenizer = load_backbone(model)
    watched = {"points": 4, "watched": 40} if args.quick else {"points": args.points}
    options = watched | {"reported": args.reported_rows, "machine": args.machine}
    benchmark = Benchmark(backbone, tokenizer, args.name, tasks, results, **options)
    for name in args.tasks or tasks:
        for size, seed, method in product(sizes_of(tasks[name], args.sizes), args.seeds, args.methods):
            benchmark.run(tasks[name], size, method, seed)
            if not args.quick:
                update_page(results, args.name)  # now, because a run of hours may be ended in between


def runs_of(results: Results, backbone: str) -> list[dict[str, Any]]:
    """Return the reported runs of a backbone. Raise PromptTuningError if there are none."""
    runs = [entry for entry in results.entries("run") if entry["backbone"] == backbone]
    if not runs:
        raise PromptTuningError(f"there are no runs of {backbone} in {results.file}; leave --table out to make some.")
    return runs


def update_page(results: Results, backbone: str) -> None:
    """Write the tables and the plot of the documentation."""
    runs = runs_of(results, backbone)
    write_tables(runs, PAGE)
    plot(runs, PLOT)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    results = Results(QUICK if args.quick else RESULTS)
    if args.quick and not args.table:
        QUICK.unlink(missing_ok=True)
    if not args.table:
        make_runs(args, results)
    print(tables(runs_of(results, args.name)))
    if args.quick:
        print(f"\n{NO_RESULT}")
    else:
        update_page(results, args.name)


if __name__ == "__main__":
    main()

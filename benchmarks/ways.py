"""Ways to learn better from few rows, each beside the defaults: what changes by it, in the mean of several seeds.

    python benchmarks/ways.py --data FOLDER [--tasks sst2:50 trec:60] [--ways ours …] [--seeds 0 1 2]

FOLDER holds the files that benchmarks/README.md names; ways_tried.py has the ways. No reported row of quality.py is
used: the held-out rows are others of the training file. Each run is added to benchmarks/results/ways.json, and is not
made again. Prints a table of all runs.
"""

import argparse
import random
import tempfile
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import datasets
import torch
from quality_methods import ours, prepare
from quality_ranking import Steps
from quality_results import Entry, Results, markdown
from quality_runs import Run
from quality_tasks import MOST_APART, Split, Task, read_tasks
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from ways_tried import WAYS, Way, is_text

from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ways.json"
DEFAULTS = "ours"
NO_CONTENT = "N/A"
"""What stands in place of a row's texts where the labels' prior is measured (Zhao et al. 2021)."""
AVERAGED = {"mean of the last quarter": 0.25, "mean of the last half": 0.5}
CALIBRATED = "calibrated"


def apart(task: Task, size: int, seed: int) -> Split:
    """Return rows to learn from, as a reported run of the seed has them, and others of the same file to compare by."""
    draw = random.Random(seed)
    train, others = task.sample(task.rows(task.train_file), size, draw)
    return Split(task, train, task.sample(others, MOST_APART, draw)[0], seed)


def metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, macro F1, and the mean negative log of the right label's share of the labels."""
    predicted = scores.argmax(1)
    found = {
        "accuracy": accuracy_score(labels, predicted),
        "f1": f1_score(labels, predicted, average="macro"),
        "loss": nn.functional.cross_entropy(scores, labels),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def measure(way: Way, backbone: Any, tokenizer: Any, split: Split, epochs: int) -> dict[str, Any]:
    """Train by a way. Return the metrics of the held-out rows, and under `also` those that need no other training.

    These are of the prompt's mean over the last steps, and of the labels' scores less those of a row without content.
    Where several prompts are trained, the metrics are of their mean, and `also` has those of each and of all together.
    """
    split = way.rows(split)
    trained = [train(way, backbone, tokenizer, split, epochs, order) for order in range(way.orders)]
    run, held_out, steps = trained[0]
    labels = torch.tensor(held_out["label"])
    if len(trained) > 1:
        return together(run, held_out, [steps.mean_of_last(0.5) for _, _, steps in trained])
    vectors = run.prompts()[0]
    row = {name: NO_CONTENT if is_text(split.task, name, value) else value for name, value in split.train[0].items()}
    empty = datasets.Dataset.from_list([row], features=split.train.features)
    prior = run.ranker.scores(run.ranker.encoder.encode_dataset(empty, "empty"), vectors)
    scores = run.ranker.scores(held_out, vectors)
    also = {CALIBRATED: metrics(scores - prior, labels)}
    for name, share in AVERAGED.items():
        also[name] = metrics(run.ranker.scores(held_out, steps.mean_of_last(share)), labels)
    return metrics(scores, labels) | {"also": also}


def train(
    way: Way, backbone: Any, tokenizer: Any, split: Split, epochs: int, order: int
) -> tuple[Run, datasets.Dataset, Steps]:
    """Train one prompt. Return its run, the encoded held-out rows, and the prompts of its steps."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The callback that looks for divergence finds no gradient at vectors that a network computes.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        run, held_out = prepare("auto", backbone, tokenizer, split, None, epochs, folder)
        steps = Steps()
        run.callbacks = [steps]
        run.text = run.text if way.from_text else None
        drawn = {"data_seed": order} if way.orders > 1 else {}
        ours(run, way.config, {**way.arguments, **drawn}, way.change)
    return run, held_out, steps


def together(run: Run, held_out: datasets.Dataset, prompts: Sequence[Tensor]) -> dict[str, Any]:
    """Return the metrics of the mean prompt; `also` has the mean of those of each, and those of their mean shares."""
    labels = torch.tensor(held_out["label"])
    scores = torch.stack([run.ranker.scores(held_out, vectors) for vectors in prompts])
    alone = [metrics(one, labels) for one in scores]
    also = {
        "each alone": {name: round(mean(one[name] for one in alone), 4) for name in alone[0]},
        "all together": metrics(scores.softmax(2).mean(0).log(), labels),
    }
    return metrics(run.ranker.scores(held_out, torch.stack(list(prompts)).mean(0)), labels) | {"also": also}


def table(entries: Sequence[Entry], measured: str = "f1") -> str:
    """Return a metric of the defaults, and by how many hundredths each way differs: the mean, and of each seed.

    What needed no other training stands below its way.
    """
    tasks = list(dict.fromkeys((entry["task"], entry["size"]) for entry in entries))
    lines = [["way", *(f"{task}, {size} rows" for task, size in tasks)]]
    values = {(entry["task"], entry["size"], entry["way"], entry["seed"]): entry[measured] for entry in entries}
    also: dict[str, list[str]] = {}
    for entry in entries:
        for name, found in entry["also"].items():
            way = name if entry["way"] == DEFAULTS else f"{entry['way']}: {name}"
            also[entry["way"]] = list(dict.fromkeys([*also.get(entry["way"], []), way]))
            values[entry["task"], entry["size"], way, entry["seed"]] = found[measured]
    for way in [name for each in WAYS for name in (each, *also.get(each, []))]:
        cells = [cell(values, task, size, way) for task, size in tasks]
        if any(cells):
            lines.append([way, *cells])
    return markdown(lines)


def cell(values: dict[tuple, float], task: str, size: int, way: str) -> str:
    """Return a way's cell of the table; empty if no seed was run with it and with the defaults."""
    own = {key[3]: value for key, value in values.items() if key[:3] == (task, size, way)}
    if way == DEFAULTS and len(own) > 1:
        return f"{mean(own.values()):.3f} ± {stdev(own.values()):.3f}"
    defaults = {key[3]: value for key, value in values.items() if key[:3] == (task, size, DEFAULTS)}
    changes = [100 * (value - defaults[seed]) for seed, value in sorted(own.items()) if seed in defaults]
    return f"{mean(changes):+.1f} ({', '.join(f'{change:+.1f}' for change in changes)})" if changes else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the tasks' files")
    parser.add_argument("--tasks", nargs="+", default=["sst2:50", "trec:60"], help="a task and its number of rows")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    datasets.disable_progress_bars()
    backbone, tokenizer = load_backbone(ModelArguments(".cache/smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"))
    tasks, results = read_tasks(HERE / "quality_tasks.yaml", args.data), Results(RESULTS)
    for way, described, seed in product(args.ways, args.tasks, args.seeds):
        name, size = described.split(":")
        task, size = tasks[name], int(size)
        key = {"kind": "way", "task": name, "size": size, "way": way, "seed": seed}
        if results.find(key) is None:
            found = measure(WAYS[way], backbone, tokenizer, apart(task, size, seed), task.sizes[size])
            results.add(key | found)
            print(key | found, flush=True)
    for measured in ("f1", "loss"):
        print(f"\n{measured}\n\n{table(results.entries('way'), measured)}")


if __name__ == "__main__":
    main()

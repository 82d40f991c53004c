"""Where a new prompt should stand: three tasks with few rows, a prompt at each place, several seeds.

    python benchmarks/places.py --data FOLDER --name NAME --model_name_or_path MODEL [--gguf_file FILE] [--told plain]
    python benchmarks/places.py --table

FOLDER holds the files that benchmarks/README.md names. A seed draws the training rows, the first vectors and the order
of the rows; they are the same for all places. The evaluation rows are the same for all seeds. Each run is added to
benchmarks/results/places.json, and a run that is there is not run again. `--table` prints them as Markdown.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import transformers
from datasets import Dataset

from hf_prompt_tuning import (
    ChatFormat,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone
from hf_prompt_tuning.data.files import read_file

RESULTS = Path(__file__).parent / "results" / "places.json"
PLACES = {"plain": ("start", "after_bos"), "chat": ("start", "after_bos", "system")}
METRICS = {"accuracy": "accuracy", "f1": "macro F1", "loss": "loss"}
TRAINING_ROWS = {"tweets": 50, "sst2": 48, "trec": 60}
SOURCES = {
    "tweets": ("Tweet text : {Tweet text} Label :", "Label", {"1": "complaint", "2": "no complaint"}),
    "sst2": ("Review : {sentence} Sentiment :", "label", {"0": "negative", "1": "positive"}),
    "trec": ("Question : {text} Kind of answer :", "label", None),
}


def template_of(task: str, told: str) -> PromptTemplate:
    source, column, words = SOURCES[task]
    return PromptTemplate(
        source, label_column=column, label_words=words, chat=ChatFormat() if told == "chat" else None
    )


def rows_of(task: str, folder: Path) -> Dataset:
    if task == "tweets":
        return read_file(folder / "raft_twitter_complaints_train.jsonl")
    if task == "sst2":
        return read_file(folder / "sst2_train.tsv", column_names=["sentence", "label"])
    return read_file(folder / "trec_train.jsonl")


def splits(task: str, folder: Path, seed: int, evaluation_rows: int) -> Iterator[tuple[Dataset, Dataset]]:
    """Yield pairs of training and evaluation rows, with equally many rows of each label.

    Only 50 tweets have labels: each half of them is evaluated with the prompt of the other half.
    """
    rows = rows_of(task, folder)
    by_label: dict[str, list[int]] = {}
    for i, label in enumerate(rows[SOURCES[task][1]]):
        by_label.setdefault(label, []).append(i)
    groups = [by_label[label] for label in sorted(by_label)]
    draw = random.Random(seed)
    if task == "tweets":
        for group in groups:
            draw.shuffle(group)
        halves = [[i for group in groups for i in group[half::2]] for half in (0, 1)]
        yield from ((rows.select(halves[k]), rows.select(halves[1 - k])) for k in (0, 1))
        return
    fixed, count, each = random.Random("evaluation"), len(groups), evaluation_rows // len(groups)
    for group in groups:
        fixed.shuffle(group)
    evaluation = [i for group in groups for i in group[:each]]
    training = [i for group in groups for i in draw.sample(group[each:], TRAINING_ROWS[task] // count)]
    yield rows.select(training), rows.select(evaluation)


def tune(backbone, tokenizer, template: PromptTemplate, place: str, seed: int, epochs: float, data: tuple) -> dict:
    """One training; the metrics of the evaluation rows after it."""
    transformers.set_seed(seed)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(prompt_position=place), tokenizer, template)
    with tempfile.TemporaryDirectory() as folder:
        arguments = PromptTuningArguments(
            folder, num_train_epochs=epochs, seed=seed, save_strategy="no", disable_tqdm=True, report_to="none"
        )
        trainer = PromptTuningTrainer(
            model,
            arguments,
            train_dataset=data[0],
            eval_dataset=data[1],
            processing_class=tokenizer,
            template=template,
        )
        trainer.train()
        metrics = trainer.evaluate()
    return {name: metrics[f"eval_{name}"] for name in METRICS} | {"steps": trainer.state.global_step}


def run(args: argparse.Namespace) -> None:
    """Make the runs that are missing."""
    model = ModelArguments(args.model_name_or_path, gguf_file=args.gguf_file, dtype=args.dtype)
    backbone, tokenizer = load_backbone(model)
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for seed, task, told in product(args.seeds, args.tasks, args.told):
        for place in PLACES[told]:
            key = {"backbone": args.name, "told": told, "task": task, "place": place, "seed": seed}
            key |= {"epochs": args.epochs, "evaluation_rows": 50 if task == "tweets" else args.evaluation_rows}
            key["dtype"] = args.dtype
            if any(key.items() <= done.items() for done in runs):
                continue
            start = time.process_time()
            folds = [
                tune(backbone, tokenizer, template_of(task, told), place, seed, args.epochs, data)
                for data in splits(task, args.data, seed, args.evaluation_rows)
            ]
            metrics = {name: mean(fold[name] for fold in folds) for name in METRICS}
            steps = [fold["steps"] for fold in folds]
            runs.append(key | metrics | {"steps": steps, "cpu_seconds": round(time.process_time() - start)})
            RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n")
            print(runs[-1], flush=True)


def by_place(runs: list[dict], **key: str) -> dict[str, dict[tuple, dict]]:
    """Return the runs of a backbone and a way to tell, by place and then by task and seed."""
    places: dict[str, dict[tuple, dict]] = {}
    for entry in runs:
        if key.items() <= entry.items():
            places.setdefault(entry["place"], {})[entry["task"], entry["seed"]] = entry
    return places


def shown(values: list[float], sign: str = "") -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3f}{spread}"


def table(runs: list[dict]) -> str:
    """Return means and standard deviations over the seeds, and the differences from `start` in pairs of runs."""
    lines = [f"| backbone | task | place | {' | '.join(METRICS.values())} | loss less that of `start` |"]
    lines.append("|" + "---|" * (len(METRICS) + 4))
    for backbone, told in dict.fromkeys((entry["backbone"], entry["told"]) for entry in runs):
        places = by_place(runs, backbone=backbone, told=told)
        tasks = list(dict.fromkeys(task for task, _ in places["start"]))
        for task, place in product([*tasks, None], places):
            pairs = [pair for pair in places[place] if task in (None, pair[0]) and pair in places["start"]]
            found = [places[place][pair] for pair in pairs]
            cells = [
                shown([entry[name] for entry in found]) if task else f"{mean(entry[name] for entry in found):.3f}"
                for name in METRICS
            ]
            less = [places[place][pair]["loss"] - places["start"][pair]["loss"] for pair in pairs]
            lower = f"{shown(less, '+')}, lower in {sum(value < 0 for value in less)} of {len(less)}"
            names = [f"{backbone}, {told}", task or "all", f"`{place}`"]
            lines.append("| " + " | ".join([*names, *cells, "" if place == "start" else lower]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--name", default="SmolLM2-135M-Instruct")
    parser.add_argument("--model_name_or_path", default=".cache/smollm2")
    parser.add_argument("--gguf_file")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--told", nargs="+", choices=PLACES, default=["plain"])
    parser.add_argument("--tasks", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--evaluation_rows", type=int, default=200)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(RESULTS.read_text())))
    else:
        run(args)


if __name__ == "__main__":
    main()

"""Where a new prompt should stand: three tasks with few rows, a prompt at each place, several seeds.

    python benchmarks/places.py --data FOLDER --name NAME --model_name_or_path MODEL [--gguf_file FILE] [--told plain]
    python benchmarks/places.py --table

FOLDER holds the files that benchmarks/README.md names. A seed draws the training rows and their order, which are the
same for all places. The first vectors are those of a text, and all else is the package's default. Each run is added to
benchmarks/results/places.json, and a run that is there is not run again. `--table` prints them as Markdown.
"""

import argparse
import json
import random
import tempfile
import time
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
TRAINING_ROWS = {"sst2": 32, "trec": 36}
SOURCES = {
    "tweets": ("Tweet text : {Tweet text} Label :", "Label", {"1": "complaint", "2": "no complaint"}),
    "sst2": ("Review : {sentence} Sentiment :", "label", {"0": "negative", "1": "positive"}),
    "trec": ("Question : {text} Kind of answer :", "label", None),
}
TEXTS = {
    "tweets": "Classify if the tweet is a complaint or not:",
    "sst2": "Classify the sentiment of the movie review as positive or negative:",
    "trec": "Classify what kind of answer the question asks for:",
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


def split(task: str, folder: Path, seed: int, evaluation_rows: int) -> tuple[Dataset, Dataset]:
    """Return training and evaluation rows. The evaluation rows are the same for all seeds, but for tweets.

    Only 50 tweets have labels: the seed draws a half of each label to train on, and the others are for evaluation.
    Rows of the other tasks have equally many of each label.
    """
    rows = rows_of(task, folder)
    by_label: dict[str, list[int]] = {}
    for i, label in enumerate(rows[SOURCES[task][1]]):
        by_label.setdefault(label, []).append(i)
    groups = [by_label[label] for label in sorted(by_label)]
    draw, fixed = random.Random(seed), random.Random("evaluation")
    training, evaluation = [], []
    for group in groups:
        (draw if task == "tweets" else fixed).shuffle(group)
        count = len(group) // 2 if task == "tweets" else evaluation_rows // len(groups)
        evaluation += group[:count]
        rest = group[count:]
        training += rest if task == "tweets" else draw.sample(rest, TRAINING_ROWS[task] // len(groups))
    return rows.select(training), rows.select(evaluation)


def tune(backbone, tokenizer, task: str, told: str, place: str, seed: int, epochs: float, data: tuple) -> dict:
    """One training; the metrics of the evaluation rows after it."""
    template = template_of(task, told)
    transformers.set_seed(seed)
    config = PromptTuningConfig(prompt_position=place, prompt_tuning_init_text=TEXTS[task])
    model = get_prompt_tuning_model(backbone, config, tokenizer, template)
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
            data = split(task, args.data, seed, args.evaluation_rows)
            key |= {"training_rows": len(data[0]), "evaluation_rows": len(data[1])}
            key |= {"epochs": args.epochs, "dtype": args.dtype}
            if any(key.items() <= done.items() for done in runs):
                continue
            start = time.process_time()
            metrics = tune(backbone, tokenizer, task, told, place, seed, args.epochs, data)
            runs.append(key | metrics | {"cpu_seconds": round(time.process_time() - start)})
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


def differences(here: dict[tuple, dict], start: dict[tuple, dict], pairs: list[tuple]) -> list[str]:
    """Return by how much macro F1 and the loss differ from those of a prompt at the start, run by run."""
    f1, loss = ([here[pair][name] - start[pair][name] for pair in pairs] for name in ("f1", "loss"))
    better = sum(value > 0 for value in f1), sum(value < 0 for value in loss)
    return [
        f"{shown(values, '+')}, better in {n} of {len(pairs)}" for values, n in zip((f1, loss), better, strict=True)
    ]


def table(runs: list[dict]) -> str:
    """Return means and standard deviations over the seeds, and over tasks and seeds for "all".

    A seed of a task counts when there are runs at every place.
    """
    names = ["backbone", "task", "place", *METRICS.values(), "macro F1, from `start`", "loss, from `start`"]
    lines = [names, ["---"] * len(names)]
    for backbone, told in dict.fromkeys((entry["backbone"], entry["told"]) for entry in runs):
        places = by_place(runs, backbone=backbone, told=told)
        start = places["start"]
        whole = [pair for pair in start if all(pair in here for here in places.values())]
        for task, place in product([*dict.fromkeys(task for task, _ in whole), None], places if whole else ()):
            here, pairs = places[place], [pair for pair in whole if task in (None, pair[0])]
            values = ([here[pair][name] for pair in pairs] for name in METRICS)
            cells = [shown(column) if task else f"{mean(column):.3f}" for column in values]
            compared = ["", ""] if place == "start" else differences(here, start, pairs)
            lines.append([f"{backbone}, {told}", task or "all", f"`{place}`", *cells, *compared])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    parser.add_argument("--evaluation_rows", type=int, default=96)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(RESULTS.read_text())))
    else:
        run(args)


if __name__ == "__main__":
    main()

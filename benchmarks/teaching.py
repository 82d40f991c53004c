"""What a taught prompt reaches: a system prompt, a block of examples, and an ensemble in a few vectors.

    python benchmarks/teaching.py [--only text examples ensemble] [--data FOLDER]

- text: examples/teaching/system.txt in 8 to 64 vectors. Once through the questions: the same text in 16, handbook.txt
  (1,330 tokens) in 16 and 64, and exact_words.txt, whose words must be quoted, in 16. The backbone is in bfloat16. And
  in 16 vectors for longer: two answers to each question, in float32.
- examples: 16 labelled tweets in 20 vectors, which learn from unlabelled messages, by three seeds. FOLDER holds
  raft_twitter_complaints_train.jsonl.
- ensemble: five prompts of SST-2 in one. FOLDER holds sst2_train.tsv and sst2_dev.tsv.

Prints a line for each run, and writes benchmarks/results/teaching.json; a run that is there is not run again. Prompts
and the teacher's answers are kept in outputs/teaching.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, concatenate_datasets

from hf_prompt_tuning import (
    ChatTemplate,
    EnsembleTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningTrainer,
    Teacher,
)
from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone
from hf_prompt_tuning.data.files import read_file

ROOT = Path(__file__).parent.parent
TEACHING, RESULTS, OUTPUTS = ROOT / "examples/teaching", ROOT / "benchmarks/results/teaching.json", "outputs/teaching"
TWEETS = PromptTemplate(
    source="Tweet text : {Tweet text} Label :",
    label_column="Label",
    label_words={"1": "complaint", "2": "no complaint"},
)
SENTENCES = PromptTemplate(
    source="Review : {sentence} Sentiment :",
    label_column="label",
    label_words={"0": "negative", "1": "positive"},
)
COMPARED = ("kl", "agreement")


def arguments(folder: str, **values: Any) -> PromptTuningArguments:
    common = {"save_strategy": "no", "logging_strategy": "epoch", "disable_tqdm": True, "predict_with_generate": False}
    return PromptTuningArguments(output_dir=f"{OUTPUTS}/{folder}", **common | {"learning_rate": 1e-2} | values)


def loaded(dtype: str = "float32") -> tuple[Any, Any]:
    return load_backbone(ModelArguments(".cache/smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=dtype))


def compared(metrics: dict[str, float]) -> dict[str, float]:
    """The divergence and the agreement of an evaluation, and those of its baselines."""
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.endswith(COMPARED)}


def text_in(
    P: int, name: str, epochs: int, writes: int = 1, learning_rate: float = 3e-2, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """A text in P vectors: what is reached after each epoch, without a prompt, and with the text's first tokens."""
    backbone, tokenizer = loaded(dtype)
    text = (TEACHING / name).read_text(encoding="utf-8").strip()
    trainer = PromptTuningTrainer(
        backbone,
        arguments(
            f"{Path(name).stem}_{writes}_{dtype}",  # the answers are the same for each P, so they are written once
            num_train_epochs=epochs,
            per_device_train_batch_size=10,
            per_device_eval_batch_size=40,
            eval_strategy="epoch",
            learning_rate=learning_rate,
            teacher_writes=writes,
            teacher_max_new_tokens=32,
        ),
        train_dataset=read_file(TEACHING / "questions_train.jsonl"),
        eval_dataset=read_file(TEACHING / "questions_test.jsonl"),
        processing_class=tokenizer,
        template=ChatTemplate(),
        prompt_config=PromptTuningConfig(
            num_virtual_tokens=P, prompt_tuning_init="TEACHER", prompt_position="system", tokenizer=tokenizer
        ),
        teacher=Teacher(text=text),
    )
    trainer.train()
    evaluations = [compared(log) for log in trainer.state.log_history if "eval_kl" in log]
    row = {"tokens": len(tokenizer(text)["input_ids"]), "steps": trainer.state.global_step}
    return row | {"epochs": [{key: each[key] for key in COMPARED} for each in evaluations]} | evaluations[-1]


def unlabelled(texts: list[str]) -> Dataset:
    return Dataset.from_list([{"Tweet text": text, "Label": -1} for text in texts])


def examples_in(P: int, seed: int, folder: Path) -> dict[str, Any]:
    """16 labelled tweets in P vectors, taught on messages without labels; other tweets and messages are ranked."""
    backbone, tokenizer = loaded()
    tweets = read_file(folder / "raft_twitter_complaints_train.jsonl").shuffle(seed=seed)
    by_label = [[row for row in tweets if row["Label"] == label] for label in (1, 2)]
    shown = [row for rows in by_label for row in rows[:8]]
    random.Random(seed).shuffle(shown)
    words = TWEETS.label_words
    text = "\n\n".join(f"Tweet text : {row['Tweet text']} Label : {words[str(row['Label'])]}" for row in shown)
    messages = [read_file(ROOT / f"examples/complaints_{name}.jsonl") for name in ("train", "test")]
    train, test = (unlabelled(rows["message"]) for rows in messages)
    others = unlabelled([row["Tweet text"] for rows in by_label for row in rows[8:]])
    trainer = PromptTuningTrainer(
        backbone,
        arguments(f"examples_{seed}", num_train_epochs=5, seed=seed, distill_over="labels"),
        train_dataset=train,
        eval_dataset=concatenate_datasets([others, test]),
        processing_class=tokenizer,
        template=TWEETS,
        prompt_config=PromptTuningConfig(num_virtual_tokens=P, prompt_tuning_init="TEACHER", tokenizer=tokenizer),
        teacher=Teacher(text=text),
    )
    before = compared(trainer.evaluate())["agreement"]
    trainer.train()
    row = {"tokens": len(tokenizer(text)["input_ids"]), "before": before}
    return row | compared(trainer.evaluate()) | {"tweets": compared(trainer.evaluate(others))}


def sentences(folder: Path, rows: int) -> dict[str, Any]:
    """Return the data of SST-2, some rows to train on and the dev set."""
    train, dev = (read_file(folder / f"sst2_{name}.tsv", ["sentence", "label"]) for name in ("train", "dev"))
    return {"train_dataset": train.shuffle(seed=42).select(range(rows)), "eval_dataset": dev}


def ensemble_of(members: int, data: dict[str, Any]) -> dict[str, float]:
    """Train prompts on the same rows, and save them. Return the dev set's accuracy of each, and of their vote."""
    folder, (backbone, tokenizer) = Path(OUTPUTS) / "ensemble", loaded()
    if not (folder / "ensemble.json").is_file():
        tasks = [PromptTask(f"prompt_{i}", of_labels(tokenizer), seed=i) for i in range(1, members + 1)]
        args = arguments("ensemble", learning_rate=3e-2, num_train_epochs=3, per_device_eval_batch_size=32)
        trainer = EnsembleTrainer(backbone, args, tasks, processing_class=tokenizer, template=SENTENCES, **data)
        trainer.train()
        trainer.evaluate()
        trainer.save_model()
    saved = {f"prompt_{i}": folder / f"prompt_{i}/prompt_tuning.json" for i in range(1, members + 1)}
    saved["vote"] = folder / "ensemble.json"
    return {name: json.loads(file.read_text())["metrics"]["eval_accuracy"] for name, file in saved.items()}


def of_labels(tokenizer: Any) -> PromptTuningConfig:
    return PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init="CLASS_LABELS", tokenizer=tokenizer)


def ensemble_in_one(folder: Path, rows: int, taught_epochs: int, members: int = 5) -> dict[str, Any]:
    """Five prompts, their vote, and one prompt that their mean distribution teaches: accuracy on SST-2's dev set.

    All learn from the same rows of the training set, the taught one without their labels. It is compared with its
    teacher on the first 200 rows of the dev set, which takes six passes.
    """
    data = sentences(folder, rows)
    accuracies = ensemble_of(members, data)
    backbone, tokenizer = loaded()
    common = {"processing_class": tokenizer, "template": SENTENCES}
    args = arguments(
        "ensemble_in_one",
        learning_rate=3e-2,
        num_train_epochs=taught_epochs,
        per_device_eval_batch_size=32,
        distill_over="labels",
    )
    taught = PromptTuningTrainer(
        backbone,
        args,
        train_dataset=data["train_dataset"],
        eval_dataset=data["eval_dataset"].select(range(200)),
        prompt_config=of_labels(tokenizer),
        teacher=Teacher(prompt=f"{OUTPUTS}/ensemble"),
        **common,
    )
    taught.train()
    alone = PromptTuningTrainer(taught.model, args, eval_dataset=data["eval_dataset"], **common)
    accuracies["taught"] = alone.evaluate()["eval_accuracy"]
    return accuracies | compared(taught.evaluate())


def runs_of(epochs: int, rows: int, folder: Path | None) -> dict[str, list[tuple[Any, dict[str, Any]]]]:
    """Return the runs of each part: what makes one, and the arguments that tell it from others."""
    texts = [(16, "system.txt", 1), *((P, "system.txt", epochs) for P in (16, 32, 64, 8))]
    texts += [(64, "handbook.txt", 1), (16, "handbook.txt", 1), (16, "exact_words.txt", 1)]
    longest = {"P": 16, "name": "system.txt", "epochs": 6, "writes": 2, "learning_rate": 2e-2, "dtype": "float32"}
    return {
        "text": [
            *((text_in, {"P": P, "name": name, "epochs": count}) for P, name, count in texts),
            (text_in, longest),
        ],
        "examples": [(examples_in, {"P": 20, "seed": seed, "folder": folder}) for seed in (1, 2, 3)],
        "ensemble": [(ensemble_in_one, {"folder": folder, "rows": rows, "taught_epochs": count}) for count in (1, 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["text", "examples", "ensemble"], help="parts to run")
    parser.add_argument("--data", type=Path, help="the folder of the tweets and of SST-2")
    parser.add_argument("--epochs", type=int, default=6, help="epochs for a text")
    parser.add_argument("--rows", type=int, default=600, help="sentences for an ensemble")
    args = parser.parse_args()
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in args.only:
        if part != "text" and args.data is None:
            print(f"{part}: give --data")
            continue
        rows = table.setdefault(part, [])
        for run, values in runs_of(args.epochs, args.rows, args.data)[part]:
            key = {"run": {name: value for name, value in values.items() if name != "folder"}}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append(key | run(**values))
            print(f"{part}: {json.dumps(rows[-1])}", flush=True)
            table["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
            RESULTS.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

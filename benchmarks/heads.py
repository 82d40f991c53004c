"""A prompt with a classification head beside a prompt whose labels are ranked: the same backbone, rows and steps.

    python benchmarks/heads.py --data FOLDER [--tasks sst2:50] [--seeds 0 1 2]

FOLDER holds the files that benchmarks/README.md names. A prompt is trained with the defaults of `PromptTuningTrainer`,
once in front of the language model, whose labels' words are ranked, and once in front of the same model with a new
head. Both are tested on the same rows, which quality.py reports, too. It prints JSON: accuracy, macro F1, and the
processor seconds of training and of testing.
"""

import argparse
import copy
import json
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import datasets
from quality_runs import BATCH
from quality_tasks import Split, read_tasks, reported_splits
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback

from hf_prompt_tuning import ClassTemplate, PromptTuningArguments, PromptTuningConfig, PromptTuningTrainer
from hf_prompt_tuning.models.backbone import forget_gguf

HERE = Path(__file__).parent
KINDS = ("ranked", "head")


def backbone_of(kind: str, labels: int, **origin: Any) -> Any:
    if kind == "ranked":
        return AutoModelForCausalLM.from_pretrained(dtype="float32", **origin)
    return AutoModelForSequenceClassification.from_pretrained(dtype="float32", num_labels=labels, **origin)


def measured(kind: str, backbone: Any, tokenizer: Any, split: Split, epochs: int) -> dict[str, float]:
    """Train a prompt on a split's rows. Return what it does on those held out, and the processor's seconds."""
    task, backbone = split.task, copy.deepcopy(backbone)
    forget_gguf(backbone)
    template = task.prompt_template()
    if kind == "head":
        template = ClassTemplate(task.template, task.label_column, max_source_length=task.max_source_length)
    with tempfile.TemporaryDirectory() as folder:
        args = PromptTuningArguments(
            folder,
            seed=split.seed,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=16,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
        )
        trainer = PromptTuningTrainer(
            backbone,
            args,
            train_dataset=split.train,
            processing_class=tokenizer,
            template=template,
            prompt_config=PromptTuningConfig(prompt_tuning_init_text=task.text),
        )
        trainer.remove_callback(PrinterCallback)
        start = time.process_time()
        trainer.train()
        trained = time.process_time()
        output = trainer.predict(split.held_out)
        tested = time.process_time()
    predicted = output.predictions.argmax(1)
    found = {
        "accuracy": accuracy_score(output.label_ids, predicted),
        "f1": f1_score(output.label_ids, predicted, average="macro"),
        "training_seconds": trained - start,
        "testing_seconds": tested - trained,
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the tasks' files")
    parser.add_argument("--tasks", nargs="+", default=["sst2:50"], help="a task and its number of rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--reported_rows", type=int, default=600)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    origin = {"pretrained_model_name_or_path": ".cache/smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    tokenizer = AutoTokenizer.from_pretrained(**origin)
    tasks = read_tasks(HERE / "quality_tasks.yaml", args.data)
    for described, kind in product(args.tasks, KINDS):
        name, size = described.split(":")
        task, size = tasks[name], int(size) if size.isdecimal() else size
        backbone = backbone_of(kind, len(set(task.labels(task.rows(task.train_file)))), **origin)
        for seed in args.seeds:
            (split,) = reported_splits(task, size, seed, args.reported_rows)
            found = measured(kind, backbone, tokenizer, split, task.sizes[size])
            print(json.dumps({"task": name, "size": size, "kind": kind, "seed": seed} | found), flush=True)


if __name__ == "__main__":
    main()

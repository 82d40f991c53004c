"""Twitter complaints with 50 tweets: what the default recipe learns, on all 50 and in 5 folds.

    python benchmarks/raft_folds.py --data FOLDER

FOLDER holds raft_twitter_complaints_train.jsonl. Prints a table and writes benchmarks/results/raft_folds.json.
"Untuned" is the backbone alone behind the same template; "initial words" is the prompt before training.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean

import torch
import transformers
from datasets import Dataset
from sklearn.model_selection import StratifiedKFold

from hf_prompt_tuning import (
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone
from hf_prompt_tuning.data.files import read_file

TEMPLATE = PromptTemplate(
    source="Tweet text : {Tweet text} Label :",
    label_column="Label",
    label_words={"1": "complaint", "2": "no complaint"},
)
STATES = ("untuned", "initial words", "tuned")
RESULTS = Path(__file__).parent / "results" / "raft_folds.json"
TEXT = "Classify if the tweet is a complaint or not:"


def tune(backbone, tokenizer, train: Dataset, test: Dataset | None, epochs: int) -> dict:
    """One run; macro F1 and accuracy untuned, before and after, and the loss of each epoch."""
    transformers.set_seed(42)
    config = PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init_text=TEXT)
    model = get_prompt_tuning_model(backbone, config, tokenizer, TEMPLATE)
    with tempfile.TemporaryDirectory() as folder:
        arguments = PromptTuningArguments(
            output_dir=folder, num_train_epochs=epochs, logging_strategy="epoch", save_strategy="no", disable_tqdm=True
        )
        trainer = PromptTuningTrainer(
            model, arguments, train_dataset=train, eval_dataset=test, processing_class=tokenizer, template=TEMPLATE
        )
        found = {}
        if test is not None:
            found["initial words"] = trainer.evaluate()
            with model.disable_adapter():
                found["untuned"] = trainer.evaluate()
        trainer.train()
        if test is not None:
            found["tuned"] = trainer.evaluate()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    kept = {state: {name: metrics[f"eval_{name}"] for name in ("f1", "accuracy")} for state, metrics in found.items()}
    return {"losses": losses} | kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default=".cache/smollm2")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    rows = read_file(args.data / "raft_twitter_complaints_train.jsonl")
    backbone, tokenizer = load_backbone(ModelArguments(args.model_name_or_path, gguf_file=args.gguf_file))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}")

    whole = tune(backbone, tokenizer, rows, None, args.epochs)
    print("all 50 tweets, loss of each epoch:", " ".join(f"{loss:.3f}" for loss in whole["losses"]), flush=True)
    folds = []
    splitter = StratifiedKFold(n_splits=5, shuffle=True, random_state=0)
    for train, test in splitter.split(rows["Tweet text"], rows["Label"]):
        folds.append(tune(backbone, tokenizer, rows.select(train), rows.select(test), args.epochs))
        shown = ", ".join(f"{state} {folds[-1][state]['f1']:.3f}" for state in STATES)
        print(f"fold {len(folds)}, macro F1: {shown}", flush=True)
    means = {state: {n: mean(fold[state][n] for fold in folds) for n in ("f1", "accuracy")} for state in STATES}
    for state, values in means.items():
        print(f"mean of 5 folds, {state}: macro F1 {values['f1']:.3f}, accuracy {values['accuracy']:.3f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"all": whole, "folds": folds, "means": means}, indent=1) + "\n")


if __name__ == "__main__":
    main()

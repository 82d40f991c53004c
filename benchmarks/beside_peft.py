"""Training loss against steps and against seconds: PEFT's prompt tuning beside ours, on the demo's messages.

    OMP_NUM_THREADS=1 python benchmarks/beside_peft.py [--steps 45]

Both train a prompt of 20 vectors in front of SmolLM2-135M. They start from the same vectors and see the same batches
of 8, with the demo's optimizer: AdamW at 3e-2, linear schedule. PEFT's model trains under transformers' Trainer, ours
under PromptTuningTrainer, one after the other. Seconds are the processor time of the steps, so other programs hardly
count. Writes benchmarks/results/beside_peft.json and docs/beside_peft.png.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path

import peft
import torch
import transformers
from matplotlib.figure import Figure
from measure_speed import encode, load
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_prompt_tuning import (
    DataCollatorForPromptTuning,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)

ROOT = Path(__file__).parent.parent
P, B, WINDOW = 20, 8, 5


class Clock(TrainerCallback):
    """Record the processor seconds of each step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.process_time() - self.start)


def prompt_of(model: torch.nn.Module) -> torch.Tensor:
    """Return the trained vectors, [P, H]."""
    return next(parameter for parameter in model.parameters() if parameter.requires_grad)


def train(
    trainer_class: type[Trainer], model: torch.nn.Module, args: TrainingArguments, tokenizer, rows: list
) -> dict:
    """Return the loss and the processor seconds of each step."""
    trainer = trainer_class(
        model,
        args,
        data_collator=DataCollatorForPromptTuning(tokenizer),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"loss": losses, "seconds": clock.seconds}


def measure(steps: int) -> dict[str, dict]:
    """Train both prompts. Return the losses and seconds of each."""
    transformers.set_seed(42)
    backbone, tokenizer = load("smollm2")
    rows = encode(tokenizer, backbone, {"data": str(ROOT / "examples/complaints_train.jsonl")})
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    config = PromptTuningConfig(
        num_virtual_tokens=P, prompt_tuning_init_text="Classify if the message is a complaint or not:"
    )
    peft_config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = peft.get_peft_model(copy.deepcopy(backbone), peft_config)
    ours = get_prompt_tuning_model(backbone, config, tokenizer)
    prompt_of(theirs).data.copy_(prompt_of(ours))
    with tempfile.TemporaryDirectory() as folder:
        values = dict(
            output_dir=folder,
            per_device_train_batch_size=B,
            max_steps=steps,
            learning_rate=3e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        return {
            "PEFT": train(Trainer, theirs, TrainingArguments(**values), tokenizer, rows),
            "hf_prompt_tuning": train(PromptTuningTrainer, ours, PromptTuningArguments(**values), tokenizer, rows),
        }


def plot(runs: dict[str, dict], file: Path) -> None:
    """Draw the mean loss of each five steps, against steps and against seconds."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    by_step, by_second = figure.subplots(1, 2, sharey=True)
    for (name, run), color, width in zip(runs.items(), ("tab:orange", "tab:blue"), (5, 1.8), strict=True):
        mean = torch.tensor(run["loss"]).unfold(0, WINDOW, 1).mean(1)
        seconds = torch.tensor(run["seconds"]).cumsum(0)[WINDOW - 1 :]
        style = {"label": name, "color": color, "linewidth": width, "alpha": 0.5 if width > 2 else 1}
        by_step.plot(range(WINDOW, WINDOW + len(mean)), mean, **style)
        by_second.plot(seconds, mean, **style)
    by_step.set(xlabel="step", ylabel="training loss, mean of 5 steps", xlim=(0, None), ylim=(0, None))
    by_second.set(xlabel="processor seconds, one thread", xlim=(0, None))
    by_second.legend(frameon=False)
    for axes in (by_step, by_second):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=45, help="update steps; 15 are one pass over the messages")
    args = parser.parse_args()
    runs = measure(args.steps)
    versions = {library.__name__: library.__version__ for library in (torch, transformers, peft)}
    facts = {"threads": torch.get_num_threads(), "versions": versions}
    (ROOT / "benchmarks/results/beside_peft.json").write_text(json.dumps(facts | runs, indent=1) + "\n")
    plot(runs, ROOT / "docs/beside_peft.png")
    losses = [run["loss"][:8] for run in runs.values()]
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    totals = {name: round(sum(run["seconds"]), 1) for name, run in runs.items()}
    print(f"{totals} seconds; the losses of the first 8 steps differ by at most {difference:.2g}")


if __name__ == "__main__":
    main()

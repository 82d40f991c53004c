"""What a step costs that trains N prompts at once, against N steps of one prompt each. Prints JSON.

python benchmarks/ensemble_steps.py [--prompts 5] [--steps 8]

The two take turns, so that what else the machine does hits both. Medians are printed of the wall-clock time and of the
processor time, which on a shared machine says more (with OMP_NUM_THREADS=1: waiting threads count as busy).
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prompt_tuning import (
    EnsembleTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.data.files import read_file

ROOT = Path(__file__).parent.parent
BACKBONE = {
    "pretrained_model_name_or_path": ROOT / ".cache/smollm2",
    "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
}
TEMPLATE = PromptTemplate(source="Message : {message} Label :", label_column="label")


def config() -> PromptTuningConfig:
    return PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init="SAMPLE_VOCAB")


def step_of(trainer: PromptTuningTrainer) -> Callable[[], None]:
    """A function that does one training step of a trainer: forward and backward of its next batch."""
    batches = itertools.cycle(trainer.get_train_dataloader())
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()

    def step() -> None:
        trainer.training_step(trainer.model, next(batches))
        trainer.model.zero_grad()

    return step


def main(prompts: int, steps: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(**BACKBONE)
    rows = read_file(ROOT / "examples/complaints_train.jsonl")
    args = PromptTuningArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=8, num_train_epochs=10, save_strategy="no"
    )
    backbone = AutoModelForCausalLM.from_pretrained(**BACKBONE)
    members = [PromptTask(f"prompt_{i}", config(), seed=i) for i in range(prompts)]
    common = {"train_dataset": rows, "processing_class": tokenizer, "template": TEMPLATE}
    together = step_of(EnsembleTrainer(backbone, args, members, **common))
    other = AutoModelForCausalLM.from_pretrained(**BACKBONE)
    alone = step_of(PromptTuningTrainer(get_prompt_tuning_model(other, config(), tokenizer), args, **common))
    ways = {"together": (together, 1), "one_by_one": (alone, prompts)}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for step, _ in ways.values():
        step()  # the first one checks the layout
    for _ in range(steps):
        for name, (step, times) in ways.items():
            before = time.perf_counter(), time.process_time()
            for _ in range(times):
                step()
            wall[name].append(time.perf_counter() - before[0])
            cpu[name].append(time.process_time() - before[1])
    print(
        json.dumps(
            {
                "prompts": prompts,
                "steps": steps,
                "threads": torch.get_num_threads(),
                "wall_seconds": {name: round(statistics.median(times), 3) for name, times in wall.items()},
                "cpu_seconds": {name: round(statistics.median(times), 3) for name, times in cpu.items()},
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    main(options.prompts, options.steps)

"""What a step costs that learns from a text, beside an ordinary one on the same rows, and its memory.

    python benchmarks/teaching_cost.py [--steps 8]

Steps: SmolLM2-135M, batches of 10 of the workshop's conversations, 16 vectors in the system turn, behind texts of 128,
512 and 1,500 tokens. They take turns, so that what else the machine does hits all; medians of the wall-clock time and
of the processor time, which on a shared machine says more (with OMP_NUM_THREADS=1: waiting threads count as busy).

Memory: the peak of a step with a tiny backbone of 262,144 tokens and 480 labelled ones, each in a process of its own:
ordinary, taught, and taught by the definition of the divergence, as autograd computes it. Writes
benchmarks/results/teaching_cost.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from ensemble_steps import step_of

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningTrainer,
    Teacher,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone
from hf_prompt_tuning.data.files import read_file
from hf_prompt_tuning.models import distillation

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/teaching_cost.json"
V, ROWS, LABELLED = 262_144, 8, 60
WAYS = ("ordinary", "taught", "by definition")


def arguments(**values: Any) -> PromptTuningArguments:
    return PromptTuningArguments(output_dir=tempfile.mkdtemp(), num_train_epochs=10, save_strategy="no", **values)


def trainer_behind(tokens: int) -> PromptTuningTrainer:
    """A trainer on conversations; with `tokens`, behind a text of so many."""
    backbone, tokenizer = load_backbone(ModelArguments(".cache/smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"))
    text = (ROOT / "examples/teaching/handbook.txt").read_text(encoding="utf-8") * 2
    text = tokenizer.decode(tokenizer(text)["input_ids"][:tokens])
    return PromptTuningTrainer(
        backbone,
        arguments(per_device_train_batch_size=10),
        train_dataset=read_file(ROOT / "examples/bicycle_chats_train.jsonl"),
        processing_class=tokenizer,
        template=ChatTemplate(chat=ChatFormat()),
        prompt_config=PromptTuningConfig(num_virtual_tokens=16, prompt_position="system", tokenizer=tokenizer),
        teacher=Teacher(text=text) if tokens else None,
    )


def steps(count: int) -> dict[str, Any]:
    """The medians of the steps by the length of the text, 0 for an ordinary step, in turn."""
    ways = {length: step_of(trainer_behind(length)) for length in (0, 128, 512, 1500)}
    times: dict[int, list[tuple[float, float]]] = {length: [] for length in ways}
    for round_ in range(count + 1):  # in the first one layouts are checked and texts computed
        for length, step in ways.items():
            before = time.perf_counter(), time.process_time()
            torch.manual_seed(round_)
            step()
            times[length].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    medians = {
        length: {
            "wall_seconds": statistics.median(wall for wall, _ in each[1:]),
            "cpu_seconds": statistics.median(cpu for _, cpu in each[1:]),
        }
        for length, each in times.items()
    }
    for row in medians.values():
        row["times_ordinary"] = row["cpu_seconds"] / medians[0]["cpu_seconds"]
    return {str(length): row for length, row in medians.items()}


def peak_kb() -> int:
    """Return this process's own peak. `ru_maxrss` would include that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def peak(way: str) -> float:
    """In a process of its own: by how many MB a step raises the peak of the memory."""
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    model = get_prompt_tuning_model(transformers.AutoModelForCausalLM.from_config(config), PromptTuningConfig())
    ids = torch.randint(V, (ROWS, LABELLED + 20))
    labels = ids.clone()
    labels[:, :20] = -100
    batch = {"input_ids": ids, "labels": labels, "only_labelled": True}
    model(**batch | {"input_ids": ids[:, :24], "labels": labels[:, :24]}).loss.backward()  # what is made once
    before = peak_kb()
    if way != "ordinary":
        with torch.no_grad(), model.disable_adapter():
            teacher = model(**batch)
        batch["distillation"] = distillation.TokenDistillation(teacher.logits, teacher.targets)
        del teacher
    if way == "by definition":
        distillation.token_kl = lambda student, teacher, *_, **__: distillation.divergence(student, teacher)
    model(**batch).loss.backward()
    return (peak_kb() - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--peak", choices=WAYS, help="measure the memory of one way, in this process")
    parser.add_argument("--only", choices=("steps", "memory"), nargs="+", default=("steps", "memory"))
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak(args.peak)))
        return
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "steps" in args.only:
        table["steps"] = steps(args.steps) | {"threads": torch.get_num_threads()}
    if "memory" in args.only:
        words = [sys.executable, __file__, "--peak"]
        table["peak_mb"] = {
            way: json.loads(subprocess.run([*words, way], check=True, capture_output=True, text=True).stdout)
            for way in WAYS
        }
    print(json.dumps(table, indent=1))
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

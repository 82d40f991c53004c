"""Whole training steps under the Trainer, PEFT's beside ours: time, peak memory, tokens, and the limit.

    python benchmarks/speed.py [--quick]

Every measurement is a process of its own: it trains on the demo's messages (examples/complaints_train.jsonl) for a
few steps, in file order, and says the median step, and its peak memory above that of the loaded weights. The limit
is the time of nothing but the matrix products that must be done: those of the layers, forward and backward, for the
tokens that cannot be left out. Prints a table, and writes benchmarks/results/speed.json and speed.png.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parent.parent / "examples" / "complaints_train.jsonl"
SYSTEMS = ("peft", "padded", "cached", "packed")
CASES = {
    "P=100, B=16": dict(model="smollm2", P=100, B=16),
    "P=20, B=8": dict(model="smollm2", P=20, B=8),
    "P=8, B=8": dict(model="smollm2", P=8, B=8),
    "BLOOM 560M in shape, P=8, B=8": dict(model="bloom", P=8, B=8),
    "T5 (tiny), P=20, B=8": dict(model="t5", P=20, B=8),
}
RANKING = {"ranking 2 labels, P=100, B=16": dict(model="smollm2", P=100, B=16, rank=True)}
GROWTH = {
    **{f"P={P}, B=8": dict(model="smollm2", P=P, B=8) for P in (1, 50, 200)},
    **{f"P=20, B={B}": dict(model="smollm2", P=20, B=B) for B in (1, 32, 64)},
    **{f"P=20, B=4, T={T}": dict(model="smollm2", P=20, B=4, T=T) for T in (32, 128, 512)},
}


def measure(system: str, case: dict, steps: int) -> dict:
    """In a process of its own: the median step of one system on one case."""
    import torch
    import transformers

    transformers.set_seed(0)
    backbone, tokenizer = load(case["model"])
    rows = encode(tokenizer, backbone, case)
    model = with_prompt(system, backbone, tokenizer, case["P"])
    weights = sum(p.double().sum().item() for p in model.parameters())  # touches every page of them
    assert weights == weights
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here, not from loading
    before = memory("VmRSS")
    if case.get("rank"):
        times = ranking_times(system, model, rows, tokenizer, case, steps)
    else:
        times = step_times(system, model, rows, tokenizer, case, steps)
    result = {"seconds": median(times), "peak_mb": (memory("VmHWM") - before) / 1024}
    if system == "packed" and case["model"] == "smollm2" and not case.get("rank"):
        result |= limit(backbone, rows, case)
    return result | {"threads": torch.get_num_threads()}


def load(name: str):
    """The real small backbone, or one of the shape that is wanted with random weights."""
    import transformers as t

    from hf_prompt_tuning.arguments import ModelArguments
    from hf_prompt_tuning.backbone import forget_gguf
    from hf_prompt_tuning.cli import load_backbone

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    backbone, tokenizer = load_backbone(ModelArguments(".cache/smollm2", gguf_file=gguf))
    forget_gguf(backbone)
    if name == "bloom":
        config = t.BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
        backbone = t.AutoModelForCausalLM.from_config(config)
    elif name == "t5":
        config = t.T5Config(vocab_size=len(tokenizer), d_model=256, d_kv=32, d_ff=1024, num_layers=6, num_heads=8)
        config.decoder_start_token_id = config.pad_token_id = 0
        backbone = t.AutoModelForSeq2SeqLM.from_config(config)
    return backbone, tokenizer


def encode(tokenizer, backbone, case: dict) -> list[dict]:
    """The messages as token ids, in file order; with T, as many messages a row as make T tokens."""
    from hf_prompt_tuning import PromptTemplate
    from hf_prompt_tuning.data import read_file
    from hf_prompt_tuning.tokenization import PromptTokenizer

    messages = read_file(DATA)
    rows = [dict(row) for row in messages]
    if "T" in case:
        texts = " ".join(messages["message"]).split()
        rows = [row | {"message": " ".join([*texts[i * 7 :], *texts])} for i, row in enumerate(rows)]
    template = PromptTemplate(
        source="Message : {message} Label :",
        label_column="label",
        label_words={"complaint": "complaint", "no complaint": "no complaint"},
        max_source_length=case.get("T", 64),
    )
    coder = PromptTokenizer(template, tokenizer, backbone.config.is_encoder_decoder)
    return [{k: v for k, v in coder.encode(row).items() if k in ("input_ids", "labels", "label")} for row in rows]


def with_prompt(system: str, backbone, tokenizer, P: int):
    """The backbone behind a random prompt, PEFT's or ours."""
    import peft

    from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model

    if system == "peft":
        task = "SEQ_2_SEQ_LM" if backbone.config.is_encoder_decoder else "CAUSAL_LM"
        config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=P, prompt_tuning_init="RANDOM")
        return peft.get_peft_model(backbone, config)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=P, prompt_tuning_init="RANDOM"))
    return model


def step_times(system: str, model, rows: list[dict], tokenizer, case: dict, steps: int) -> list[float]:
    """Seconds of each optimizer step, the first two left out."""
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    from hf_prompt_tuning import DataCollatorForPromptTuning, PromptTuningArguments, PromptTuningTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter() - self.start)

    collator = DataCollatorForPromptTuning(tokenizer)
    rows = [{k: row[k] for k in ("input_ids", "labels")} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        values = dict(
            output_dir=folder,
            per_device_train_batch_size=case["B"],
            max_steps=steps + 2,
            learning_rate=1e-3,
            save_strategy="no",
            disable_tqdm=True,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
            logging_strategy="no",
        )
        if system == "peft":
            arguments, cls = TrainingArguments(**values), Trainer
        else:
            layout = system if case["model"] != "t5" else "auto"
            arguments, cls = PromptTuningArguments(**values, layout=layout, check_layout=False), PromptTuningTrainer
        trainer = cls(model, arguments, data_collator=collator, train_dataset=rows, processing_class=tokenizer)
        trainer.add_callback(Clock())
        trainer.train()
    return times[2:]


def ranking_times(system: str, model, rows: list[dict], tokenizer, case: dict, steps: int) -> list[float]:
    """Seconds to score both labels of B messages; for PEFT a pass for each label, as its users write it."""
    import torch

    from hf_prompt_tuning import DataCollatorForPromptTuning
    from hf_prompt_tuning.evaluation import rank_labels

    labels = list({tuple(i for i in row["labels"] if i != -100): None for row in rows})
    collator, times = DataCollatorForPromptTuning(tokenizer), []
    model.eval()
    if system != "peft":
        model.use_layout(system, check=False)
    for step in range(steps + 1):
        group = [rows[(step * case["B"] + i) % len(rows)] for i in range(case["B"])]
        start = time.perf_counter()
        if system == "peft":
            for words in labels:
                batch = collator([_with_target(row, words) for row in group])
                with torch.no_grad():
                    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                logp = logits[:, case["P"] - 1 : -1].float().log_softmax(-1)
                gold = batch["labels"].clamp(min=0)[..., None]
                (logp.gather(-1, gold)[..., 0] * (batch["labels"] != -100)).sum(1)
        else:
            rank_labels(model, collator(group), labels, False)
        times.append(time.perf_counter() - start)
    return times[1:]


def _with_target(row: dict, words: tuple[int, ...]) -> dict:
    source = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    return {"input_ids": source + list(words), "labels": [-100] * len(source) + list(words)}


def limit(backbone, rows: list[dict], case: dict) -> dict:
    """Seconds of the layers' matrix products for the tokens of the first batch that cannot be left out."""
    import torch

    group = [row["input_ids"] for row in rows[: case["B"]]]
    shared = 0
    while case["B"] > 1 and len({row[shared] for row in group}) == 1:
        shared += 1
    tokens = case["P"] + shared + sum(len(row) - 1 - shared for row in group)
    weights = [p for n, p in backbone.named_parameters() if p.dim() == 2 and "embed" not in n and "head" not in n]
    inputs = {w.shape: (torch.randn(tokens, w.shape[1]), torch.randn(tokens, w.shape[0])) for w in weights}
    times = []
    for _ in range(6):
        start = time.perf_counter()
        for w in weights:
            x, gradient = inputs[w.shape]
            x @ w.detach().T
            gradient @ w.detach()
        times.append(time.perf_counter() - start)
    real = sum(map(len, group))
    return {
        "limit": median(times[1:]),
        "tokens": tokens,
        "real_tokens": real,
        "padded_tokens": case["B"] * (case["P"] + max(map(len, group))),
    }


def memory(what: str) -> int:
    """This process's memory in kB, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1])
    raise RuntimeError(f"no {what} in /proc/self/status")


def in_a_process(system: str, case: dict, steps: int) -> dict:
    command = [sys.executable, __file__, "--measure", json.dumps([system, case, steps])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def systems_for(case: dict) -> tuple[str, ...]:
    if case["model"] == "bloom":
        return ("peft", "padded", "cached")
    return ("peft", "padded") if case["model"] == "t5" else SYSTEMS


def compare(cases: dict, steps: int, rounds: int) -> dict:
    """Each case, each system, `rounds` times in turn (so that a slow minute of the machine hits all of them)."""
    table: dict = {}
    for name, case in cases.items():
        found: dict = {system: [] for system in systems_for(case)}
        for _ in range(rounds):
            for system in found:
                found[system].append(in_a_process(system, case, steps))
        table[name] = {
            system: {key: median(run[key] for run in runs) for key in runs[0]} for system, runs in found.items()
        }
        show(name, table[name])
    return table


def show(name: str, row: dict) -> None:
    peft = row.get("peft", {"seconds": float("nan"), "peak_mb": float("nan")})
    print(f"\n{name}")
    for system, result in row.items():
        times = f"{result['seconds']:7.3f} s  {result['peak_mb']:7.0f} MB"
        faster, leaner = peft["seconds"] / result["seconds"], result["peak_mb"] / peft["peak_mb"]
        against = f"PEFT/it {faster:5.2f}  its memory/PEFT's {leaner:.2f}"
        limit = (
            f"  limit {result['limit']:.3f} s (x{result['seconds'] / result['limit']:.2f})"
            if "limit" in result
            else ""
        )
        print(f"  {system:7s} {times}  {against}{limit}", flush=True)


def plot(table: dict) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for i, system in enumerate(SYSTEMS):
        points = [(j + i / 5, row[system]["seconds"]) for j, row in enumerate(table.values()) if system in row]
        axes.bar(*zip(*points, strict=True), width=0.18, label=system)
    axes.set_xticks([j + 0.3 for j in range(len(table))], [name.replace(", ", "\n") for name in table], fontsize=8)
    axes.set_ylabel("seconds a step")
    axes.legend()
    figure.savefig(RESULTS / "speed.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="the table alone, three steps, one round")
    parser.add_argument("--only", help="cases whose name has this in it")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    steps, rounds = (3, 1) if args.quick else (5, 2)
    cases = CASES | RANKING | ({} if args.quick else GROWTH)
    table = compare({n: c for n, c in cases.items() if not args.only or args.only in n}, steps, rounds)
    if not args.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "speed.json").write_text(json.dumps(table, indent=1) + "\n")
        plot({name: row for name, row in table.items() if name in CASES | RANKING})


if __name__ == "__main__":
    main()

"""Ranking and generation behind computed prompts, PEFT's beside ours: one process, one backbone, in turn.

    python benchmarks/inference.py [--quick] [--data FOLDER]

The texts are RAFT's tweets (FOLDER/raft_twitter_complaints_train.jsonl) or, without FOLDER, the demo's messages. Each
line of the table is timed in rounds, every system once a round, so that a slow minute of the machine hits all of them;
seconds are medians of the rounds. The lines of many labels are those of label_cases.py. Prints the table, and writes
its lines to benchmarks/results/inference.json; with --only, the other lines stay. On a machine that others use,
--processor times the processor and not the clock; such lines have a part of their own.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import peft
import torch
import transformers
from label_cases import LabelBench
from measure_speed import TWEETS, encode, load
from speed import MESSAGES, RESULTS

from hf_prompt_tuning import DataCollatorForPromptTuning, PromptTuningConfig, get_prompt_tuning_model

P, B, NEW = 100, 16, 8
SLOW = 20
"""What takes more seconds is timed once."""
PROMPTS, MIXED = 16, 32
PROCESSOR = "processor time"
Systems = dict[str, Callable[[], torch.Tensor]]


class Bench:
    """A backbone behind `PROMPTS` random prompts, in PEFT's model and in ours."""

    def __init__(self, data: str):
        backbone, tokenizer = load("smollm2")
        backbone.eval()
        rows = encode(tokenizer, backbone, {"data": data})
        self.labels = list({tuple(i for i in row["labels"] if i != -100): None for row in rows})
        self.rows = [
            [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100] for row in rows
        ]
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.nodes: dict[str, float] = {}
        self.tokenizer, self.collator = tokenizer, DataCollatorForPromptTuning(tokenizer)
        self.names = ["default", *(f"prompt{i}" for i in range(1, PROMPTS))]
        config = dict(num_virtual_tokens=P, prompt_tuning_init="RANDOM", task_type="CAUSAL_LM")
        self.ours = get_prompt_tuning_model(backbone, PromptTuningConfig(**config)).eval()
        self.peft = peft.get_peft_model(backbone, peft.PromptTuningConfig(**config)).eval()
        for name in self.names[1:]:
            self.ours.add_adapter(name, PromptTuningConfig(**config))
            self.peft.add_adapter(name, peft.PromptTuningConfig(**config))
        for name in self.names:
            theirs = self.peft.prompt_encoder[name].embedding.weight
            theirs.data.copy_(self.ours.prompt_encoder[name].embedding.weight.data)

    def texts(self, start: int, count: int) -> list[list[int]]:
        return [self.rows[(start + i) % len(self.rows)] for i in range(count)]

    def generate(self, model, texts: list[list[int]], new: int, **options) -> torch.Tensor:
        """[B, new] greedy tokens."""
        batch = self.tokenizer.pad({"input_ids": texts}, return_tensors="pt", padding_side="left")
        with torch.no_grad():
            ids = model.generate(
                **batch,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        return ids[:, batch["input_ids"].shape[1] :]

    def rank(self, texts: list[list[int]], **options) -> torch.Tensor:
        """[B, L] scores by ours."""
        batch = self.collator([{"input_ids": ids, "labels": [-100] * len(ids)} for ids in texts])
        with torch.no_grad():
            return self.ours(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], candidates=self.labels, **options
            ).scores

    def rank_with_peft(self, texts: list[list[int]]) -> torch.Tensor:
        """[B, L] scores by PEFT: a pass for each label, as its users write it."""
        scores = []
        for words in self.labels:
            rows = [{"input_ids": ids + list(words), "labels": [-100] * len(ids) + list(words)} for ids in texts]
            batch = self.collator(rows)
            with torch.no_grad():
                logits = self.peft(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            logp = logits[:, P - 1 : -1].float().log_softmax(-1)
            gold = batch["labels"].clamp(min=0)[..., None]
            scores.append((logp.gather(-1, gold)[..., 0] * (batch["labels"] != -100)).sum(1))
        return torch.stack(scores, dim=1)

    def in_turn(self, model, texts: list[list[int]], run: Callable[[list[list[int]]], torch.Tensor]) -> torch.Tensor:
        """A pass for each prompt, over the texts that are its own."""
        parts, each = [], MIXED // PROMPTS
        for i, name in enumerate(self.names):
            model.set_adapter(name)
            parts.append(run(texts[i * each : (i + 1) * each]))
        model.set_adapter("default")
        return torch.cat(parts)

    def cases(self, start: int) -> dict[str, Systems]:
        """What is timed, on the texts from `start`."""
        texts, one, mixed = self.texts(start, B), self.texts(start, 1), self.texts(start, MIXED)
        names = [name for name in self.names for _ in range(MIXED // PROMPTS)]
        return {
            f"rank 2 labels, P={P}, B={B}": {
                "peft": lambda: self.rank_with_peft(texts),
                "ours": lambda: self.rank(texts),
            },
            f"generate {NEW} tokens, P={P}, B={B}": {
                "peft": lambda: self.generate(self.peft, texts, NEW),
                "ours": lambda: self.generate(self.ours, texts, NEW),
                "backbone alone": lambda: self.generate(self.ours.get_base_model(), texts, NEW),
            },
            f"time to first token, P={P}, one text": {
                "peft": lambda: self.generate(self.peft, one, 1),
                "ours": lambda: self.generate(self.ours, one, 1),
                # What no prompt can be faster than.
                "backbone alone": lambda: self.generate(self.ours.get_base_model(), one, 1),
            },
            f"{PROMPTS} prompts in a batch of {MIXED}, generate {NEW} tokens": {
                "peft": lambda: self.in_turn(self.peft, mixed, lambda t: self.generate(self.peft, t, NEW)),
                "ours in turn": lambda: self.in_turn(self.ours, mixed, lambda t: self.generate(self.ours, t, NEW)),
                "ours": lambda: self.generate(self.ours, mixed, NEW, adapter_names=names),
                "ours, one prompt": lambda: self.generate(self.ours, mixed, NEW),
            },
            f"{PROMPTS} prompts in a batch of {MIXED}, rank 2 labels": {
                "peft": lambda: self.in_turn(self.peft, mixed, self.rank_with_peft),
                "ours in turn": lambda: self.in_turn(self.ours, mixed, self.rank),
                "ours": lambda: self.rank(mixed, adapter_names=names),
                "ours, one prompt": lambda: self.rank(mixed),
            },
        }


def show(name: str, seconds: dict[str, float], nodes: dict[str, float]) -> None:
    print(f"\n{name}")
    for system, value in seconds.items():
        beside = f"   PEFT/it {seconds['peft'] / value:6.2f}" if "peft" in seconds else ""
        for least in ("2 labels", "backbone alone"):
            if least in seconds:
                beside += f"   it/{least} {value / seconds[least]:6.2f}"
        beside += f"   nodes computed {nodes[system]:.0%}" if system in nodes else ""
        print(f"  {system:17s} {value:8.3f} s{beside}", flush=True)
    if "ours, one prompt" in seconds:
        share = seconds["ours, one prompt"] / seconds["ours"]
        print(f"  throughput of the mixed batch against one prompt's: {share:.2f}")


def time_case(bench, name: str, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """The median seconds of each system of a case."""
    times: dict[str, list[float]] = {system: [] for system in bench.cases(0)[name]}
    # The first round warms up: memory is taken, and each prompt is computed.
    for i in range(rounds + 1):
        for system, run in bench.cases(i * B)[name].items():
            if i and times[system][0] > SLOW:
                continue
            start = clock()
            run()
            times[system].append(clock() - start)
    return {system: median(runs[1:] or runs) for system, runs in times.items()}


def read_results() -> dict:
    path = RESULTS / "inference.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(table: dict[str, dict[str, float]], of_processor: bool, keep: bool) -> None:
    """Put the lines of a table in the results, in place of all of its kind of time or, with `keep`, of its own."""
    results = read_results()
    old = {PROCESSOR: results.pop(PROCESSOR, {}), "clock": results}
    kind = PROCESSOR if of_processor else "clock"
    old[kind] = (old[kind] if keep else {}) | table | {"threads": torch.get_num_threads()}
    results = old["clock"] | ({PROCESSOR: old[PROCESSOR]} if old[PROCESSOR] else {})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inference.json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds; nothing is written")
    parser.add_argument("--rounds", type=int, default=7, help="of each line, the median counts")
    parser.add_argument("--data", type=Path, help=f"a folder that holds {TWEETS}")
    parser.add_argument("--only", default="", help="lines whose name has this in it")
    parser.add_argument("--processor", action="store_true", help="seconds of the processor, not of the clock")
    args = parser.parse_args()
    part = read_results()
    threads = (part.get(PROCESSOR, {}) if args.processor else part).get("threads", torch.get_num_threads())
    if args.only and not args.quick and threads != torch.get_num_threads():
        parser.error(f"the results are those of {threads} threads: set OMP_NUM_THREADS={threads}, or give --quick")
    clock = time.process_time if args.processor else time.perf_counter
    table: dict = {}
    benches: list = [lambda: Bench(str(args.data / TWEETS if args.data else MESSAGES))]
    if any(args.only in name for name in LabelBench.CASES):
        benches.append(LabelBench)  # which trains a prompt first
    for make in benches:
        transformers.set_seed(0)
        bench = make()
        for name in bench.cases(0):
            if args.only in name:
                table[name] = time_case(bench, name, 2 if args.quick else args.rounds, clock)
                show(name, table[name], bench.nodes)
    if not args.quick:
        write(table, args.processor, keep=bool(args.only))


if __name__ == "__main__":
    main()

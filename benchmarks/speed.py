"""Whole training steps under the Trainer, PEFT's beside ours: time, peak memory, tokens, and the limit.

    python benchmarks/speed.py [--quick] [--data FOLDER]

Every measurement is a process of its own: it trains on RAFT's tweets (FOLDER/raft_twitter_complaints_train.jsonl), or
without FOLDER on the demo's messages (examples/complaints_train.jsonl), which are shorter and more alike. It takes a
few steps, in file order, and says the median step, and its peak memory above that of the loaded weights. The limit
is the time of nothing but the matrix products that must be done: those of the layers, forward and backward, for the
tokens that cannot be left out. Prints a table, and writes benchmarks/results/speed.json and speed.png.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from measure_speed import TWEETS

RESULTS = Path(__file__).parent / "results"
MESSAGES = Path(__file__).parent.parent / "examples" / "complaints_train.jsonl"
SYSTEMS = ("peft", "padded", "cached", "packed")
CASES = {
    "P=100, B=16": dict(model="smollm2", P=100, B=16),
    "P=20, B=8": dict(model="smollm2", P=20, B=8),
    "P=8, B=8": dict(model="smollm2", P=8, B=8),
    "P=8, B=8, all rows padded to 64": dict(model="smollm2", P=8, B=8, pad_to=64),
    "BLOOM 560M in shape, P=8, B=8": dict(model="bloom", P=8, B=8),
    "T5 (tiny), P=20, B=8": dict(model="t5", P=20, B=8),
}
RANKING = {"ranking 2 labels, P=100, B=16": dict(model="smollm2", P=100, B=16, rank=True)}
GROWTH = {
    **{f"growth, P={P}, B=8": dict(model="smollm2", P=P, B=8) for P in (1, 50, 200)},
    **{f"growth, P=20, B={B}": dict(model="smollm2", P=20, B=B) for B in (1, 32, 64)},
    **{f"growth, P=20, B=4, T={T}": dict(model="smollm2", P=20, B=4, T=T) for T in (32, 128, 512)},
}


def in_a_process(system: str, case: dict, steps: int) -> dict:
    script = Path(__file__).parent / "measure_speed.py"
    command = [sys.executable, str(script), json.dumps([system, case, steps])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def systems_for(case: dict) -> tuple[str, ...]:
    return ("peft", "padded") if case["model"] == "t5" else SYSTEMS


def compare(case: dict, steps: int, rounds: int) -> dict:
    """Each system, `rounds` times in turn (so that a slow minute of the machine hits all of them)."""
    found: dict = {system: [] for system in systems_for(case)}
    for _ in range(rounds):
        for system in found:
            found[system].append(in_a_process(system, case, steps))
    return {system: {key: median(run[key] for run in runs) for key in runs[0]} for system, runs in found.items()}


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
    """The cases side by side, and how the cost of a step grows with P, B and T."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    bars = figure.add_subplot(grid[0, :])
    cases = {name: row for name, row in table.items() if name in CASES | RANKING}
    for i, system in enumerate(SYSTEMS):
        points = [(j + i / 5, row[system]["seconds"]) for j, row in enumerate(cases.values()) if system in row]
        bars.bar(*zip(*points, strict=True), width=0.18, label=system)
    bars.set_xticks([j + 0.3 for j in range(len(cases))], [name.replace(", ", "\n") for name in cases], fontsize=8)
    bars.set_ylabel("seconds a step")
    bars.legend()
    for column, (letter, fixed) in enumerate({"P": "B=8", "B": "P=20", "T": "P=20, B=4"}.items()):
        names = sorted((n for n in GROWTH if _grows(n) == letter), key=lambda n: GROWTH[n][letter])
        axes = figure.add_subplot(grid[1, column])
        for system in SYSTEMS:
            axes.plot(
                [GROWTH[n][letter] for n in names],
                [table[n][system]["seconds"] for n in names],
                marker="o",
                label=system,
            )
        axes.set_xlabel(f"{letter} ({fixed})")
        axes.set_ylabel("seconds a step")
    figure.savefig(RESULTS / "speed.png", dpi=120)


def _grows(name: str) -> str:
    """The letter that a growth case varies: the first, but T where there is one, and B where P is the usual 20."""
    case = GROWTH[name]
    return "T" if "T" in case else "P" if case["B"] == 8 else "B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the table alone, three steps; nothing is written")
    parser.add_argument("--rounds", type=int, default=1, help="processes for each measurement, in turn (median)")
    parser.add_argument("--data", type=Path, help=f"a folder that holds {TWEETS}")
    parser.add_argument("--only", help="cases whose name has this in it")
    args = parser.parse_args()
    data = str(args.data / TWEETS if args.data else MESSAGES)
    results, table = RESULTS / "speed.json", {}
    if args.only and results.exists():
        table = json.loads(results.read_text())
    for name, case in (CASES | RANKING | ({} if args.quick else GROWTH)).items():
        if args.only and args.only not in name:
            continue
        table[name] = compare(case | {"data": data}, 3 if args.quick else 5, args.rounds)
        show(name, table[name])
        if not args.quick:
            RESULTS.mkdir(exist_ok=True)
            results.write_text(json.dumps(table, indent=1) + "\n")
    if table.keys() >= GROWTH.keys() and not args.quick:
        plot(table)


if __name__ == "__main__":
    main()

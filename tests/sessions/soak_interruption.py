"""Kills the command at random moments, resumes it until it is done, and compares what it leaves, bit for bit.

    python -m tests.sessions.soak_interruption [--kills 30] [--seed 0]

Each life of a run is the real command in a forked child. Saves are slowed down there, so that many kills fall into
one. The disk is filled for real where this process may mount one (root); elsewhere a child's files are limited.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path

from hf_prompt_tuning.training.checkpoint_folder import MANIFEST, UNFINISHED, fault
from tests.sessions.killed_command import Disk, Life
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.versions import RESUMES_ON_CPUS

WORDS = (
    "never came",
    "third time",
    "this week",
    "nobody answers",
    "line down",
    "awful",
    "thank you",
    "great",
    "quick",
)
COMMON = dict(
    source_template="Message : {message} Label :",
    label_column="label",
    label_words='{"1": "complaint", "2": "no complaint"}',
    num_virtual_tokens=4,
    per_device_train_batch_size=4,
    num_train_epochs=5,
    save_strategy="steps",
    save_steps=3,
    save_total_limit=2,
    logging_steps=1,
    use_cpu="true",
    disable_tqdm="true",
    report_to="none",
)
RUNS = {
    "shuffled, with dropout": dict(backbone_dropout="true", eval_strategy="no"),
    "best prompt kept, stopped early": dict(
        eval_strategy="epoch",
        save_strategy="epoch",
        num_train_epochs=30,
        metric_for_best_model="accuracy",
        early_stopping_patience=4,
    ),
    "accumulation, lengths grouped": dict(
        gradient_accumulation_steps=2, train_sampling_strategy="group_by_length", eval_strategy="no", save_steps=2
    ),
}
if RESUMES_ON_CPUS:
    RUNS["two processes"] = dict(eval_strategy="no", per_device_train_batch_size=2, processes=2)
FULL = "full disk"
CAUSES = ("SIGKILL in a save", "SIGTERM", FULL, "SIGINT", "SIGKILL", "SIGTERM in a save")
CODES = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "SIGINT": {130}, FULL: {4}}
"""How a process may end: by the signal itself where it came before or after training."""


def write_inputs(folder: Path) -> Path:
    """A backbone with dropout, two small files of rows, and the config that names them."""
    tiny_model("gpt2").save_pretrained(folder / "backbone")
    make_tokenizer("gpt2").save_pretrained(folder / "backbone")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(22)]
    rows = [json.dumps({"message": text, "label": str(i % 2 + 1)}) for i, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    (folder / "validation.jsonl").write_text("\n".join(rows[:6]))
    files = {f"{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    config = folder / "config.json"
    config.write_text(json.dumps(COMMON | files | {"model_name_or_path": str(folder / "backbone")}))
    return config


def checkpoints(output: Path) -> list[Path]:
    return sorted(output.glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))


def damage(checkpoint: Path, draw: random.Random) -> None:
    """Cuts, changes or removes one of its files."""
    file = draw.choice([f for f in sorted(checkpoint.iterdir()) if f.name != MANIFEST or draw.random() < 0.5])
    content = bytearray(file.read_bytes())
    how = draw.choice(["cut", "changed", "removed"])
    if how == "cut" or file.name == MANIFEST:
        file.write_bytes(content[: draw.randrange(len(content) - 1)])
    elif how == "changed":
        content[draw.randrange(len(content))] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()


def death(
    cause: str, config: Path, output: Path, flags: dict, disk: Disk, draw: random.Random, seconds: float
) -> dict:
    """Starts or resumes a run and ends it; figures of its death, none where it came to its end before."""
    name, before, saving = cause.split(" in ")[0], checkpoints(output), False
    damaged = [f for f in before if fault(f)]  # on purpose
    if cause == FULL:
        room = draw.randrange(60_000)
        if disk.mounted:
            disk.fill(but=room)
        codes = Life.begin(config, output, flags, None if disk.mounted else room // 15).codes()
        disk.drain()
    else:
        life = Life.begin(config, output, flags)
        saving = life.strike(name, name != cause, draw, seconds)
        codes = life.codes()
    if set(codes) == {0}:
        return {}
    # Where one of two processes was struck, the other may have ended otherwise.
    expected = bool(set(codes) & CODES[name]) if len(codes) > 1 else set(codes) <= CODES[name]
    assert expected, f"{cause} ended the processes with {codes}:\n{last_words(config)}"
    broken = [f"{f.name} {fault(f)}" for f in checkpoints(output) if fault(f) and f not in damaged]
    assert not broken, f"{cause} left {broken}"
    assert checkpoints(output) or not (before or 143 in codes), f"{cause} left no checkpoint ({before} were there)"
    left = (output / UNFINISHED).exists()
    lost = len(codes) > 1 and cause != FULL
    return {
        "kills": 1,
        cause: 1,
        "ranks lost, of two": lost,
        "signals in the middle of a save": saving,
        "half-written saves left": left,
    }


def finish(config: Path, output: Path, flags: dict) -> None:
    codes = Life.begin(config, output, flags).codes()
    assert set(codes) == {0}, f"{flags}: {codes}\n{last_words(config)}"


def last_words(config: Path) -> str:
    return config.with_name("log.txt").read_text()[-4000:]


def pass_over_a_damaged_one(config: Path, output: Path, flags: dict, draw: random.Random) -> None:
    """Damages the newest checkpoint: the one before it must be resumed from, and one line say so."""
    older, newest = checkpoints(output)[-2:]
    damage(newest, draw)
    finish(config, output, flags | {"max_steps": 1})  # which is over already
    said = last_words(config)
    assert f"not being whole: {newest.name} " in said and f"Resuming from {older}." in said, said


def live(
    flags: dict, config: Path, disk: Disk, draw: random.Random, causes: deque[str], share: int, figures: Counter
) -> None:
    """One run through so many deaths (or fewer, if it ends before), against the same run that nothing interrupts."""
    whole, output = config.with_name("whole"), disk.folder / "run"
    started = time.monotonic()
    finish(config, whole, flags)
    seconds = time.monotonic() - started
    for _ in range(share):
        died = death(causes[0], config, output, flags, disk, draw, seconds)
        if not died:
            break
        causes.rotate(-1)
        figures.update(died)
        if len(checkpoints(output)) > 1 and draw.random() < 0.2:
            pass_over_a_damaged_one(config, output, flags, draw)
            figures["checkpoints damaged on purpose"] += 1
    finish(config, output, flags)
    file = "adapter_model.safetensors"
    assert (output / file).read_bytes() == (whole / file).read_bytes(), f"{flags}: another prompt"
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (whole, output)]
    for key in ("global_step", "best_metric", "best_global_step"):
        assert states[0][key] == states[1][key], f"{flags}: {key} is {states[1][key]}, not {states[0][key]}"
    figures["runs that ended as if never interrupted, bit for bit"] += 1
    shutil.rmtree(output)
    shutil.rmtree(whole)


def soak(kills: int, seed: int) -> Counter:
    """Runs of all kinds in turn, until so many deaths have been died; then the last one is finished, too."""
    figures, causes = Counter(), deque(CAUSES)
    with tempfile.TemporaryDirectory() as made:
        os.environ["HF_HOME"] = made
        config, disk, draw = write_inputs(Path(made)), Disk(Path(made) / "disk"), random.Random(seed)
        try:
            for flags in itertools.cycle(RUNS.values()):
                if figures["kills"] >= kills:
                    return figures
                share = min(-(-kills // len(RUNS)), kills - figures["kills"])
                live(flags, config, disk, draw, causes, share, figures)
                print(dict(figures), file=sys.stderr, flush=True)
        finally:
            disk.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(soak(**vars(parser.parse_args()))))

"""What a training step of an encoder with a prompt and a head costs, in packed rows, padded rows and PEFT's.

python benchmarks/packed_heads.py [--steps 3] [--batch 16] [--layers 12]

It prints JSON. The encoders are as wide as BERT-base and ModernBERT-base, with random weights. Texts have drawn
lengths: "short" as sentences of reviews have (a mean of 24 tokens, spread 10), "long" as paragraphs (120, spread 60),
and "equal" (64). The three take turns, so that what else the machine does hits all. Medians are printed of the
processor time of forward and backward (with OMP_NUM_THREADS=1: waiting threads count as busy), and the columns that
the encoder computes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import peft
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model
from hf_prompt_tuning.layouts.packed_texts import PackedTexts

P = 20
KINDS = {"short": (24, 10), "long": (120, 60), "equal": (64, 0)}
ENCODERS = {"bert": {}, "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}}


def batch_of(kind: str, size: int) -> dict[str, Tensor]:
    mean, spread = KINDS[kind]
    generator = torch.Generator().manual_seed(1)
    lengths = (torch.randn(size, generator=generator) * spread + mean).clamp(5, 400).long()
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    ids = torch.randint(1000, 20_000, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(size) % 2}


def backbone_of(name: str, layers: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, num_hidden_layers=layers, num_labels=2, pad_token_id=0, **ENCODERS[name])
    return AutoModelForSequenceClassification.from_config(config)


def step_of(model: torch.nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad()

    return step


def measured(name: str, kind: str, size: int, layers: int, steps: int) -> dict[str, object]:
    batch, ours = batch_of(kind, size), {}
    for layout in ("packed", "padded"):
        model = get_prompt_tuning_model(backbone_of(name, layers), PromptTuningConfig(num_virtual_tokens=P)).train()
        model.use_layout("auto" if layout == "packed" else layout)
        ours[layout] = step_of(model, batch)
    theirs = peft.get_peft_model(
        backbone_of(name, layers).requires_grad_(False),
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P),
    ).eval()  # without dropout, as ours
    ways = ours | {"peft": step_of(theirs, batch)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(steps + 1):
        for way, step in ways.items():
            start = time.process_time()
            step()
            if turn:
                seconds[way].append(time.process_time() - start)
    mask = torch.cat([torch.ones(size, P).long(), batch["attention_mask"]], dim=1)
    packed = PackedTexts.of(mask)
    return {
        "seconds": {way: round(statistics.median(values), 3) for way, values in seconds.items()},
        "columns": {"packed": mask.numel() if packed is None else packed.places.new_tensor(packed.shape).prod().item()}
        | {"padded": mask.numel(), "tokens": int(mask.sum())},
    }


def main(steps: int, batch: int, layers: int) -> None:
    settings = {"steps": steps, "batch": batch, "layers": layers, "P": P, "threads": torch.get_num_threads()}
    found = {name: {kind: measured(name, kind, batch, layers, steps) for kind in KINDS} for name in ENCODERS}
    print(json.dumps(settings | found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12)
    main(**vars(parser.parse_args()))

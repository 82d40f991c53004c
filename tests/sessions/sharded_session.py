"""What two processes do that share a backbone (FSDP2, gloo), each step of it beside whole backbones.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.sessions.sharded_session FOLDER

Each writes what happened as JSON, FOLDER/facts-RANK.json; test_sharded.py compares whole and sharded.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, get_prompt_tuning_model
from hf_prompt_tuning.prompts.files import read_prompt
from hf_prompt_tuning.training.callbacks import PromptCheckpointCallback, PromptHubCallback, kept_prompts
from tests.sessions.accelerate_on_cpu import fsdp_on_cpu
from tests.sessions.distributed_session import CLASSES, FREE, RANK, ROWS, curve, plain, trainer
from tests.shared.reference import loss_and_gradient, pad, ragged_rows, tiny_prompt_model
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.versions import AVERAGES_PROMPTS, RESUMES_ON_CPUS, SHARDS_AT_LOADING, SHARDS_ON_CPUS

INITS = {
    "TEXT": {"prompt_tuning_init_text": "Classify if the message is a complaint"},
    "SAMPLE_VOCAB": {},
    "FIRST_VOCAB": {},
    "CLASS_LABELS": {},
}


def shared_out(backbone: PreTrainedModel) -> PreTrainedModel:
    """Each layer a unit, and what is left (embedding, head) another."""
    layers = backbone.transformer.h if hasattr(backbone, "transformer") else backbone.model.layers
    for layer in layers:
        fully_shard(layer)
    return fully_shard(backbone)


def started(name: str, share: Callable) -> dict:
    """The prompts that a backbone gives, and what is remembered of it."""
    facts = {}
    for init, options in INITS.items():
        backbone = share(tiny_model(name))
        torch.manual_seed(7)
        config = PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init=init, **options)
        model = get_prompt_tuning_model(backbone, config, make_tokenizer(), CLASSES)
        facts[init] = model.prompt.tolist()
    kinds = {type(parameter).__name__ for parameter in model.base_model.parameters()}
    return facts | {"fingerprint": model.fingerprint, "kinds": sorted(kinds), "prompt": type(model.prompt).__name__}


def computed(name: str, share: Callable, layout: str, dtype: torch.dtype = torch.float32) -> list[dict]:
    """Loss, gradient, scores and continuations: of batches of different sizes, then of one without labels here."""
    model = tiny_prompt_model(name, backbone=share(tiny_model(name).to(dtype)))
    model.use_layout(layout, max_packed_tokens=20)
    facts = []
    for lengths, labelled in (([7, 3, 9, 4], True), ([5, 2], True), ([6, 4, 3], False)):
        # The second process has a batch of another size, so another number of passes.
        rows = ragged_rows(lengths if RANK == 0 else lengths[:1], seed=RANK, first_labelled=False)
        batch = pad(rows, "left")
        if RANK == 1 and not labelled:
            batch["labels"].fill_(-100)
        loss, gradient = loss_and_gradient(model, model(**batch, only_labelled=True).loss)
        source = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            scores = model(**source, candidates=[[5, 6, 7], [8, 2]]).scores
            logits = model(**source).logits[:, -1].float()
            with model.disable_adapter():
                alone = model(**source, candidates=[[5, 6, 7], [8, 2]]).scores
        texts = model.generate(**source, max_new_tokens=3 + RANK, do_sample=False, pad_token_id=0)
        found = {"gradient": gradient, "scores": scores, "alone": alone, "logits": logits, "texts": texts}
        facts.append({"loss": loss} | {key: value.tolist() for key, value in found.items()})
    return facts


def trained(folder: Path, **shards: Any) -> dict:
    """A run on a backbone that transformers shards as it loads it, or not. The prompt stands behind BOS."""
    backbone = AutoModelForCausalLM.from_pretrained(folder / "backbone", **shards)
    torch.manual_seed(1)
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_position="after_bos")
    model = get_prompt_tuning_model(backbone, config, make_tokenizer(), CLASSES)
    options = {"gradient_accumulation_steps": 2, "weight_decay": 0.5}
    run = trainer(folder / "trained", ROWS, model=model, eval_dataset=ROWS, **options)
    facts = curve(run) | {"metrics": plain(run.evaluate())}
    states = [v for state in run.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    run.save_model()
    dist.barrier()
    words = tiny_model("llama").get_input_embeddings().weight[list(model.active_peft_config.head)]
    head = {"head": read_prompt(folder / "trained").head.tolist(), "embeddings": words.tolist()}
    return facts | head | {"states": [list(state.shape) for state in states if state.dim()]}


def prepared(folder: Path, name: str, sharded: bool) -> dict:
    """A run whose backbone Accelerate shards, evaluated before and after, saved, and resumed from a checkpoint."""
    folder = folder / f"{name} {sharded}"
    options = {"name": name, "template": FREE if name == "gpt2" else CLASSES, "eval_dataset": ROWS}
    options |= {"save_strategy": "epoch"} if name == "llama" else {}
    run = trainer(folder, ROWS, **options | {"eval_strategy": "epoch"})
    run.add_callback(PromptHubCallback("alice/prompt"))
    run.add_callback(PromptCheckpointCallback())
    pushed = []

    def push(model: Any, repo_id: str, **kwargs: Any) -> None:
        pushed.append([len(model.info.nearest_words), model.info.metrics["eval_loss"], len(model.prompt)])
        if len(pushed) == 1:
            raise OSError("the Hub is down")  # on one process alone

    before = plain(run.evaluate_untuned())
    with patch("hf_prompt_tuning.models.soft_prompts.SoftPrompts.push_to_hub", push):
        facts = curve(run) | {"before": before, "after": plain(run.evaluate())}
    dist.barrier()
    kept = {step: prompt.vectors.tolist() for step, prompt in kept_prompts(folder).items()}
    facts |= {"pushed": pushed, "kept vectors": kept}
    run.save_model()
    kinds = {type(parameter).__name__ for parameter in run.model.base_model.parameters()}
    facts |= {"kinds": sorted(kinds), "kept": [type(run.model.prompt).__name__, str(run.model.prompt.dtype)]}
    if name == "llama" and RESUMES_ON_CPUS:
        again = curve(trainer(folder, ROWS, **options), resume=str(folder / "checkpoint-3"))
        facts["again"], facts["files"] = again["prompt"], sorted(f.name for f in (folder / "checkpoint-3").iterdir())
    return facts


def or_refused(run: Callable, *args: Any, **kwargs: Any) -> Any:
    """The run's facts, or the message with which transformers below 5.19 or torch 2.6 is refused."""
    if SHARDS_ON_CPUS and AVERAGES_PROMPTS:
        return run(*args, **kwargs)
    try:
        run(*args, **kwargs)
    except PromptTuningError as error:
        return str(error)
    raise AssertionError("it was not refused")


def session(folder: Path) -> dict:
    dist.init_process_group("gloo")
    if RANK == 0:
        tiny_model("llama").save_pretrained(folder / "backbone")
    dist.barrier()
    facts: dict[str, Any] = {"rank": RANK, "world": dist.get_world_size(), "sharded": {}}
    kinds: dict[str, Callable] = {"whole": lambda backbone: backbone}
    if SHARDS_ON_CPUS:
        kinds["sharded"] = shared_out
    for kind, share in kinds.items():
        facts[kind] = {"started": {name: started(name, share) for name in ("gpt2", "gemma")}}
        for name, layout in (("llama", "padded"), ("llama", "cached"), ("llama", "packed"), ("gpt2", "packed")):
            facts[kind][f"{name} {layout}"] = computed(name, share, layout)
        facts[kind]["gemma packed"] = computed("gemma", share, "packed", torch.bfloat16)
    facts["whole"]["trained"] = trained(folder)
    if SHARDS_AT_LOADING and SHARDS_ON_CPUS:
        facts["sharded"]["trained"] = or_refused(trained, folder, distributed_config=DistributedConfig(fsdp_size=2))
    facts["whole"]["prepared"] = {name: prepared(folder, name, False) for name in ("llama", "gpt2")}
    with fsdp_on_cpu(Path("examples/accelerate/fsdp2.yaml")):
        facts["sharded"]["prepared"] = {name: or_refused(prepared, folder, name, True) for name in ("llama", "gpt2")}
    return facts


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Each process into a file of its own: a pipe would mix what is longer than its buffer.
    (Path(sys.argv[1]) / f"facts-{RANK}.json").write_text(json.dumps(session(Path(sys.argv[1]))))
    dist.destroy_process_group()

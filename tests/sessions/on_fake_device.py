"""Calls, trainers and exports on the CPU and on a made-up accelerator, in a process of their own.

Writes a JSON file: for each check what it gives on each of them, numbers and texts.
"""

import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainingArguments, pipeline, set_seed

from hf_prompt_tuning import (
    FieldTrainer,
    LabelSearch,
    PromptTuningConfig,
    export_tokens,
    inspect_prompt,
    load_ensemble,
    load_prompt,
)
from tests.shared import classifiers, ensembles, exports, head_runs, prompt_pipelines, resumed_runs, teaching, trainers
from tests.shared.fake_device import DEVICE, install, to_fake
from tests.shared.places import place_config
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model
from tests.shared.several_prompts import arguments
from tests.shared.tiny_models import make_tokenizer, tiny_model

CHECKS: dict[str, Callable[[str, Path], Any]] = {}
WORDS = [[20], [21, 22], [21, 23, 24], [25, 26]]
MANY = [[number, number + 1, number + 2] for number in range(20, 71, 3)]
GREEDY = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}


def check(function: Callable[[str, Path], Any]) -> Callable[[str, Path], Any]:
    CHECKS[function.__name__] = function
    return function


def on(model: Any, device: str) -> Any:
    return model if device == "cpu" else to_fake(model)


def batch_on(device: str, seq2seq: bool = False) -> dict[str, Tensor]:
    batch = pad(ragged_rows([6, 3, 4]), "right")
    if seq2seq:
        batch["labels"] = batch["labels"].flip(0)
    return {name: value.to(device) for name, value in batch.items()}


def prompted(name: str, device: str) -> Any:
    """A backbone on the device behind two prompts, in eval mode."""
    model = tiny_prompt_model(name, backbone=on(tiny_model(name), device))
    torch.manual_seed(7)
    model.add_adapter("other", PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"))
    return model.eval()


def gradients(model: Any, loss: Tensor) -> list[Any]:
    loss.backward()
    trained = [weight for weight in model.parameters() if weight.grad is not None]
    found = [weight.grad.norm().item() for weight in trained]
    model.zero_grad()
    return [loss.item(), *found]


def calls(name: str, device: str, layout: str | None) -> list[Any]:
    model = prompted(name, device)
    if layout is not None:
        model.use_layout(layout)
    batch, found = batch_on(device, layout is None), []
    rows = {key: value for key, value in batch.items() if key != "labels"}
    found += gradients(model, model(**batch).loss)
    with torch.no_grad():
        found += model(**rows, candidates=WORDS, adapter_names=["other", "default", "other"]).scores.tolist()
        found += model(**rows, candidates=MANY, search=LabelSearch(top_k=2)).scores.topk(2).values.tolist()
    found += model.generate(**rows, **GREEDY, num_beams=2).tolist()
    for names in (None, ["other", "default", "__base__"]):
        found += gradients(model, model(**batch, adapter_names=names, only_labelled=True).loss)
        torch.manual_seed(3)
        found += model.generate(**rows, **GREEDY | {"do_sample": names is None}, adapter_names=names).tolist()
    return found


LAYOUTS = {"llama": ("auto", "padded", "packed"), "gpt2": ("cached",), "bloom": ("packed",)}
for backbone, layouts in (LAYOUTS | {"t5": (None,), "bart": (None,)}).items():
    for chosen in layouts:
        CHECKS[f"{backbone}, {chosen}"] = lambda device, _, name=backbone, layout=chosen: calls(name, device, layout)


@check
def behind_bos(device: str, folder: Path) -> Any:
    torch.manual_seed(2)
    model = tiny_prompt_model("llama", backbone=on(tiny_model("llama"), device))
    model.add_adapter("bos", place_config("after_bos"))
    batch = batch_on(device)
    batch["input_ids"][:, 0] = 1
    names = ["bos", "default", "bos"]
    rows = {key: value for key, value in batch.items() if key != "labels"}
    found = gradients(model, model(**batch, adapter_names=names).loss)
    return [*found, *model.generate(**rows, **GREEDY, adapter_names=names).tolist()]


def metrics(values: dict[str, Any]) -> dict[str, float]:
    ignored = ("runtime", "per_second", "flos", "memory")
    return {name: value for name, value in values.items() if not any(part in name for part in ignored)}


def losses(trainer: Any) -> list[float]:
    return [log[name] for log in trainer.state.log_history for name in ("loss", "eval_loss") if name in log]


MESSAGES = [{"message": row["message"], "label": row["label"]} for row in resumed_runs.ROWS]


@check
def a_trainer(device: str, folder: Path) -> Any:
    """Trained, stopped, resumed, evaluated, saved, loaded on the device, piped."""
    tokenizer = make_tokenizer("gpt2")
    values = resumed_runs.EVALUATED | {"num_train_epochs": 1}
    whole = resumed_runs.make(folder / "whole", tokenizer, **values)
    whole.train()
    resumed = resumed_runs.make(folder / "whole", tokenizer, **values)
    resumed.train(resume_from_checkpoint=str(folder / "whole/checkpoint-3"))
    assert torch.equal(resumed.model.prompt, whole.model.prompt)
    scores = whole.predict(MESSAGES[:5])
    whole.save_model(str(folder / "prompt"))
    loaded = load_prompt(folder / "prompt", backbone=on(tiny_model("llama"), device), tokenizer=tokenizer)
    assert loaded.model.prompt.device == torch.device(device)
    pipe = pipeline("prompt-classification", model=loaded.model, tokenizer=tokenizer, device=torch.device(device))
    piped = pipe([row["message"] for row in MESSAGES[:5]], batch_size=2, top_k=2)
    return [losses(whole), metrics(whole.evaluate()), scores.predictions.tolist(), piped, whole.model.prompt.tolist()]


@check
def free_text(device: str, folder: Path) -> Any:
    rows = [{"message": row["message"], "answer": row["message"][-5:]} for row in MESSAGES]
    trainer = trainers.make(folder, make_tokenizer("gpt2"), rows, trainers.FREE, eval_rows=rows[:3], average_last=0.5)
    trainer.train()
    output = trainer.predict(rows[:4])
    return [losses(trainer), metrics(output.metrics), list(output.predictions)]


@check
def several_prompts_pipelines(device: str, folder: Path) -> Any:
    tokenizer, found = make_tokenizer("gpt2"), []
    for task, template in (("classification", trainers.TEMPLATE), ("generation", prompt_pipelines.TEXT)):
        model = on(prompt_pipelines.made(tokenizer, template, template), device)
        pipe = pipeline(f"prompt-{task}", model=model, tokenizer=tokenizer, device=torch.device(device))
        found += pipe(prompt_pipelines.ROWS[:3], adapter_names=["p1", "default", "p1"], batch_size=2)
    return found


@check
def an_ensemble(device: str, folder: Path) -> Any:
    trainer = ensembles.make(folder, MESSAGES, save_strategy="steps", save_steps=6)
    trainer.train()
    found = [losses(trainer), metrics(trainer.evaluate()), trainer.predict(MESSAGES[:4]).predictions.tolist()]
    resumed = ensembles.make(folder, MESSAGES, save_strategy="steps", save_steps=6)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    assert torch.equal(resumed.model.prompt, trainer.model.prompt)
    trainer.save_model(str(folder / "prompt"))
    voters = load_ensemble(
        folder / "prompt", backbone=on(tiny_model("llama"), device), tokenizer=make_tokenizer("gpt2")
    )
    return [*found, voters.predict(MESSAGES[:4], batch_size=3)]


@check
def a_field(device: str, folder: Path) -> Any:
    values = dict(num_train_epochs=3, max_grad_norm=1.0, recipe="auto", warmup_steps=0, save_strategy="steps")

    def made() -> Any:
        args = arguments(folder, **values | {"save_steps": 3})
        config = PromptTuningConfig(num_virtual_tokens=4)
        return FieldTrainer(
            tiny_model("llama"), args, config, MESSAGES, None, make_tokenizer("gpt2"), ensembles.TEMPLATE
        )

    trainer = made()
    trainer.train()
    resumed = made()
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert torch.equal(resumed.model.prompt, trainer.model.prompt)
    return [losses(trainer), trainer.model.prompt.tolist()]


@check
def a_teacher(device: str, folder: Path) -> Any:
    set_seed(1)
    trainer = teaching.taught(folder, eval_rows=teaching.ROWS)
    trainer.train()
    return [losses(trainer), metrics(trainer.evaluate())]


@check
def heads(device: str, folder: Path) -> Any:
    found = []
    for kind in ("single", "tags"):
        rows = head_runs.rows_of(kind)
        trainer = head_runs.head_trainer(folder / kind, kind, eval_rows=rows, num_train_epochs=1.0)
        trainer.train()
        found += [losses(trainer), metrics(trainer.evaluate())]
        trainer.save_model(str(folder / kind / "prompt"))
        loaded = load_prompt(
            folder / kind / "prompt",
            backbone=on(head_runs.backbone_of(kind), device),
            tokenizer=classifiers.tokenizer_with_cls(),
        )
        with torch.no_grad():
            found += loaded.model(input_ids=torch.tensor([[1, 20, 21]], device=device)).logits.tolist()
    return found


@check
def exported_and_inspected(device: str, folder: Path) -> Any:
    tokenizer = make_tokenizer("gpt2")
    exports.measured_export.REACH, exports.tokens.SAMPLE_TEXTS = 2.0, exports.SAMPLE_TEXTS[:4]
    found = []
    for name in ("llama", "bart"):
        model = on(exports.made(name, tokenizer), device)
        export_tokens(model, folder / name, tokenizer=tokenizer)
        entries = exports.entries(folder / name)
        found += [[entry["token_ids"], entry["prefix"]] for entry in entries.values()]
        rows = [{"message": row["message"], "answer": "the town"} for row in MESSAGES[:3]]
        found.append(json.loads(inspect_prompt(model, tokenizer, rows).to_json()))
    return found


def refusals() -> list[str]:
    """What the device refuses."""
    there, here = torch.arange(3.0, device=DEVICE), torch.arange(3.0)
    tried: dict[str, Callable[[], Any]] = {
        "sum": lambda: there + here,
        "sum with a number": lambda: there + torch.tensor(1.0),
        "number to cat": lambda: torch.stack([there[0], torch.tensor(1.0)]),
        "numpy": lambda: there.numpy(),
        "generator": lambda: torch.randperm(3, generator=torch.Generator(), device=DEVICE),
        "index": lambda: there[torch.tensor([0])],
        "index of the CPU's": lambda: here[torch.zeros(1, dtype=torch.long, device=DEVICE)],
        "embedding": lambda: torch.nn.functional.embedding(torch.tensor([0]), there[:, None]),
        "copy": lambda: there.copy_(here),
        "in place": lambda: here.add_(there),
    }
    refused = []
    for name, call in tried.items():
        try:
            call()
        except (RuntimeError, TypeError):
            refused.append(name)
    return refused


def results(name: str, device: str) -> Any:
    """What a check gives on a device, or the text of its error."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return CHECKS[name](device, Path(folder))
        except Exception:
            return traceback.format_exc()


def main(file: str, names: list[str]) -> None:
    logging.disable(logging.WARNING)
    install()
    now = ["cpu"]
    own, finish = TrainingArguments.device.fget, TrainingArguments.__post_init__

    def without_pinned_memory(self: Any) -> None:
        finish(self)
        self.dataloader_pin_memory = False

    # transformers knows the accelerators by name.
    TrainingArguments.__post_init__ = without_pinned_memory
    TrainingArguments.device = property(lambda self: own(self) and torch.device(now[0]))
    Accelerator.device = property(lambda self: torch.device(now[0]))
    found: dict[str, Any] = {"refusals": refusals()}
    for name in names or CHECKS:
        found[name] = {}
        for device in ("cpu", DEVICE):
            now[0] = device
            found[name][device] = results(name, device)
    Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

"""What two processes do, each step of it beside one process with the same global batch.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.sessions.distributed_session FOLDER
    python -m tests.sessions.distributed_session FOLDER

With `kill` behind FOLDER, the second process is killed in its fifth step instead. Either prints what happened as
JSON, as its first process saw it; test_distributed.py compares them.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import TrainerCallback

from hf_prompt_tuning import PromptTemplate, PromptTuningArguments, PromptTuningError, PromptTuningTrainer, Teacher
from hf_prompt_tuning.prompts.files import read_prompt
from tests.shared.answer_rows import answer_rows, answer_trainer
from tests.shared.head_runs import head_of, head_trainer, rows_of
from tests.shared.places import placed_model
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import make_tokenizer
from tests.shared.versions import RESUMES_ON_CPUS

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
CLASSES = PromptTemplate(
    "Message : {message} Label :", label_column="label", label_words={"1": "complaint", "2": "no complaint"}
)
FREE = PromptTemplate("Message : {message} Answer :", target="{answer}")
TEXTS = ["never came", "thank you", "nobody answers at all", "great help", "awful", "a small dog and a big cat"]
ROWS = [{"message": f"{TEXTS[i % 6]} {i}", "label": "12"[i % 2], "answer": TEXTS[i % 6][-7:]} for i in range(11)]
TOKENS = [{"input_ids": list(range(5 + i, 11 + 2 * i)), "labels": [-100, *range(6 + i, 11 + 2 * i)]} for i in range(7)]


def trainer(folder: Path, rows: Any, name: str = "llama", model: Any = None, **values: Any) -> PromptTuningTrainer:
    """A run whose global batch is four rows (times `gradient_accumulation_steps`), however many processes."""
    of_trainer = ("template", "teacher", "eval_dataset", "compute_metrics")
    chosen = {key: values.pop(key) for key in of_trainer if key in values}
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4 // WORLD,
        "per_device_eval_batch_size": 4 // WORLD,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "ddp_timeout": 60,
    }
    return PromptTuningTrainer(
        model if model is not None else tiny_prompt_model(name, num_virtual_tokens=4),
        PromptTuningArguments(**defaults | values),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=make_tokenizer("t5" if name == "t5" else "gpt2"),
        **{"template": CLASSES} | chosen,
    )


def curve(run: PromptTuningTrainer, resume: str | None = None) -> dict:
    run.train(resume_from_checkpoint=resume)
    return {
        "losses": [log["loss"] for log in run.state.log_history if "loss" in log],
        "norms": [log["grad_norm"] for log in run.state.log_history if "grad_norm" in log],
        "prompt": run.model.prompt.flatten().tolist(),
    }


def trained(folder: Path) -> dict:
    """Curves and prompts: of an uneven last batch, accumulation, encoder-decoders, and batches without labels."""
    facts = {
        "uneven": curve(trainer(folder, ROWS)),
        "fewer rows than processes": curve(trainer(folder, ROWS[:1])),
        "accumulated": curve(trainer(folder, ROWS, gradient_accumulation_steps=2)),
        "encoder-decoder": curve(trainer(folder, ROWS, name="t5")),
        "grouped by length": curve(trainer(folder, ROWS, train_sampling_strategy="group_by_length")),
    }
    run = trainer(folder, ROWS, eval_dataset=ROWS)
    run.evaluate_untuned()
    facts["evaluated before"] = curve(run)
    teacher = Teacher(text="Say whether it is a complaint")
    options = {"teacher": teacher, "distillation_weight": 0.7}
    facts["taught"] = curve(trainer(folder, ROWS, template=FREE, gradient_accumulation_steps=2, **options))
    facts["taught labels"] = curve(trainer(folder, ROWS, distill_over="labels", **options))
    greedy = {"teacher_writes": 1, "teacher_temperature": 0.0, "teacher_max_new_tokens": 4}
    facts["taught what the teacher writes"] = curve(trainer(folder, ROWS, template=FREE, **options, **greedy))
    # With two processes the second has these rows alone in its first batch.
    bare = [row | {"labels": [-100] * len(row["input_ids"])} if i in (2, 3) else row for i, row in enumerate(TOKENS)]
    for layout in ("padded", "cached", "packed"):
        run = trainer(folder, bare, template=None, layout=layout, train_sampling_strategy="sequential")
        facts[f"no labels, {layout}"] = curve(run)
    return facts


def headed(folder: Path) -> dict:
    """Curves, heads and predictions of classification heads; the last batch is uneven, and a number is -100."""
    facts = {}
    weights = {"single": {"class_weights": "balanced"}, "several": {"pos_weight": [1, 2, 3]}}
    for kind in ("single", "numbers", "several", "tags"):
        options = {"per_device_train_batch_size": 4 // WORLD, "per_device_eval_batch_size": 4 // WORLD}
        rate = 1e-5 if kind == "numbers" else 0.1  # the square of an error of 100 is steep
        options |= {"num_train_epochs": 3, "optim": "sgd", "max_grad_norm": 0.0, "ddp_timeout": 60}
        options |= {"learning_rate": rate, "head_learning_rate": rate}
        run = head_trainer(folder, kind, **options, **weights.get(kind, {}))
        facts[kind] = curve(run)
        facts[kind]["head"] = [weight.flatten().tolist() for weight in head_of(run.model).values()]
        output = run.predict(Dataset.from_list(rows_of(kind)[:5]))
        facts[kind]["predictions"] = np.asarray(output.predictions).astype(float).tolist()
        facts[kind]["metrics"] = plain(output.metrics)
    return facts


def answered(folder: Path) -> dict:
    """A curve, head, answers and metrics of rows whose windows fill no last batch, in training and in evaluation."""
    options = {"per_device_train_batch_size": 4 // WORLD, "per_device_eval_batch_size": 4 // WORLD}
    options |= {"num_train_epochs": 3, "optim": "sgd", "max_grad_norm": 0.0, "ddp_timeout": 60}
    options |= {"learning_rate": 0.1, "head_learning_rate": 0.1}
    run = answer_trainer(folder, rows=answer_rows(without=[4]), **options)
    facts = curve(run) | {"windows": len(run.train_dataset)}
    facts["head"] = [weight.flatten().tolist() for weight in head_of(run.model).values()]
    for many in (5, 1):
        output = run.predict(Dataset.from_list(answer_rows(without=[0])[:many]))
        found = {"metrics": plain(output.metrics), "references": output.label_ids}
        facts[f"{many} rows"] = found | {"answers": [list(answer) for answer in output.predictions]}
    return facts


def evaluated(folder: Path) -> dict:
    """Metrics and predictions of all rows, each once."""
    facts = {}
    for name in ("llama", "t5"):
        for kind, template in (("classes", CLASSES), ("free", FREE)):
            run = trainer(folder, None, name=name, template=template, eval_dataset=ROWS)
            for many in (11, 1):
                output = run.predict(Dataset.from_list(ROWS[:many]))
                found = {"metrics": plain(output.metrics), "predictions": np.asarray(output.predictions).tolist()}
                facts[f"{name} {kind} {many}"] = found | {"references": np.asarray(output.label_ids).tolist()}
    seen = {}

    def keep(prediction: Any) -> dict:
        seen.update(logits=prediction.predictions.astype(float).tolist(), labels=prediction.label_ids.tolist())
        return {"rows": len(prediction.label_ids)}

    run = trainer(folder, None, template=None, eval_dataset=Dataset.from_list(TOKENS), compute_metrics=keep)
    facts["tokens"] = {"metrics": plain(run.evaluate()), **seen}
    return facts


def plain(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "time" not in name and "second" not in name}


def averaged_by_process(folder: Path) -> dict:
    """One step where each process divides by its own labelled tokens; and one without any label."""
    options = {"average_tokens_across_devices": False, "train_sampling_strategy": "sequential", "max_steps": 1}
    facts = {"labelled": curve(trainer(folder, TOKENS[:4], template=None, **options))}
    bare = [row | {"labels": [-100] * len(row["input_ids"])} for row in TOKENS[:4]] + TOKENS[4:5]  # not reached
    facts["no labels"] = curve(trainer(folder, bare, template=None, **options))
    return facts


def started_apart(folder: Path) -> dict:
    """Processes whose prompts differ, and processes whose backbones do."""
    model = tiny_prompt_model("llama", num_virtual_tokens=4)
    facts: dict[str, Any] = {}
    with torch.no_grad():
        model.prompt.add_(RANK)
    run = trainer(folder, None, model=model, eval_dataset=ROWS)
    if WORLD > 1:
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
        facts["timeout"] = backend.options._timeout.total_seconds()
    facts |= {"loss": run.evaluate()["eval_loss"]}
    try:
        trainer(folder, ROWS, model=tiny_prompt_model("llama", num_virtual_tokens=4, seed=RANK))
    except PromptTuningError as error:
        facts["refused"] = str(error)
    return facts


def streamed(folder: Path) -> dict:
    """A stream of eight rows trains, in batches that it fills; to evaluate it is refused."""
    stream = Dataset.from_list(ROWS[:8]).to_iterable_dataset()
    facts = curve(trainer(folder, stream, max_steps=4))
    try:
        trainer(folder, None, eval_dataset=stream).evaluate()
    except PromptTuningError as error:
        facts["refused"] = str(error)
    return facts


def on_the_wire(folder: Path) -> dict:
    """The messages of a run of three steps, by name, and how many numbers each carries."""
    run = trainer(folder, ROWS * 2, max_steps=3, logging_steps=9)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True, acc_events=True) as profile:
        run.train()
    sent = [e for e in profile.events() if e.name.startswith("gloo:")]
    facts: dict = {"sent": [(e.name, e.input_shapes[0] if e.input_shapes else []) for e in sent]}  # a barrier has none
    if WORLD > 1:
        logged = run.model_wrapped._get_ddp_logging_data()
        facts |= {name: logged[name] for name in ("bucket_sizes", "num_parameter_tensors")}
    return facts


def saved(folder: Path) -> dict:
    """What each process writes, on a disk of its own, in a run that saves, evaluates and pushes."""
    own = folder / f"process_{RANK}"
    pushing = {"push_to_hub": True, "hub_model_id": "alice/prompt"} if "HF_ENDPOINT" in os.environ else {}
    run = trainer(own, ROWS, eval_dataset=ROWS, save_strategy="epoch", num_train_epochs=1, **pushing)
    run.train()
    run.evaluate()
    run.save_model(_internal_call=True)
    if pushing:
        run.push_to_hub()
    files: list[Any] = [None] * WORLD
    mine = sorted(str(file.relative_to(own)) for file in own.rglob("*") if file.is_file())
    if WORLD > 1:
        dist.all_gather_object(files, mine)
    return {"files": files if WORLD > 1 else [mine]}


class Kill(TrainerCallback):
    """Kills the last process in its fifth step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5 and RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def long_run(folder: Path) -> PromptTuningTrainer:
    """Nine steps that are saved every two."""
    return trainer(folder, ROWS, num_train_epochs=3, save_strategy="steps", save_steps=2)


def killed(folder: Path) -> None:
    run = long_run(folder / "killed")
    run.add_callback(Kill())
    run.train()


def resumed(folder: Path) -> dict:
    """A run that nothing happened to, and the killed one from its last checkpoint."""
    facts = {"whole": curve(long_run(folder / "whole"))}
    if (folder / "killed").exists() and RESUMES_ON_CPUS:
        facts["killed"] = curve(long_run(folder / "killed"), resume=str(folder / "killed/checkpoint-4"))
    return facts


def placed(folder: Path) -> dict:
    """Prompts behind a head, under weight decay: what trains, what the optimizer knows, and what is saved."""
    facts = {}
    for place, optim in (("after_bos", "adamw_torch"), ("system", "adafactor"), ("system", "sgd")):
        own = folder / f"{place} {optim}"
        options = {"optim": optim, "learning_rate": 0.1, "weight_decay": 0.5, "num_train_epochs": 1}
        options |= {"save_strategy": "steps", "save_steps": 1}
        run = trainer(own, ROWS, model=placed_model("llama", place), **options)
        facts[f"{place} {optim}"] = found = curve(run)
        states = [v for state in run.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
        if WORLD > 1:
            dist.barrier()
        read = read_prompt(own / f"checkpoint-{run.state.global_step}")
        ids = list(run.model.active_peft_config.head)
        found["states"] = sorted({tuple(state.shape) for state in states if state.dim()})
        found["head"], found["saved"] = read.head.tolist(), read.vectors.flatten().tolist()
        found["embeddings"] = run.model.word_embeddings.weight[ids].tolist()
        if WORLD == 1 or RESUMES_ON_CPUS:
            again = trainer(own, ROWS, model=placed_model("llama", place, random_range=0.1), **options)
            found["resumed"] = curve(again, resume=str(own / "checkpoint-1"))["prompt"]
    return facts


def session(folder: Path) -> dict:
    parts = (
        trained,
        headed,
        answered,
        evaluated,
        averaged_by_process,
        started_apart,
        streamed,
        on_the_wire,
        saved,
        resumed,
        placed,
    )
    return {"world": WORLD} | {part.__name__: part(folder) for part in parts}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:] == ["kill"]:
        killed(Path(sys.argv[1]))
    found = session(Path(sys.argv[1]))
    if RANK == 0:
        print(json.dumps(found))
    if dist.is_initialized():
        dist.barrier()  # no process goes while the other still speaks to it
        dist.destroy_process_group()

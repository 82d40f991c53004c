"""Prompts on this machine's accelerator, beside the CPU. Run by `make test-device`; pytest does not collect it itself.

The command trains the demo's prompt in each precision. Then calls on the accelerator give what they give on the CPU.
Without an accelerator both are the CPU, and fp16 is left out, which Accelerate computes on accelerators alone.
"""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from hf_prompt_tuning import load_ensemble, load_prompt
from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone
from tests.shared.command import command

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
DEMO = ["run_prompt_tuning.py", "examples/complaints.yaml", "--max_eval_samples", 24, "--do_predict", "false"]
PRECISIONS = {
    "fp32": [],
    "bf16": ["--bf16", "true"],
    "loaded in bf16": ["--dtype", "bfloat16"],
    "fp16": ["--fp16", "true"],
    "loaded in fp16": ["--dtype", "float16", "--fp16", "true"],
}
HALF = pytest.mark.skipif(DEVICE.type == "cpu", reason="Accelerate computes fp16 on accelerators alone")
LARGEST = {
    dtype: max(1e-3, 10 * 20 * torch.finfo(dtype).eps) for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
"""The largest difference from the CPU's fp32: ten roundings of a log-likelihood of 20."""
NAMES = ["default", "other", "__base__"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a prompt lies that was trained for 16 steps, with a checkpoint of step 8."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, "--save_strategy", "steps", "--save_steps", 8)
    return folder


@pytest.fixture(scope="module")
def backbone():
    backbone, tokenizer = load_backbone(
        ModelArguments(".cache/smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")
    )
    tokenizer.pad_token = tokenizer.eos_token
    return backbone, tokenizer


def train(folder, *words, start=DEMO, steps=16):
    place = ["--use_cpu", "true"] if DEVICE.type == "cpu" else []  # without it transformers refuses bf16 there
    done = command(*start, "--output_dir", folder, "--max_steps", steps, *words, *place)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize("name", [pytest.param(name, marks=HALF if "fp16" in name else ()) for name in PRECISIONS])
def test_it_learns(name, tmp_path):
    train(tmp_path, *PRECISIONS[name])
    untuned, tuned = (json.loads((tmp_path / f"{split}_results.json").read_text()) for split in ("untuned", "eval"))
    assert tuned["eval_loss"] < 0.7 * untuned["untuned_loss"]
    assert load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].dtype == torch.float32


def test_a_resumed_run_ends_the_same(folder, tmp_path):
    train(tmp_path, "--save_strategy", "steps", "--save_steps", 8, "--resume_from_checkpoint", folder / "checkpoint-8")
    whole, resumed = (
        load_file(place / "adapter_model.safetensors")["prompt_embeddings"] for place in (folder, tmp_path)
    )
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize(
    "words",
    [["--data_seeds", 0, 1, "--average_last", 0.5], ["--recipe", "auto"], ["--task_type", "SEQ_CLS"]],
    ids=["an ensemble", "the recipe auto", "a head"],
)
def test_other_runs(words, tmp_path, backbone):
    train(tmp_path, *words, steps=8)
    if "--data_seeds" in words:
        model, tokenizer = backbone
        ensemble = load_ensemble(tmp_path, backbone=copy.deepcopy(model).to(DEVICE), tokenizer=tokenizer)
        [record] = ensemble.predict([{"message": "the parcel never came"}])
        assert record["votes"].keys() == {"prompt_1", "prompt_2"}


def test_a_teacher(tmp_path):
    start = ["run_prompt_tuning.py", "examples/teach.yaml", "--max_train_samples", 40, "--max_eval_samples", 10]
    train(tmp_path, start=start, steps=2)


@pytest.mark.parametrize("dtype", LARGEST)
@torch.no_grad()
def test_calls_give_what_they_give_on_the_cpu(dtype, folder, backbone):
    expected, found = (results(folder, *backbone, *place) for place in (("cpu", torch.float32), (DEVICE, dtype)))
    for name, values in expected.items():
        if values.dtype == torch.long:
            assert dtype != torch.float32 or torch.equal(found[name], values), name
        else:
            torch.testing.assert_close(
                found[name], values, rtol=0, atol=LARGEST[dtype], msg=lambda m, n=name: f"{n}: {m}"
            )


def results(folder, backbone, tokenizer, device, dtype):
    """Scores and texts behind a prompt, in each layout, and of a batch in which every row has its own."""
    model = load_prompt(folder, backbone=copy.deepcopy(backbone).to(device, dtype), tokenizer=tokenizer).model
    model.load_adapter(folder / "checkpoint-8", "other")
    texts = [
        f"Message : {text} Label :" for text in ("thank you for the quick help", "why is my line down again", "hi")
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True).to(device)
    words = (" complaint", " no complaint")
    labels = [[*tokenizer(word, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for word in words]
    found = {"the chosen layout": model(**batch, candidates=labels).scores}
    for layout in ("padded", "cached", "packed"):
        model.use_layout(layout)
        found[layout] = model(**batch, candidates=labels).scores
    found["a prompt for each row"] = model(**batch, candidates=labels, adapter_names=NAMES).scores
    greedy = {"max_new_tokens": 8, "do_sample": False}
    found["greedy"] = model.generate(**batch, **greedy)
    found["beams"] = model.generate(**batch, **greedy, num_beams=3)
    found["greedy behind a prompt for each row"] = model.generate(**batch, **greedy, adapter_names=NAMES)
    assert model.generate(**batch, max_new_tokens=8, do_sample=True).device.type == torch.device(device).type
    return {
        name: values.cpu() if values.dtype == torch.long else values.float().cpu() for name, values in found.items()
    }

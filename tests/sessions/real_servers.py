"""Real servers answer what our `generate` answers. Run by `make test-serving`; pytest does not collect it by itself.

Three prompts of the examples are trained, one for each place that a prompt may stand in, and exported together. The
server of llama.cpp gets 120 messages for each of them by HTTP, from eight clients and in mixed order, and that of
transformers a third of these.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prompt_tuning import load_prompt
from hf_prompt_tuning.serving.measured_export import LOGITS
from tests.sessions.server_process import ask, started, texts
from tests.shared.repository import ROOT
from tools import servers

BACKBONE = ROOT / ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEAMS = {
    "model_name_or_path": ".cache/smollm2",
    "gguf_file": BACKBONE.name,
    "train_file": "examples/teams_train.jsonl",
    "validation_file": "examples/teams_test.jsonl",
    "source_template": "{text}\nThe team that can help:",
    "label_column": "label",
    "num_virtual_tokens": 10,
    "prompt_tuning_init_text": "Billing, delivery or technical support?",
    "prompt_position": "after_bos",
    "learning_rate": "2e-2",
    "per_device_train_batch_size": 6,
    "num_train_epochs": 5,
    "eval_strategy": "no",
    "save_strategy": "no",
}
TRAINING = {
    "complaints": ["examples/complaints.yaml"],
    "teams": [word for name, value in TEAMS.items() for word in (f"--{name}", str(value))],
    "bicycles": ["examples/bicycle_chats.yaml", "--prompt_position", "system"],
}
"""The words of the command by the prompt's name: at the start, behind BOS, and in the system turn."""
MESSAGES = [json.loads(line)["message"] for line in (ROOT / "examples/complaints_test.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Row:
    """A message behind a prompt.

    Attributes:
        prompt: the prompt's name.
        message: the message.
        source: the token ids that our `generate` is given.
        answer: the token ids that it gives, without the end token.
        text: its text.
    """

    prompt: str
    message: str
    source: list[int]
    answer: list[int]
    text: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """The folders of the prompts. In a folder that is named by PROMPTS they are kept."""
    folder = Path(os.environ.get("PROMPTS") or tmp_path_factory.mktemp("prompts")).resolve()
    for name, words in TRAINING.items():
        if not (folder / name / "adapter_model.safetensors").is_file():
            run("run_prompt_tuning.py", *words, "--output_dir", folder / name, "--use_cpu", "true")
    return {name: folder / name for name in TRAINING}


def run(*words: Any, **variables: str) -> None:
    """Run a Python program in the repository."""
    values = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)} | variables
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=values, check=True)


def export(trained: dict[str, Path], kind: str, out: Path, file: Path = BACKBONE) -> Path:
    """Export all prompts by the command, with the backbone of a GGUF file."""
    words = ["--to", kind, out, "--backbone", file.parent, "--gguf_file", file.name]
    run("-m", "hf_prompt_tuning", "export", *(f"{name}={folder}" for name, folder in trained.items()), *words)
    return out


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory) -> Path:
    return export(trained, "tokens", tmp_path_factory.mktemp("checkpoint") / "served")


@pytest.fixture(scope="module")
def prompts(trained) -> dict[str, Any]:
    """The prompt-tuning models by name, on one backbone."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    loading = dict(pretrained_model_name_or_path=BACKBONE.parent, gguf_file=BACKBONE.name)
    backbone = AutoModelForCausalLM.from_pretrained(**loading).eval()
    tokenizer = AutoTokenizer.from_pretrained(**loading)
    return {name: load_prompt(folder, backbone=backbone, tokenizer=tokenizer) for name, folder in trained.items()}


@pytest.fixture(scope="module")
def rows(prompts, checkpoint) -> list[Row]:
    """What our `generate` answers to each message behind each prompt, in mixed order."""
    described = json.loads((checkpoint / "prompt.json").read_text())
    answered = [
        row
        for name, prompt in prompts.items()
        for i in range(0, len(MESSAGES), 24)
        for row in answers(name, prompt, MESSAGES[i : i + 24], described[name]["request"]["max_tokens"])
    ]
    random.Random(0).shuffle(answered)
    assert len({row.text for row in answered}) > len(MESSAGES) / 2  # they depend on the message
    return answered


def answers(name: str, prompt: Any, messages: list[str], limit: int) -> list[Row]:
    model, tokenizer, template = prompt
    tokenizer.padding_side = "left"
    if name == "bicycles":
        system = {"role": "system", "content": template.chat.system_message}
        chats = [[system, {"role": "user", "content": message}] for message in messages]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
    else:
        column = template.source_columns[0]
        batch = tokenizer([template.source_text({column: m}) for m in messages], return_tensors="pt", padding=True)
    ids = model.generate(**batch, max_new_tokens=limit, do_sample=False)[:, batch["input_ids"].shape[1] :]
    found = []
    for message, source, mask, answer in zip(messages, batch["input_ids"], batch["attention_mask"], ids, strict=True):
        ends = (answer == tokenizer.eos_token_id).nonzero()
        kept = answer[: int(ends[0])] if len(ends) else answer
        text = tokenizer.decode(kept, skip_special_tokens=True)
        found.append(Row(name, message, source[mask.bool()].tolist(), kept.tolist(), text))
    return found


def request(row: Row, described: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what docs/how-to/serve-anywhere.md says that a client sends: the path and the body."""
    entry = described[row.prompt]
    filled = entry["template"].format(text=row.message, message=row.message)
    if "messages" in entry["request"]:
        *first, last = entry["request"]["messages"]
        return entry["endpoint"], entry["request"] | {"messages": [*first, last | {"content": filled}]}
    return entry["endpoint"], entry["request"] | {"prompt": entry["prefix"] + filled + entry["suffix"]}


def require_same(url: str, folder: Path, rows: list[Row], prompts: dict[str, Any]) -> None:
    """Assert that a server answers each row as our `generate` does.

    A row may differ from a token on at which two logits are the same to fp32's rounding, for servers sum in an order
    of their own.
    """
    described = json.loads((folder / "prompt.json").read_text())
    served = texts(url, [request(row, described) for row in rows])
    differing = [(row, text) for row, text in zip(rows, served, strict=True) if text != row.text]
    gaps = [gap(row, text, prompts[row.prompt]) for row, text in differing]
    told = [
        f"{row.prompt}, apart by {apart:.1e} of the largest logit: {row.text!r}, served: {text!r}"
        for (row, text), apart in zip(differing, gaps, strict=True)
    ]
    print("\n".join([f"\n{len(rows) - len(differing)} of {len(rows)} are equal", *told]))
    assert all(apart <= LOGITS[torch.float32] for apart in gaps), "\n".join(told)


@torch.no_grad()
def gap(row: Row, served: str, prompt: Any) -> float:
    """Return how far the two logits are apart, relative to the largest one, where an answer goes another way."""
    model, tokenizer, _ = prompt
    written = [
        tokenizer.decode(row.answer[:length], skip_special_tokens=True) for length in range(len(row.answer) + 1)
    ]
    at = max(length for length, text in enumerate(written) if served.startswith(text))
    theirs = [*tokenizer(served[len(written[at]) :], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][0]
    ours = [*row.answer, tokenizer.eos_token_id][at]
    logits = model(input_ids=torch.tensor([row.source + row.answer[:at]])).logits[0, -1]
    return float((logits[ours] - logits[theirs]) / logits.abs().max())


def ids_of(url: str, folder: Path, rows: list[Row], prompts: dict[str, Any]) -> list[list[int]]:
    """Return the ids that llama.cpp reads of each row's request. Assert that they are ours: head, prompt and text."""
    described, found = json.loads((folder / "prompt.json").read_text()), []
    for row in rows:
        _, body = request(row, described)
        text = ask(url, "/apply-template", body)["prompt"] if "messages" in body else body["prompt"]
        found.append(ask(url, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"])
        head = list(prompts[row.prompt].model.peft_config["default"].head_token_ids or ())
        rest = row.source[len(head) :] if row.source[: len(head)] == head else row.source
        assert found[-1] == [*head, *described[row.prompt]["token_ids"], *rest], (row.prompt, row.message)
    return found


@torch.no_grad()
def distances(url: str, rows: list[tuple[list[int], Any, list[int]]]) -> list[float]:
    """Return how far llama.cpp's log probabilities of a row's five most likely next tokens are from a model's, mean.

    A row is the ids for llama.cpp, the model, and the ids for it.
    """
    found = []
    for theirs, model, ours in rows:
        body = {"prompt": theirs, "n_predict": 1, "n_probs": 5, "temperature": 0}
        best = ask(url, "/completion", body)["completion_probabilities"][0]["top_logprobs"]
        logp = model(input_ids=torch.tensor([ours])).logits[0, -1].log_softmax(-1)
        found.append(mean(abs(float(logp[token["id"]]) - token["logprob"]) for token in best))
    return found


@pytest.fixture(scope="module")
def full_file(prompts, tmp_path_factory) -> Path:
    """The backbone in F32, as llama.cpp's converter writes it."""
    model, tokenizer, _ = next(iter(prompts.values()))
    folder = tmp_path_factory.mktemp("backbone")
    model.get_base_model().save_pretrained(folder / "hub")
    tokenizer.save_pretrained(folder / "hub")
    return converted(folder / "hub", folder / "full.gguf")


def converted(checkpoint: Path, file: Path) -> Path:
    """Write a checkpoint as a GGUF file of F32 by llama.cpp's converter."""
    words = [checkpoint, "--outfile", file, "--outtype", "f32"]
    run(servers.llama_cpp() / "convert_hf_to_gguf.py", *words, PYTHONPATH="")
    return file


def llama_cpp(file: Path, *words: str) -> list[str]:
    """Return the words that start llama.cpp's server with a file, for eight clients."""
    return [str(servers.llama_server()), "-m", str(file), "--parallel", "8", *words]


EXACT = ("--cache-type-k", "f32", "--cache-type-v", "f32")
"""The cache is F16 otherwise."""


def test_llama_cpp_serves_a_file_of_full_precision(trained, full_file, rows, prompts, tmp_path):
    folder = export(trained, "gguf", tmp_path / "served_gguf", full_file)
    with started(llama_cpp(folder / full_file.name, *EXACT), tmp_path) as url:
        ids_of(url, folder, rows, prompts)
        require_same(url, folder, rows, prompts)


def test_llama_cpp_serves_a_checkpoint_that_its_converter_took(checkpoint, rows, prompts, tmp_path):
    with started(llama_cpp(converted(checkpoint, tmp_path / "served.gguf"), *EXACT), tmp_path) as url:
        ids_of(url, checkpoint, rows, prompts)
        require_same(url, checkpoint, rows, prompts)


def test_llama_cpp_serves_a_quantized_file(trained, rows, prompts, tmp_path):
    """It rounds activations to 8 bits, so it is told how near it is. Each row is nearer to its prompt than to none."""
    folder, some = export(trained, "gguf", tmp_path / "served_gguf"), rows[::3]
    with started(llama_cpp(folder / BACKBONE.name), tmp_path) as url:
        read = ids_of(url, folder, some, prompts)
        models = [prompts[row.prompt].model for row in some]
        bare = [model.get_base_model() for model in models]
        sources = [row.source for row in some]
        behind = distances(url, list(zip(read, models, sources, strict=True)))
        from_bare = distances(url, list(zip(read, bare, sources, strict=True)))
        alone = distances(url, list(zip(sources, bare, sources, strict=True)))
    apart = [f"{median(found):.3f}" for found in (behind, from_bare, alone)]
    print(
        "\nbehind a prompt {} from ours behind it, {} from ours without; without a prompt {} from ours".format(*apart)
    )
    assert all(own < other for own, other in zip(behind, from_bare, strict=True))


def test_transformers_serves_the_checkpoint(checkpoint, rows, prompts):
    """Every third row: it computes each request for itself, so it takes seconds for one."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", checkpoint.name]
    with started(command, checkpoint.parent, PYTHONPATH=str(servers.packages()), OMP_NUM_THREADS="1") as url:
        require_same(url, checkpoint, rows[::3], prompts)

"""The code of the how-to pages on pipelines, search and transfer runs as it is written."""

from itertools import pairwise

import pytest
import torch
from datasets import Dataset

from tests.shared.doc_pages import blocks, run
from tests.shared.foreign_trainers import rows_of
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import make
from tests.shared.versions import HAS_TRL

# torch's word on a machine without a GPU, for TrainingArguments' defaults, and TRL's two on its own arguments
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pin_memory.*:UserWarning",
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning",
    "ignore:.*return_outputs=True:FutureWarning",
)


def test_existing_pipelines(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    names = {"backbone": tiny_model("llama"), "tokenizer": tokenizer, "rows": rows_of()}
    prompts, steps = [], {}
    for code in blocks("how-to/existing-pipelines.md"):
        if "from trl import" in code and not HAS_TRL:
            continue
        exec(compile(code, "how-to/existing-pipelines.md", "exec"), names)
        prompts.append(names["model"].prompt.detach().clone())
        if "trainer" in names:
            steps[type(names["trainer"]).__name__] = names["trainer"].state.global_step
    batch = names["collate"]([rows_of()[0]])
    assert batch["shift_labels"].shape[1] == batch["labels"].shape[1] + 1
    for folder in ("out", "out-dpo") if HAS_TRL else ("out",):
        assert (tmp_path / folder / "adapter_model.safetensors").exists() and not (tmp_path / folder / "ref").exists()
    trl = {"SFTTrainer": 3, "DPOTrainer": 3, "KTOTrainer": 3, "GRPOTrainer": 6, "RLOOTrainer": 6}
    assert steps == {"Trainer": 6} | (trl if HAS_TRL else {})
    assert all(not torch.equal(before, after) for before, after in pairwise(prompts[:2] + prompts[3:]))
    assert list(names["model"].peft_config) == ["default"]


def test_search(tmp_path, monkeypatch, tokenizer, messages):
    monkeypatch.chdir(tmp_path)
    rows = {"train_rows": messages, "validation_rows": messages[:6]}
    names = run("how-to/search.md", {"backbone": tiny_model("llama"), "tokenizer": tokenizer, **rows})
    assert len(names["trainer"].model.prompt) == names["best"].hyperparameters["num_virtual_tokens"]
    assert (tmp_path / "out-search/adapter_model.safetensors").exists()


def test_transfer(tmp_path, tokenizer, messages):
    trainer = make(tmp_path, tokenizer, messages)
    run("how-to/transfer.md", {"trainer": trainer, "calls": messages[:4], "mails": Dataset.from_list(messages[4:])})
    assert trainer.model.info.transfer["mails"]["rows"] == 8

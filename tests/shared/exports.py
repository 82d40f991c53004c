"""Exports of tiny models, and a process that reads them without this package."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from hf_prompt_tuning import PromptTemplate, PromptTuningConfig, get_prompt_tuning_model
from hf_prompt_tuning.serving import measured_export, tokens
from hf_prompt_tuning.serving.output_rows import fitted_row
from hf_prompt_tuning.serving.sample_texts import SAMPLE_TEXTS
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.tiny_models import tiny_model

TEMPLATE = PromptTemplate("Message : {message} Answer :", target="{answer}", max_target_length=6)
WITHOUT_PACKAGE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.configuration_auto import AutoConfig
for folder, rows in json.load(open(sys.argv[1])).items():
    seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    read = []
    for row in rows:
        batch = tokenizer(row["text"], add_special_tokens=row["special"], return_tensors="pt")
        ids, more = batch["input_ids"], {"labels": torch.tensor([[5, 6, 2]])} if seq2seq else {}
        with torch.no_grad():
            logits = model(input_ids=ids, **more).logits[0]
        output = model.get_output_embeddings().weight.detach()
        read.append({"ids": ids[0].tolist(), "logits": logits, "output": output})
    torch.save(read, f"{folder}/read.pt")
assert not [name for name in sys.modules if name.startswith(("hf_prompt_tuning", "peft"))]
"""


def never_refuse(monkeypatch) -> None:
    """Let tiny random models be exported, whose hidden states have no direction in common, as trained ones have.

    So it is enough to measure them on few texts.
    """
    monkeypatch.setattr(measured_export, "REACH", 2.0)
    monkeypatch.setattr(tokens, "SAMPLE_TEXTS", SAMPLE_TEXTS[:4])


def fitted_rows(monkeypatch) -> list[torch.Tensor]:
    """Return a list that each output row is appended to when it is fitted to added tokens."""
    rows = []
    monkeypatch.setattr(tokens, "fitted_row", lambda *args: rows.append(fitted_row(*args)) or rows[-1])
    return rows


def made(name, tokenizer, template=TEMPLATE, lengths=(3, 5), **changes):
    """A tiny model with random prompts, "default" and "other"."""
    backbone = tiny_backbone(name, **changes) if name in ARCHITECTURES else tiny_model(name, **changes)
    return prompted(backbone, tokenizer, template, lengths)


def prompted(backbone, tokenizer, template=TEMPLATE, lengths=(3, 5), **values):
    torch.manual_seed(1)
    configs = [
        PromptTuningConfig(num_virtual_tokens=length, prompt_tuning_init="RANDOM", tokenizer=tokenizer, **values)
        for length in lengths
    ]
    model = get_prompt_tuning_model(backbone, configs[0], tokenizer, template)
    for number, config in enumerate(configs[1:]):
        model.add_adapter("other" if not number else f"other_{number}", config)
        model.prompt_encoder["other"].info.template = template
    return model.eval()


def entries(folder: Path) -> dict:
    return json.loads((folder / "prompt.json").read_text(encoding="utf-8"))


def read_elsewhere(folders: dict[Path, list[tuple[str, bool]]], tmp_path: Path) -> dict[Path, list[dict]]:
    """What a process without this package reads for texts (with whether to add special tokens).

    Their ids and logits, and the output matrix.
    """
    rows = {
        str(folder): [{"text": text, "special": special} for text, special in texts]
        for folder, texts in folders.items()
    }
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    done = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGE, file], capture_output=True, text=True, cwd=tmp_path)
    assert not done.returncode, done.stderr
    return {folder: torch.load(Path(folder) / "read.pt", weights_only=True) for folder in folders}

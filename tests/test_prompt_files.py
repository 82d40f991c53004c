"""A prompt's files are whole, or named as what is wrong."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.prompt_files import PromptInfo, read_prompt, read_prompt_vectors

from .helpers import tiny_prompt_model


@pytest.fixture
def folder(tmp_path):
    tiny_prompt_model("llama", num_virtual_tokens=3).save_pretrained(tmp_path)
    return tmp_path


def test_round_trip(folder):
    vectors, config, info = read_prompt(folder)
    assert vectors.shape == (3, 32) and vectors.dtype == torch.float32
    assert config.num_virtual_tokens == 3
    assert info.initialization["prompt_tuning_init"] == "RANDOM"
    info.write(folder)
    assert PromptInfo.read(folder / "prompt_tuning.json") == info


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "is not an adapter's config"),
        (lambda f: change(f / "adapter_config.json", peft_type="LORA"), "is a LORA adapter"),
        (lambda f: change(f / "adapter_config.json", num_virtual_tokens=4), "says 4 virtual tokens and .* holds 3"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"xx"), "is not a whole safetensors file"),
        (lambda f: save_file({"a": torch.ones(1)}, f / "adapter_model.safetensors"), "no tensor `prompt_embeddings`"),
        (
            lambda f: save_file({"prompt_embeddings": torch.ones(3)}, f / "adapter_model.safetensors"),
            r"shape \[3\]; a prompt is \[P, H\]",
        ),
        (
            lambda f: save_file(
                {"prompt_embeddings": torch.full((3, 32), torch.inf)}, f / "adapter_model.safetensors"
            ),
            "NaN or infinite",
        ),
        (lambda f: (f / "prompt_tuning.json").write_text("[]"), "is not a prompt's description"),
        (lambda f: change(f / "prompt_tuning.json", format_version=9), "is of format 9"),
        (lambda f: change(f / "prompt_tuning.json", template={"sauce": "x"}), "is not a prompt's description"),
    ],
)
def test_what_is_wrong_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(PromptTuningError, match=message):
        read_prompt(folder)


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(PromptTuningError, match=r"cannot be read as a \.npy array"):
        read_prompt_vectors(tmp_path / "p.npy")


def test_a_folder_without_a_prompt(tmp_path):
    with pytest.raises(PromptTuningError, match=r"has no adapter_model\.safetensors"):
        read_prompt_vectors(tmp_path)

"""Damaged prompt folders: each ends in a working model or in a `PromptLoadError`, in nothing else."""

import json
import random
import shutil

import pytest
import torch

from hf_prompt_tuning import PromptLoadError, PromptTemplate, load_prompt
from hf_prompt_tuning.prompts.files import CONFIG_FILE, START_FILE, WEIGHTS_FILE
from hf_prompt_tuning.prompts.info import INFO_FILE
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import tiny_model

FOLDERS = 600
VALUES = [None, True, -1, 0, 7, 10**400, float("nan"), "", "é", "../../etc", "{x.__class__}", [], [[1]], {}]


def flip(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice([1, 1, 4, 64])):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def cut(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content))] + (b"" if dice.random() < 0.5 else dice.randbytes(8))


def retype(content: bytes, dice: random.Random) -> bytes:
    """Another value, or none, in place of one somewhere in a JSON tree."""
    tree = json.loads(content)
    parents = [tree]
    for node in parents:
        children = node.values() if isinstance(node, dict) else node
        parents += [child for child in children if isinstance(child, dict | list) and child]
    node = dice.choice(parents)
    key = dice.choice(list(node)) if isinstance(node, dict) else dice.randrange(len(node))
    if dice.random() < 0.2:
        del node[key]
    else:
        node[key] = dice.choice(VALUES)
    return json.dumps(tree).encode()


def reshape(content: bytes, dice: random.Random) -> bytes:
    """Another key, shape or dtype in a safetensors header."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    entry = header.pop("prompt_embeddings")
    entry |= dice.choice(
        [
            {"shape": dice.choice([[3], [32, 3], [6, 16], [0, 32], [2**40, 2**40], [-1, 32], [3, 32, 1]])},
            {"dtype": dice.choice(["F64", "F16", "BF16", "I32", "BOOL", "F8_E4M3", "X"])},
            {"data_offsets": dice.choice([[0, 2**60], [8, 4], [0, 4], ["a", "b"]])},
        ]
    )
    header[dice.choice(["prompt_embeddings", "prompt_embeddings", "weight", ""])] = entry
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


MUTATIONS = {
    CONFIG_FILE: [flip, cut, retype, retype, retype],
    INFO_FILE: [flip, cut, retype, retype, retype],
    WEIGHTS_FILE: [flip, cut, reshape, reshape],
    START_FILE: [flip, cut, reshape],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with something in every field."""
    model = tiny_prompt_model("llama", num_virtual_tokens=3)
    info = model.info
    info.template = PromptTemplate(
        "Message : {message} Label :", label_column="label", label_words={"1": "a", "2": "b"}
    )
    info.example = {"source": "Message : x Label :", "target": " a"}
    info.data = {"dataset": "alice/messages", "training_rows": 5}
    info.training = {"learning_rate": 0.03, "optim": "adamw_torch"}
    info.metrics, info.untuned_metrics = {"eval_accuracy": 0.9}, {"untuned_accuracy": 0.5}
    info.history = {"loss": [[1, 2.0], [2, 1.5]]}
    info.confusion_matrix = {"labels": ["a", "b"], "counts": [[3, 1], [0, 4]]}
    info.calibration = {"temperature": 2.0, "rows": 8, "ece": 0.2, "calibrated_ece": 0.1}
    info.nearest_words = [[["the", 0.5]]] * 3
    info.teacher = {"kind": "text", "tokens": 9, "tokens_saved": 6.0}
    info.teacher |= {"text_milliseconds": 2.0, "prompt_milliseconds": 1.5, "device": "cpu"}
    folder = tmp_path_factory.mktemp("prompts") / "whole"
    model.save_pretrained(folder)
    return folder


def test_each_is_a_working_prompt_or_refused(whole, tmp_path):
    dice, backbone = random.Random(0), tiny_model("llama")
    ids = torch.tensor([[5, 6, 7]])
    loaded = refused = 0
    folder, saved = tmp_path / "damaged", tmp_path / "saved"
    folder.mkdir()
    for number in range(FOLDERS):
        for file in whole.iterdir():
            shutil.copy(file, folder)
        name = dice.choice(list(MUTATIONS))
        mutation = dice.choice(MUTATIONS[name])
        (folder / name).write_bytes(mutation((whole / name).read_bytes(), dice))
        try:
            model, _, template = load_prompt(folder, backbone=backbone)
        except PromptLoadError as error:
            assert str(folder) in str(error), f"folder {number}: {error}"
            refused += 1
            continue
        assert torch.isfinite(model(input_ids=ids).logits).all()
        if template is not None:
            template.source_text(dict.fromkeys(template.columns, "x"))
        if number % 10 == 0:  # drawing pictures takes its time
            model.save_pretrained(saved)
        loaded += 1
    assert loaded > 50 and refused > 200


def test_a_whole_one_loads(whole):
    model, tokenizer, template = load_prompt(whole, backbone=tiny_model("llama"))
    assert tokenizer is None and template.label_words == {"1": "a", "2": "b"}
    assert model.info.history == {"loss": [[1, 2.0], [2, 1.5]]}

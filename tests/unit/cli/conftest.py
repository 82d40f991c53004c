"""A backbone on disk, and a config with its data files."""

import json

import pytest
import yaml

from tests.shared.tiny_models import make_tokenizer, tiny_model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    tiny_model("llama").save_pretrained(folder)
    make_tokenizer("gpt2").save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path, messages, backbone):
    for name, rows in (("train", messages), ("validation", messages[:6]), ("test", [*messages[6:], {"message": "x"}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "model_name_or_path": str(backbone),
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": str(tmp_path / "validation.jsonl"),
        "source_template": "Message : {message} Label :",
        "label_column": "label",
        "label_words": {1: "complaint", 2: "no complaint"},
        "num_virtual_tokens": 4,
        "prompt_tuning_init_text": "Classify the message",
        "learning_rate": "3e-2",
        "num_train_epochs": 2,
        "output_dir": str(tmp_path / "out"),
        "logging_steps": 1,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path

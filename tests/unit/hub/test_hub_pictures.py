"""Prompts for backbones that see on the Hub: their names load the Auto class and the processor at one commit."""

import re

import pytest
import torch

from hf_prompt_tuning import PromptTemplate, PromptTuningConfig, PromptTuningTrainer, load_prompt
from tests.shared.hub_client import contents, local_hub
from tests.shared.tiny_processors import picture, seeing_model, tiny_processor
from tests.shared.trainers import arguments

BACKBONE, ID = "alice/backbone", "alice/prompt"
TEMPLATE = PromptTemplate(
    source="Seen : {image} {question} Answer :", label_column="label", label_words={"yes": "yes", "no": "never"}
)
ROWS = [
    {"image": picture(20, 30), "question": "a small dog ?", "label": "yes"},
    {"image": None, "question": "the old town", "label": "no"},
]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    processor = tiny_processor("llava")
    backbone = seeing_model("llava", processor)
    backbone.save_pretrained(folder / "backbone")
    processor.save_pretrained(folder / "backbone")
    config = PromptTuningConfig(
        num_virtual_tokens=3, prompt_tuning_init="RANDOM", base_model_name_or_path=BACKBONE, revision="main"
    )
    trainer = PromptTuningTrainer(
        backbone,
        arguments(folder / "prompt"),
        train_dataset=ROWS,
        processing_class=processor,
        template=TEMPLATE,
        prompt_config=config,
    )
    trainer.save_model()
    scores = trainer.predict(ROWS).predictions
    return {BACKBONE: contents(folder / "backbone"), ID: contents(folder / "prompt")}, torch.tensor(scores)


def test_a_name_is_enough(repositories, monkeypatch, tmp_path):
    """Online, and then from the cache alone; and the card's code runs as it is, but for the picture's file."""
    files, expected = repositories
    monkeypatch.chdir(tmp_path)
    picture(20, 30).save("picture.png")
    with local_hub(monkeypatch, tmp_path / "cache") as hub:
        for repo_id, contained in files.items():
            hub.put(repo_id, contained)
        for options in ({}, {"local_files_only": True}):
            loaded = load_prompt(ID, **options)
            assert type(loaded.model.get_base_model()).__name__ == "LlavaForConditionalGeneration"
            assert type(loaded.processor).__name__ == "LlavaProcessor"
            coder = loaded.model.row_encoder(loaded.processor, loaded.template)
            with torch.no_grad():
                found = loaded.model(**coder.inputs(ROWS), candidates=coder.label_token_ids).scores
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        card = files[ID]["README.md"].decode()
        code = re.search(r"## Use\n\n```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)[1]
        exec(code.replace("load_prompt('.')", f"load_prompt({ID!r})"), {})


def test_without_what_the_processor_needs_texts_are_read(repositories, monkeypatch, tmp_path, caplog):
    files, _ = repositories
    with local_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.put(BACKBONE, files[BACKBONE] | {"processor_config.json": b"{"})
        hub.put(ID, files[ID])
        loaded = load_prompt(ID)
    assert loaded.processor is None and loaded.tokenizer is not None
    assert "was trained with pictures, and here it reads texts alone: the processor of" in caplog.text

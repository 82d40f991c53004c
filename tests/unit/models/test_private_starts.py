"""A start from words that may be private, of training rows or a teacher: the vectors tell them, and nothing else."""

import json

import pytest
import torch

from hf_prompt_tuning import (
    PromptMonitorCallback,
    PromptTuningConfig,
    PromptTuningTrainer,
    Teacher,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.models.initialization import made_again
from hf_prompt_tuning.models.vocabulary import nearest_words
from hf_prompt_tuning.prompts.files import START_FILE
from tests.shared.start_rows import EXAMPLES, TEMPLATE, arguments
from tests.shared.tiny_models import tiny_model

TEXT = "Classify if the message is"


def taught(**config):
    """The config of a prompt that starts from what teaches it."""
    return PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="TEACHER", **config)


def test_no_file_of_a_trained_prompt_has_the_rows(tokenizer, messages, tmp_path):
    """Training rows may be private: neither their words, nor what tells them, is written beside the prompt.

    The nearest words of a trained prompt are those that it started from. The one example row of every card is apart.
    """
    run = {"train_dataset": messages, "processing_class": tokenizer, "template": TEMPLATE}
    args = arguments(tmp_path / "run", learning_rate=1e-3)
    config = PromptTuningConfig(num_virtual_tokens=60, **EXAMPLES)
    trainer = PromptTuningTrainer(tiny_model("llama"), args, prompt_config=config, **run)
    trainer.add_callback(PromptMonitorCallback(trainer, every=2, tokenizer=tokenizer))
    nearest = nearest_words(trainer.model.prompt, trainer.model.word_embeddings, tokenizer, how_many=1)
    assert "Label" in "".join(words[0][0] for words in nearest)  # so they could be read there
    trainer.train()
    trainer.model.info.example = {}
    trainer.save_model(tmp_path / "prompt")
    assert not (tmp_path / "prompt" / START_FILE).exists()
    saved = [file for file in (tmp_path / "prompt").iterdir() if file.suffix in (".json", ".md")]
    texts = {file.name: file.read_text() for file in saved}
    assert "rows of the training data" in texts["README.md"]
    assert "nearest" not in texts["README.md"].lower()
    info = json.loads(texts["prompt_tuning.json"])
    assert not info.get("nearest_words")
    assert not any("example_token_ids" in text for text in texts.values())
    assert not any("prompt/nearest_words" in log for log in trainer.state.log_history)
    assert any("prompt/moved" in log for log in trainer.state.log_history)
    assert trainer.model.peft_config["default"].example_token_ids is None  # trackers write a model's config down
    loaded, *_ = load_prompt(tmp_path / "prompt", backbone=tiny_model("llama"))
    assert loaded.info.initialization.keys() == {"num_virtual_tokens", "prompt_tuning_init", "hash"}


def test_a_prompt_that_goes_on_from_rows_keeps_them_too(tokenizer, messages, tmp_path):
    """Its vectors still tell the rows, so nothing else of it does, over two prompts and a second training."""
    run = {"train_dataset": messages, "processing_class": tokenizer, "template": TEMPLATE}
    config = PromptTuningConfig(num_virtual_tokens=60, **EXAMPLES)
    for name in ("first", "second", "third"):
        trainer = PromptTuningTrainer(
            tiny_model("llama"), arguments(tmp_path / "run", learning_rate=1e-3), prompt_config=config, **run
        )
        trainer.train()
        trainer.save_model(tmp_path / name)
        assert not (tmp_path / name / START_FILE).exists()
        info = json.loads((tmp_path / name / "prompt_tuning.json").read_text())
        assert not info.get("nearest_words")
        config = PromptTuningConfig(init_prompt=str(tmp_path / name))
    assert info["initialization"]["prompt_tuning_init"] == "PROMPT"
    assert info["initialization"]["private_start"] == "EXAMPLES"
    assert (
        "another prompt, which started from rows of the training data" in (tmp_path / name / "README.md").read_text()
    )


def test_what_teaches_is_not_saved(tokenizer, tmp_path):
    """The first tokens of a teacher's text are the start, and no file of the prompt has them."""
    backbone = tiny_model("gemma")
    model = get_prompt_tuning_model(backbone, taught(prompt_tuning_init_text=TEXT), tokenizer)
    of_text = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init_text=TEXT)
    assert torch.equal(model.prompt, get_prompt_tuning_model(backbone, of_text, tokenizer).prompt)
    with torch.no_grad():
        model.prompt.add_(1.0)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / START_FILE).exists()
    assert [file.name for file in tmp_path.iterdir() if b"Classify" in file.read_bytes()] == []
    assert "first tokens of the text that teaches it" in (tmp_path / "README.md").read_text(encoding="utf-8")
    loaded, *_ = load_prompt(tmp_path, backbone=backbone)
    assert loaded.info.initialization["prompt_tuning_init"] == "TEACHER"
    assert loaded.prompt_encoder["default"].start is None
    assert made_again(loaded.info.initialization, 3, loaded.word_embeddings, tokenizer) is None


def test_a_prompt_that_goes_on_from_what_teaches_keeps_it_too(tokenizer, tmp_path):
    """The vectors still tell the text, so no file of the second prompt, or of the third, has them."""
    config = taught(prompt_tuning_init_text=TEXT)
    for name in ("first", "second", "third"):
        model = get_prompt_tuning_model(tiny_model("gemma"), config, tokenizer)
        model.save_pretrained(tmp_path / name)
        config = PromptTuningConfig(init_prompt=str(tmp_path / name))
    assert not (tmp_path / name / START_FILE).exists()
    assert [file.name for file in (tmp_path / name).iterdir() if b"Classify" in file.read_bytes()] == []
    loaded, *_ = load_prompt(tmp_path / name, backbone=tiny_model("gemma"))
    assert loaded.info.initialization["prompt_tuning_init"] == "PROMPT"
    assert loaded.info.initialization["private_start"] == "TEACHER"
    assert "another prompt, which a text taught that is not told" in (tmp_path / name / "README.md").read_text()


def test_a_models_config_does_not_tell_them(tokenizer, messages, tmp_path):
    """Trackers (W&B and others) write all fields of a model's configs down, also those that are not shown."""
    run = {"train_dataset": messages, "processing_class": tokenizer, "template": TEMPLATE}
    rows = PromptTuningConfig(num_virtual_tokens=40, prompt_tuning_init_text=TEXT, **EXAMPLES)
    given = taught(prompt_tuning_init_text=TEXT)
    for config, teacher in ((rows, None), (given, None), (taught(), Teacher(text=TEXT))):
        model = tiny_model("llama")
        trainer = PromptTuningTrainer(model, arguments(tmp_path), prompt_config=config, teacher=teacher, **run)
        kept = trainer.model.peft_config["default"]
        assert (kept.example_token_ids, kept.prompt_tuning_init_text) == (None, None)
    assert rows.prompt_tuning_init_text == given.prompt_tuning_init_text == TEXT  # the caller's are as they were


def test_nor_a_token_of_the_hub(tokenizer, tmp_path):
    get_prompt_tuning_model(tiny_model("llama"), taught(prompt_tuning_init_text=TEXT), tokenizer).save_pretrained(
        tmp_path
    )
    kwargs = {"tokenizer_kwargs": {"token": "hf_secret"}, "init_prompt_token": "hf_secret"}
    for start in ({"init_prompt": str(tmp_path)}, {"num_virtual_tokens": 2}, {"prompt_tuning_init_text": TEXT}):
        config = PromptTuningConfig(**start, **kwargs)
        model = get_prompt_tuning_model(tiny_model("llama"), config, tokenizer)
        model.load_adapter(tmp_path, "other")
        for kept in model.peft_config.values():
            assert (kept.init_prompt_token, kept.tokenizer_kwargs) == (None, None)
        assert config.init_prompt_token == config.tokenizer_kwargs["token"] == "hf_secret"


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "."])
def test_a_weights_file_in_a_prompts_folder_is_that_prompt(tokenizer, messages, tmp_path, file):
    """Its first vectors may be of the tokens before the prompt, and a file beside it tells what it started from."""
    config = PromptTuningConfig(num_virtual_tokens=40, prompt_position="after_bos", sink_token="<s>", **EXAMPLES)
    first = get_prompt_tuning_model(tiny_model("llama"), config, tokenizer, TEMPLATE, train_dataset=messages)
    first.save_pretrained(tmp_path)
    config = PromptTuningConfig(init_prompt=str(tmp_path / file))
    model = get_prompt_tuning_model(tiny_model("llama"), config, tokenizer, TEMPLATE)
    assert torch.equal(model.prompt, first.prompt)
    assert model.active_peft_config.place() == first.active_peft_config.place() != {}
    assert model.info.initialization["private_start"] == "EXAMPLES"

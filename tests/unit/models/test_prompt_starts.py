"""The vectors that a prompt's training started from stay known, and cost a file only where no record tells them."""

import pytest
import torch
from peft import PromptTuningConfig as PeftPromptTuningConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from hf_prompt_tuning import (
    PromptLoadError,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.models.initialization import made_again
from hf_prompt_tuning.prompts.files import START_FILE, read_prompt
from tests.shared.tiny_models import tiny_model


def trained(tokenizer, **config):
    """A prompt, its first vectors, and its vectors one unit further in every direction."""
    model = get_prompt_tuning_model(tiny_model("gemma"), PromptTuningConfig(**config), tokenizer)
    start = model.prompt.detach().clone()
    with torch.no_grad():
        model.prompt.add_(1.0)
    return model, start


@pytest.mark.parametrize(
    "config",
    [
        dict(num_virtual_tokens=7, prompt_tuning_init_text="Classify if the message is"),
        dict(num_virtual_tokens=3, prompt_tuning_init="FIRST_VOCAB"),
    ],
)
def test_what_a_record_tells_is_made_again(tokenizer, tmp_path, config):
    model, start = trained(tokenizer, **config)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / START_FILE).exists()
    loaded, *_ = load_prompt(tmp_path, backbone=tiny_model("gemma"))
    assert loaded.info.initialization == PromptTuningConfig(**config).initialization()  # and no hash
    again = made_again(loaded.info.initialization, len(loaded.prompt), loaded.word_embeddings, tokenizer)
    torch.testing.assert_close(again, start, rtol=0, atol=0)


@pytest.mark.parametrize("init", ["RANDOM", "SAMPLE_VOCAB", "CLASS_LABELS"])
def test_what_none_tells_is_kept_in_a_file(tokenizer, tmp_path, init):
    model, start = trained(tokenizer, num_virtual_tokens=3, prompt_tuning_init=init, label_words=["great", "awful"])
    model.save_pretrained(tmp_path / "a")
    loaded, *_ = load_prompt(tmp_path / "a", backbone=tiny_model("gemma"), is_trainable=True)
    torch.testing.assert_close(loaded.prompt_encoder["default"].start, start, rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "b")  # as after further training
    assert torch.equal(load_file(tmp_path / "b" / START_FILE)["prompt_embeddings"], start)
    assert made_again(loaded.info.initialization, 3, loaded.word_embeddings, tokenizer) is None


def test_a_teacher_without_text_is_refused(tokenizer):
    config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="TEACHER")
    with pytest.raises(PromptTuningError, match="prompt_tuning_init is TEACHER, and no text teaches the prompt"):
        get_prompt_tuning_model(tiny_model("gemma"), config, tokenizer)


def test_a_checkpoint_leaves_it_to_the_model_that_resumes(tokenizer, tmp_path):
    """A checkpoint is saved often, and holds the start's hash alone; another seed's start is not taken for it."""

    def fresh(seed):
        backbone = tiny_model("gemma")
        torch.manual_seed(seed)
        return get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3), tokenizer)

    model = fresh(1)
    start = model.prompt.detach().clone()
    model.save_pretrained(tmp_path, card=False)
    assert not (tmp_path / START_FILE).exists()
    for seed, expected in ((1, start), (2, None)):
        resumed = fresh(seed)
        resumed.load_adapter(tmp_path, "default", is_trainable=True)
        found = resumed.prompt_encoder["default"].start
        assert (found is None) == (expected is None) and (found is None or torch.equal(found, expected))
    loaded, *_ = load_prompt(tmp_path, backbone=tiny_model("gemma"))
    assert loaded.prompt_encoder["default"].start is None


def test_a_file_of_another_start_is_not_believed(tokenizer, tmp_path):
    model, start = trained(tokenizer, num_virtual_tokens=3)
    model.save_pretrained(tmp_path)
    save_file({"prompt_embeddings": start + 1}, tmp_path / START_FILE)
    loaded, *_ = load_prompt(tmp_path, backbone=tiny_model("gemma"))
    assert loaded.prompt_encoder["default"].start is None


def test_a_start_brings_its_template(tokenizer, messages, tmp_path):
    """As on the command line, and as a loaded prompt does."""
    template = PromptTemplate("Say : {message}", label_column="label", label_words={"1": "sad", "2": "glad"})
    first = get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=3), tokenizer, template)
    first.save_pretrained(tmp_path / "first")
    args = PromptTuningArguments(str(tmp_path / "run"), use_cpu=True, report_to="none")
    run = {"train_dataset": messages, "processing_class": tokenizer}
    config = PromptTuningConfig(init_prompt=str(tmp_path / "first"))
    trainer = PromptTuningTrainer(tiny_model("llama"), args, prompt_config=config, **run)
    assert trainer.model.info.template == template
    other = PromptTemplate("{message} =>", label_column="label", label_words=template.label_words)
    given = PromptTuningTrainer(tiny_model("llama"), args, prompt_config=config, template=other, **run)
    assert given.model.info.template == other


def test_a_start_of_another_backbone_is_told(tokenizer, tmp_path, caplog):
    """Vectors of another backbone of the same width are no more than a start."""
    model, _ = trained(tokenizer, num_virtual_tokens=3)
    model.save_pretrained(tmp_path)
    config = PromptTuningConfig(init_prompt=str(tmp_path))
    get_prompt_tuning_model(tiny_model("gemma"), config, tokenizer)
    assert "is not a prompt of this backbone" not in caplog.text
    other = tiny_model("gemma")
    other.get_input_embeddings().weight.data.add_(0.1)
    started = get_prompt_tuning_model(other, config, tokenizer)
    assert torch.equal(started.prompt, model.prompt)
    assert f"{tmp_path} is not a prompt of this backbone: the embedding matrix differs" in caplog.text


def test_a_prompt_from_another_starts_where_that_ended(tokenizer, tmp_path):
    model, _ = trained(tokenizer, num_virtual_tokens=3)
    model.save_pretrained(tmp_path / "a")
    later, start = trained(tokenizer, init_prompt=str(tmp_path / "a"))
    torch.testing.assert_close(start, model.prompt.detach(), rtol=0, atol=0)
    later.save_pretrained(tmp_path / "b")
    torch.testing.assert_close(read_prompt(tmp_path / "b").start, start, rtol=0, atol=0)


def test_a_folder_keeps_no_earlier_prompts_start(tokenizer, tmp_path):
    trained(tokenizer, num_virtual_tokens=3)[0].save_pretrained(tmp_path)
    assert (tmp_path / START_FILE).exists()
    trained(tokenizer, num_virtual_tokens=3, prompt_tuning_init_text="great")[0].save_pretrained(tmp_path)
    assert not (tmp_path / START_FILE).exists()


def test_pefts_own_prompt_has_no_known_start(tokenizer, tmp_path):
    config = PeftPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(tiny_model("gemma"), config).save_pretrained(tmp_path)
    model, *_ = load_prompt(tmp_path, backbone=tiny_model("gemma"))
    assert model.prompt_encoder["default"].start is None
    assert model.info.initialization == {}  # not RANDOM, as which PEFT's config is read
    model.save_pretrained(tmp_path / "again")
    assert "| started from | vectors that are not recorded |" in (tmp_path / "again" / "README.md").read_text()


def test_a_deleted_prompt_leaves_no_start(tokenizer):
    model, _ = trained(tokenizer, num_virtual_tokens=3)
    model.add_adapter("other", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    assert model.prompt_encoder.keys() == {"default", "other"}
    model.delete_adapter("other")
    assert model.prompt_encoder.keys() == {"default"}


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(2, 32), r"initial_prompt.safetensors holds \[2, 32\] numbers and .* \[3, 32\]"),
        (torch.full((3, 32), torch.nan), "NaN or infinite"),
    ],
)
def test_a_start_that_is_not_this_prompts_is_refused(tokenizer, tmp_path, vectors, message):
    trained(tokenizer, num_virtual_tokens=3)[0].save_pretrained(tmp_path)
    save_file({"prompt_embeddings": vectors}, tmp_path / START_FILE)
    with pytest.raises(PromptLoadError, match=message):
        read_prompt(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt_tuning_init": "TEXT"},
        {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": ""},
        {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": 5},
        {"prompt_tuning_init": ["TEXT"]},
        {},
    ],
)
def test_a_record_that_anyone_wrote_may_tell_nothing(tokenizer, record):
    assert made_again(record, 3, tiny_model("gemma").get_input_embeddings(), tokenizer) is None

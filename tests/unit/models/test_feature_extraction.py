"""Prompts in front of base models: training, saving, loading, and refusals."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, pipeline

from hf_prompt_tuning import (
    PromptLoadError,
    PromptMismatchError,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningModelForFeatureExtraction,
    export_tokens,
    get_prompt_tuning_model,
    load_prompt,
)
from tests.shared.classifiers import tiny_base_model, tiny_classifier, tokenizer_with_cls
from tests.shared.head_rows import P, with_prompt

IDS = torch.tensor([[1, 17, 30, 9], [1, 44, 8, 25]])


def features_of(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(input_ids=ids).last_hidden_state


@pytest.mark.parametrize(("name", "position"), [("bert", "after_bos"), ("qwen3", "start"), ("t5", "start")])
def test_a_prompt_learns_and_reloads_bit_for_bit(name, position, tmp_path):
    backbone = tiny_base_model(name)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    model = with_prompt(backbone, position).train()
    assert type(model) is PromptTuningModelForFeatureExtraction and model.task_type == "FEATURE_EXTRACTION"
    assert [key for key, weight in model.named_parameters() if weight.requires_grad] == [
        "prompt_encoder.default.embedding.weight"
    ]
    optimizer = torch.optim.Adam(model.prompt_encoder.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        first, second = model(input_ids=IDS).last_hidden_state.mean(1)
        losses.append((first - second).square().sum())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    model.save_pretrained(tmp_path / "prompt")
    again = load_prompt(tmp_path / "prompt", backbone=tiny_base_model(name)).model
    assert type(again) is type(model) and torch.equal(features_of(again), features_of(model))
    card = (tmp_path / "prompt" / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card and "model(**inputs).last_hidden_state" in card
    backbone.save_pretrained(tmp_path / "backbone")
    by_name = load_prompt(tmp_path / "prompt", backbone=tmp_path / "backbone", tokenizer=tokenizer_with_cls()).model
    assert type(by_name.get_base_model()) is type(backbone)
    assert torch.equal(features_of(by_name), features_of(model))


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2", "modernbert", "llama", "gpt2", "t5"])
def test_peft_loads_the_folder_and_agrees_on_an_unpadded_row(name, tmp_path):
    model = with_prompt(tiny_base_model(name))
    model.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(tiny_base_model(name), tmp_path)
    torch.testing.assert_close(features_of(theirs, IDS[:1])[:, P:], features_of(model, IDS[:1]))
    pooled = name in ("bert", "roberta")
    assert ("With PEFT alone" in (tmp_path / "README.md").read_text()) is not pooled


def test_transformers_pipeline_takes_it():
    model, tokenizer = with_prompt(tiny_base_model("bert"), "after_bos").eval(), tokenizer_with_cls()
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
    found = torch.tensor(extract("never came", return_tensors=False))
    torch.testing.assert_close(found, features_of(model, tokenizer("never came", return_tensors="pt").input_ids))


def test_what_is_refused(tmp_path):
    model = with_prompt(tiny_base_model("bert"))
    for arguments, message in (
        ({"labels": IDS}, "labels is given, which is for language models; leave it out"),
        ({"position_ids": IDS}, "position_ids are given"),
        ({"attention_mask": torch.zeros_like(IDS)}, "a row holds only pads"),
    ):
        with pytest.raises(PromptTuningError, match=message):
            model(input_ids=IDS, **arguments)
    albert = AutoConfig.for_model("albert", vocab_size=20, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    t5 = AutoModel.from_config(tiny_classifier("t5").config)
    for backbone, message in (
        (AutoModel.from_config(albert), "whose hidden states are not known to be the same behind a prompt"),
        (t5, "T5Model, which neither writes text .* AutoModel or AutoModelForTextEncoding"),
    ):
        with pytest.raises(PromptTuningError, match=message):
            get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=2))
    with pytest.raises(PromptTuningError, match="prompt_position is system, and this model reads rows of tokens"):
        get_prompt_tuning_model(
            tiny_base_model("bert"), PromptTuningConfig(num_virtual_tokens=2, prompt_position="system")
        )
    with pytest.raises(PromptTuningError, match="and this is for language models"):
        export_tokens(model, tmp_path / "out", tokenizer=tokenizer_with_cls())
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(PromptMismatchError, match="is a prompt of task type FEATURE_EXTRACTION"):
        load_prompt(tmp_path / "saved", backbone=tiny_classifier("bert"))


def without_pooler(folder, name="bert"):
    """A folder of a masked language model, which has no pooler."""
    AutoModelForMaskedLM.from_config(tiny_classifier(name).config).save_pretrained(folder)
    tokenizer_with_cls().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet"])
def test_files_without_a_pooler_give_none(name, tmp_path, caplog):
    """transformers draws one in each load, by which a prompt would give other embeddings each time."""
    folder = without_pooler(tmp_path / "backbone", name)
    model = with_prompt(AutoModel.from_pretrained(folder)).eval()
    assert model(input_ids=IDS).pooler_output is not None
    model.save_pretrained(tmp_path / "prompt")
    loaded = load_prompt(tmp_path / "prompt", backbone=folder).model
    assert f"The files of the backbone '{folder}' have no pooler" in caplog.text
    assert "pooler_output is None" in caplog.text and "trained behind" not in caplog.text
    with torch.no_grad():
        outputs = loaded(input_ids=IDS)
        expected = model(input_ids=IDS).last_hidden_state
    assert outputs.pooler_output is None and len(loaded(input_ids=IDS, return_dict=False)) == 1
    assert torch.equal(outputs.last_hidden_state, expected)


def test_another_pooler_than_the_prompts_own_gives_none(tmp_path, caplog):
    """The user's own loads of files without a pooler have another one each."""
    folder = without_pooler(tmp_path / "backbone")
    first, second = (AutoModel.from_pretrained(folder) for _ in range(2))
    assert not torch.equal(first.pooler.dense.weight, second.pooler.dense.weight)
    model = with_prompt(first).eval()
    model.save_pretrained(tmp_path / "prompt")
    with torch.no_grad():
        expected = model(input_ids=IDS)
        again = load_prompt(tmp_path / "prompt", backbone=first).model(input_ids=IDS)
        assert torch.equal(again.pooler_output, expected.pooler_output)
        assert "pooler has other weights" not in caplog.text
        other = load_prompt(tmp_path / "prompt", backbone=second).model
        outputs = other(input_ids=IDS)
        assert outputs.pooler_output is None and "pooler_output" not in outputs
        assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)
        # The backbone alone, and a new prompt, have the pooler that is there.
        assert other(input_ids=IDS, adapter_names="__base__").pooler_output is not None
        config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM")
        other.add_adapter("new", config)
        assert other(input_ids=IDS, adapter_names="new").pooler_output is not None
        other.load_adapter(tmp_path / "prompt", "also")
        assert other(input_ids=IDS, adapter_names="also").pooler_output is None
    assert f"The backbone's pooler has other weights than the one that {tmp_path / 'prompt'} was tr" in caplog.text
    # Rounding to another dtype is no other pooler.
    half = load_prompt(tmp_path / "prompt", backbone=first.to(torch.bfloat16), ignore_mismatch=True).model
    assert half(input_ids=IDS).pooler_output is not None


def test_files_that_lack_more_than_a_pooler_are_refused(tmp_path):
    with_prompt(tiny_base_model("bert")).save_pretrained(tmp_path / "prompt")
    folder = without_pooler(tmp_path / "backbone")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "layer.1.output.dense" not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(PromptLoadError, match=r"its files have no encoder.layer.1.output.dense.bias, which a BertMod"):
        load_prompt(tmp_path / "prompt", backbone=folder)


def test_damaged_numbers_of_a_pooler_are_refused(tmp_path):
    with_prompt(tiny_base_model("bert")).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "prompt_tuning.json").read_text())
    assert len(described["backbone"]["pooler"]) == 8
    described["backbone"]["pooler"][3] = "a"
    (tmp_path / "prompt_tuning.json").write_text(json.dumps(described))
    with pytest.raises(PromptLoadError, match=r"backbone.pooler holds 'a', not a number"):
        load_prompt(tmp_path, backbone=tiny_base_model("bert"))

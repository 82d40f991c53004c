"""A prompt whose backbone came from a folder says which Auto class loads it; doing as it says loads the prompt."""

import json
import re

import pytest
import torch
import transformers

from hf_prompt_tuning import PromptLoadError, PromptTuningConfig, get_prompt_tuning_model, load_prompt
from tests.shared.classifiers import AUTO, tiny_classifier, tokenizer_with_cls
from tests.shared.tiny_models import tiny_model

CALLS = {
    ("llama", "CAUSAL_LM"): "AutoModelForCausalLM.from_pretrained(…)",
    ("t5", "SEQ_2_SEQ_LM"): "AutoModelForSeq2SeqLM.from_pretrained(…)",
    ("bert", "SEQ_CLS"): "AutoModelForSequenceClassification.from_pretrained(…, num_labels=3)",
    ("bert", "TOKEN_CLS"): "AutoModelForTokenClassification.from_pretrained(…, num_labels=3)",
    ("bert", "QUESTION_ANS"): "AutoModelForQuestionAnswering.from_pretrained(…)",
    ("bert", "FEATURE_EXTRACTION"): "AutoModel.from_pretrained(…)",
    ("t5", "FEATURE_EXTRACTION"): "AutoModelForTextEncoding.from_pretrained(…)",
}


def prompt_of_folder(name, task_type, folder):
    """A saved prompt behind a backbone that was loaded from a folder."""
    made = tiny_classifier(name, task_type) if task_type in AUTO else tiny_model(name)
    made.save_pretrained(folder / "backbone")
    tokenizer_with_cls().save_pretrained(folder / "backbone")
    model = get_prompt_tuning_model(made, PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM"))
    model.save_pretrained(folder / "prompt")
    return model


@pytest.mark.parametrize(("name", "task_type"), CALLS)
def test_the_auto_class_is_named(name, task_type, tmp_path):
    model, call = prompt_of_folder(name, task_type, tmp_path), CALLS[name, task_type]
    with pytest.raises(PromptLoadError) as error:
        load_prompt(tmp_path / "prompt")
    said = f"load the backbone with {call} and give it as backbone=…, or its folder, on the command line --backbone."
    assert said in str(error.value) and "does not name its backbone" in str(error.value)
    kind, _, labels = re.fullmatch(r"(\w+)\.from_pretrained\(…(, num_labels=(\d))?\)", call).groups()
    options = {} if labels is None else {"num_labels": int(labels)}
    by_hand = getattr(transformers, kind).from_pretrained(tmp_path / "backbone", **options)
    for backbone in (by_hand, tmp_path / "backbone"):
        loaded = load_prompt(tmp_path / "prompt", backbone=backbone).model
        assert type(loaded) is type(model) and torch.equal(loaded.prompt, model.prompt)
    assert (
        f"The backbone has no Hub id; load it ({call.replace('.from_pretrained(…', '').replace(')', '')})"
        in (tmp_path / "prompt" / "README.md").read_text()
    )


def test_a_backbone_that_sees_is_loaded_by_its_own_class(tmp_path):
    prompt_of_folder("llama", "CAUSAL_LM", tmp_path)
    file = tmp_path / "prompt" / "prompt_tuning.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"data": described["data"] | {"processor": "LlavaProcessor"}}))
    with pytest.raises(PromptLoadError, match=r"with AutoModelForImageTextToText.from_pretrained\(…\) and give it as"):
        load_prompt(tmp_path / "prompt")


def test_the_tokenizer_of_a_given_backbone_is_found_in_the_cache_that_is_named(tmp_path, tokenizer):
    storage, commit = tmp_path / "cache/models--alice--base", "a" * 40
    (storage / "refs").mkdir(parents=True)
    (storage / "refs/main").write_text(commit)
    made = tiny_model("llama")
    made.save_pretrained(storage / "snapshots" / commit)
    tokenizer.save_pretrained(storage / "snapshots" / commit)
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM")
    get_prompt_tuning_model(made, config).save_pretrained(tmp_path / "prompt")
    cache = {"cache_dir": tmp_path / "cache"}
    backbone = transformers.AutoModelForCausalLM.from_pretrained("alice/base", local_files_only=True, **cache)
    loaded = load_prompt(tmp_path / "prompt", backbone=backbone, **cache)
    assert loaded.tokenizer("never came")["input_ids"] == tokenizer("never came")["input_ids"]
    assert load_prompt(tmp_path / "prompt", backbone=backbone).tokenizer is None

"""Refusals that no other test meets on its way: what is given, and what is said of it."""

import json
import threading

import pytest
import torch
from datasets import Dataset
from tokenizers import normalizers

from hf_prompt_tuning import (
    DataCollatorForPromptTuning,
    PromptTemplate,
    PromptTuningError,
    PromptTuningModelForCausalLM,
    load_prompt,
)
from hf_prompt_tuning.cli.arguments import ModelArguments
from hf_prompt_tuning.cli.main import load_backbone
from hf_prompt_tuning.data.encoding import encode_data
from hf_prompt_tuning.data.tokenization import PromptTokenizer
from hf_prompt_tuning.prompts.info import PromptInfo
from hf_prompt_tuning.training.pickle_free import with_pickles, without_pickles
from hf_prompt_tuning.training.signals import SignalWatch
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model
from tests.shared.tiny_models import tiny_model

TEMPLATE = PromptTemplate(source="{text}", target="{text}")
EMBEDDING = {"dtype": "F32", "quantized": None, "hash": None, "sample": []}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format_version": 0}, "format_version is 0, not a number of 1 or more"),
        ({"template": {"source": 5}}, "template.source is 5, and must be str"),
        ({"template": {"target": "x"}}, "template has no source"),
        (
            {"template": {"source": "x", "label_column": "y", "label_words": {"1": 2}}},
            "label_words holds 2, not a text",
        ),
        ({"metrics": []}, r"metrics is \[\], not an object"),
        ({"metrics": {"loss": 2**70}}, "metrics holds a number of 71 bits"),
        ({"example": {"source": "x"}}, r"example has \['source'\], not source and target"),
        ({"training": {"seed": {}}}, r"training.seed is \{\}, neither a value nor a list of values"),
        ({"history": {"loss": [5]}}, r"history.loss is \[5\], not a list of lists"),
        ({"history": {"loss": [[1, 2, 3]]}}, "history.loss has a row of 3, not 2"),
        ({"confusion_matrix": {"labels": [1]}}, r"confusion_matrix.labels is \[1\], not a list of texts"),
        ({"confusion_matrix": {"labels": ["a"], "counts": []}}, "confusion_matrix.counts has 0 rows for 1 labels"),
        ({"calibration": {"temperature": 2.0}}, "calibration lacks one of temperature, rows, ece, calibrated_ece"),
        ({"teacher": {"tokens": 3}}, "teacher lacks one of kind"),
        (
            {"teacher": {"kind": "text", "text_milliseconds": 3.0}},
            "teacher lacks one of text_milliseconds, prompt_milliseconds, device",
        ),
        (
            {"calibration": {"temperature": 0, "rows": 5, "ece": 0.1, "calibrated_ece": 0.1}},
            "calibration.temperature is 0, not a number above 0",
        ),
        (
            {"nearest_words": [["a"]]},
            r"nearest_words is \[\['a'\]\], not a list of \[word, cosine\] for each position",
        ),
        ({"backbone": {"revision": 5}}, "backbone.revision is 5, not a text"),
        ({"backbone": {"embedding": {"hash": 5}}}, "backbone.embedding.hash is 5, not a text"),
        (
            {"backbone": {"embedding": {"dtype": "F32"}}},
            "backbone.embedding lacks one of dtype, quantized, hash, sample",
        ),
    ],
)
def test_what_is_wrong_in_a_prompts_description(values, message):
    assert PromptInfo.from_json({"format_version": 1, "backbone": {"embedding": EMBEDDING}}).metrics == {}
    with pytest.raises(PromptTuningError, match=message):
        PromptInfo.from_json({"format_version": 1} | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inputs_embeds": torch.ones(2, 4, 32)}, "give either input_ids or inputs_embeds"),
        (
            {"only_labelled": True, "output_attentions": True},
            "output_attentions is given with only_labelled or candid",
        ),
        ({"output_attentions": True}, "output_attentions is given for rows padded at the left"),
    ],
)
def test_what_a_forward_pass_refuses(values, message):
    batch = pad(ragged_rows([4, 3]), "left")
    with pytest.raises(PromptTuningError, match=message):
        tiny_prompt_model("gpt2")(**batch, **values)


def test_what_loading_a_prompt_refuses(tmp_path):
    model = tiny_prompt_model("llama", num_virtual_tokens=3)
    model.save_pretrained(tmp_path / "p")
    with pytest.raises(
        PromptTuningError,
        match=r"does not name its backbone; load the backbone with AutoModelForCausalLM.from_pretrained\(…\) and give "
        "it as backbone=…, or its folder, on the command line --backbone.",
    ):
        load_prompt(tmp_path / "p")
    with pytest.raises(PromptTuningError, match="dtype is given for a backbone that is loaded already"):
        load_prompt(tmp_path / "p", backbone=tiny_model("llama"), dtype="float16")
    for nowhere in (tmp_path / "nowhere", "./nowhere"):
        missing = r"the backbone '.*/nowhere' could not be loaded: there is no such folder, .* Load it yourself"
        with pytest.raises(PromptTuningError, match=missing):
            load_prompt(tmp_path / "p", backbone=nowhere)
    tiny_model("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(
        PromptTuningError, match=r"the tokenizer of '.*bare' could not be loaded: .* Give it as tokenizer="
    ):
        load_prompt(tmp_path / "p", backbone=tmp_path / "bare")
    tiny_prompt_model("llama", num_virtual_tokens=5).save_pretrained(tmp_path / "longer")
    with pytest.raises(PromptTuningError, match="holds 5 virtual tokens, and the prompt 'default' has 3"):
        model.load_adapter(tmp_path / "longer", "default")
    other = tiny_model("llama", seed=9)
    with pytest.raises(PromptTuningError, match=r"is not a prompt of this backbone: .* Or give ignore_mismatch=True"):
        PromptTuningModelForCausalLM.from_pretrained(other, tmp_path / "p")


def test_what_the_command_does_not_load(tmp_path):
    with pytest.raises(PromptTuningError, match="task_type is 'RANKING'; give CAUSAL_LM, SEQ_2_SEQ_LM, SEQ_CLS,"):
        load_backbone(ModelArguments(model_name_or_path=str(tmp_path), task_type="RANKING"))
    with pytest.raises(PromptTuningError, match=r"the backbone '.*' could not be loaded: .* Check its name"):
        load_backbone(ModelArguments(model_name_or_path=str(tmp_path)))


def test_what_a_checkpoint_cannot_hold_or_be(tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    torch.save({"seen": {1, 2}}, tmp_path / "scheduler.pt")
    with pytest.raises(PromptTuningError, match="a checkpoint holds a set, which is not sent to the Hub"):
        without_pickles(tmp_path, made)
    (made / "scheduler.pt.json").write_text(json.dumps({"tensor": "0"}))
    with pytest.raises(PromptTuningError, match=r"scheduler.pt.json cannot be resumed from"), with_pickles(made):
        pass


def test_what_is_no_data(tokenizer):
    encoder = PromptTokenizer(TEMPLATE, tokenizer, False)
    with pytest.raises(
        PromptTuningError, match="the training data is a TensorDataset, and a template makes text of rows"
    ):
        encode_data(torch.utils.data.TensorDataset(torch.ones(3)), "training", encoder, None, True)
    with pytest.raises(PromptTuningError, match=r"the rows have \['labels'\] and no 'input_ids'"):
        DataCollatorForPromptTuning(tokenizer)([{"labels": [5]}])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("day", "")
    with pytest.raises(PromptTuningError, match=r"row 1 of the test data: the source 'day' tokenizes to nothing"):
        PromptTokenizer(TEMPLATE, tokenizer, False).encode_dataset(Dataset.from_list([{"text": "day"}]), "test")


def test_signals_are_for_the_main_thread():
    found = []

    def watch():
        with pytest.raises(PromptTuningError, match="save_on_signal is True outside the main thread"), SignalWatch():
            found.append("watches")
        found.append("refused")

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert found == ["refused"]

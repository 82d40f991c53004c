"""Refusals of whole runs (several prompts, several processes, reports) that no other test meets on its way."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hf_prompt_tuning import (
    PromptLoadError,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.data.collator import DataCollatorForPromptTuning
from hf_prompt_tuning.inspection.effects import attention_to_prompt
from hf_prompt_tuning.prompts.ensemble_info import EnsembleInfo
from hf_prompt_tuning.prompts.files import START_FILE, read_prompt
from hf_prompt_tuning.several.checks import check_arguments, check_prompts
from hf_prompt_tuning.several.ensemble import load_ensemble
from hf_prompt_tuning.several.task import PromptTask, model_with_prompts
from hf_prompt_tuning.training.distributed import keep_prompts_whole
from tests.shared.ensembles import make
from tests.shared.reference import tiny_prompt_model
from tests.shared.several_prompts import random_prompt
from tests.shared.tiny_models import make_tokenizer, tiny_model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "the name is 'a/b'; a prompt's name is 1 to 64 letters"),
        ("train", "the name 'train' is taken by PyTorch, PEFT or the Trainer"),
    ],
)
def test_names_of_prompts(name, message):
    with pytest.raises(PromptTuningError, match=message):
        PromptTask(name, random_prompt(2))


def test_models_that_do_not_fit_their_tasks():
    with pytest.raises(PromptTuningError, match="the backbone is a Linear; give a language model of transformers"):
        model_with_prompts(torch.nn.Linear(1, 1), [PromptTask("a", random_prompt(2))], None, 0)
    with pytest.raises(PromptTuningError, match=r"the model has the prompts \['default'\], and the tasks are \['a'\]"):
        check_prompts(tiny_prompt_model("llama"), [PromptTask("a", random_prompt(2))])


def test_several_prompts_on_several_devices():
    with pytest.raises(PromptTuningError, match="this run has 2 devices; several prompts train on one"):
        check_arguments(SimpleNamespace(world_size=1, n_gpu=2))


def test_ensembles(tmp_path, messages):
    with pytest.raises(PromptTuningError, match="an ensemble needs the template and the tokenizer"):
        make(tmp_path, messages, template=None)
    make(tmp_path, messages, evaluate=False).save_model()
    with pytest.raises(PromptLoadError, match="has no template, or its backbone no tokenizer here"):
        load_ensemble(tmp_path, backbone=tiny_model("llama"))
    file = tmp_path / "two/prompt_tuning.json"
    info = json.loads(file.read_text())
    info["template"]["source"] = "{message} ?"
    file.write_text(json.dumps(info))
    with pytest.raises(PromptLoadError, match="the prompts 'one' and 'two' have different templates"):
        load_ensemble(tmp_path, backbone=tiny_model("llama"), tokenizer=make_tokenizer())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"members": ["one"], "best": "one"}, r"members is \['one'\], not a list of 2 to \d+ names"),
        ({"members": ["a", "b"], "best": "c"}, r"the members are \['a', 'b'\] and the best is 'c'"),
    ],
)
def test_descriptions_of_ensembles(values, message):
    with pytest.raises(PromptTuningError, match=message):
        EnsembleInfo.from_json({"format_version": 1, "metrics": {}} | values)


def test_an_embedding_without_numbers(tokenizer):
    config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init_text="day")
    with pytest.raises(PromptTuningError, match="the backbone's embedding is on the meta device"):
        get_prompt_tuning_model(tiny_model("llama").to("meta"), config, tokenizer)


def test_loading_that_would_shard_the_prompt():
    plugin = SimpleNamespace(cpu_ram_efficient_loading=True)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin)))
    with pytest.raises(PromptTuningError, match="fsdp_cpu_ram_efficient_loading is on"):
        keep_prompts_whole(trainer)


def test_a_start_of_another_prompt(tmp_path):
    tiny_prompt_model("llama", num_virtual_tokens=3).save_pretrained(tmp_path)
    save_file({"prompt_embeddings": torch.ones(2, 32)}, tmp_path / START_FILE)
    with pytest.raises(PromptLoadError, match="The two files are not of one prompt; remove the first, which"):
        read_prompt(tmp_path)


def test_no_rows_to_look_at():
    with pytest.raises(PromptTuningError, match="there are no rows to look at"):
        attention_to_prompt(tiny_prompt_model("llama"), [], DataCollatorForPromptTuning())

"""`pipeline(task, model="user/prompt")`: what `load_prompt` loads, and one message where it refuses."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AutoTokenizer, pipeline

from hf_prompt_tuning import (
    PromptLoadError,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.errors import HubUnavailableError
from tests.shared.hub_client import contents, local_hub
from tests.shared.tiny_models import make_tokenizer, tiny_model

BACKBONE, ID, TASK = "alice/backbone", "alice/prompt", "prompt-classification"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("repositories")
    backbone = tiny_model("llama")
    backbone.save_pretrained(folder / "backbone")
    make_tokenizer().save_pretrained(folder / "backbone")
    template = PromptTemplate("{message} Label :", label_column="label", label_words={"1": "great", "2": "awful"})
    config = PromptTuningConfig(
        num_virtual_tokens=3, prompt_tuning_init="RANDOM", base_model_name_or_path=BACKBONE, revision="main"
    )
    get_prompt_tuning_model(backbone, config, template=template).save_pretrained(folder / "prompt")
    return {BACKBONE: contents(folder / "backbone"), ID: contents(folder / "prompt")}


@pytest.fixture
def hub(monkeypatch, tmp_path, repositories):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.5)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("whoever sits there was asked"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        for repo_id, files in repositories.items():
            server.put(repo_id, files)
        yield server


def refused(kind=PromptLoadError, model=ID, task=TASK, **options) -> str:
    with pytest.raises(kind) as error:
        pipeline(task, model=model, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    with pytest.raises(type(error.value)) as alone:
        load_prompt(model, **options)
    assert message == str(alone.value)
    return message


def test_it_is_what_load_prompt_loads(hub):
    pipe = pipeline(TASK, model=ID)
    model, tokenizer, _ = load_prompt(ID)
    by_hand = pipeline(TASK, model=model, tokenizer=tokenizer)
    assert pipe("a dog", top_k=2) == by_hand("a dog", top_k=2)
    assert pipeline(TASK, model=ID, tokenizer=AutoTokenizer.from_pretrained(BACKBONE))("a dog") == by_hand("a dog")
    assert pipeline(TASK, model=ID, tokenizer=BACKBONE)("a dog") == by_hand("a dog")
    eager = pipeline(TASK, model=ID, dtype=torch.bfloat16, model_kwargs={"attn_implementation": "eager"})
    assert eager.model.dtype == torch.bfloat16 and eager.model.config._attn_implementation == "eager"


def test_a_revision_is_the_prompts(hub, repositories):
    first = hub.commits(ID)[-1][0]
    info = json.loads(repositories[ID]["prompt_tuning.json"])
    info["template"]["source"] = "{message} !"
    hub.put(ID, {"prompt_tuning.json": json.dumps(info).encode()})
    assert pipeline(TASK, model=ID).model.info.template.source == "{message} !"
    assert pipeline(TASK, model=ID, revision=first).model.info.template.source == "{message} Label :"
    assert pipeline(TASK, model=ID, revision="main").model.info.template.source == "{message} !"


def test_the_backbone_and_its_tokenizer_are_of_the_recorded_commit(hub, repositories, tmp_path):
    first = hub.commits(BACKBONE)[-1][0]
    info = json.loads(repositories[ID]["prompt_tuning.json"])
    info["backbone"]["revision"] = first
    hub.put(ID, {"prompt_tuning.json": json.dumps(info).encode()})
    changed = repositories[BACKBONE]["tokenizer_config.json"].replace(b"<pad>", b"</s>")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    weights = (tmp_path / "other" / "model.safetensors").read_bytes()
    hub.put(BACKBONE, {"tokenizer_config.json": changed, "model.safetensors": weights})
    assert pipeline(TASK, model=ID).tokenizer.pad_token == "<pad>"


def code(repositories):
    config = json.loads(repositories[BACKBONE]["config.json"])
    config |= {"auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}, "model_type": "theirs"}
    return {"config.json": json.dumps(config).encode(), "code.py": b"raise SystemExit('it was run')"}


def tokenizer_code(repositories):
    config = json.loads(repositories[BACKBONE]["tokenizer_config.json"])
    config |= {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"}
    return {"tokenizer_config.json": json.dumps(config).encode(), "code.py": b"raise SystemExit('it was run')"}


def pickles(_):
    return {"model.safetensors": None, "pytorch_model.bin": b"cos\nsystem\n(S'true'\ntR."}


def nothing(_):
    return {"config.json": None, "model.safetensors": None}


@pytest.mark.parametrize("change", [code, pickles, nothing])
@pytest.mark.parametrize("task", ["prompt-classification", "prompt-generation"])
def test_a_backbone_that_is_not_safe_is_refused_in_one_message(hub, repositories, change, task):
    hub.put(BACKBONE, change(repositories))
    assert "the backbone 'alice/backbone' could not be loaded" in refused(task=task)
    with pytest.raises(PromptLoadError, match="alice/backbone"):
        pipeline(task, model=ID, trust_remote_code=change is code)


def test_a_tokenizers_code_is_not_run(hub, repositories):
    hub.put(BACKBONE, tokenizer_code(repositories))
    try:
        tokenizer = load_prompt(ID)[1]
    except PromptLoadError:
        refused()
    else:
        assert type(pipeline(TASK, model=ID).tokenizer) is type(tokenizer)


@pytest.mark.parametrize("name", ["../backbone", "/etc", "bob/none"])
def test_the_backbone_that_it_names(hub, repositories, name):
    adapter = json.loads(repositories[ID]["adapter_config.json"]) | {"base_model_name_or_path": name}
    info = json.loads(repositories[ID]["prompt_tuning.json"])
    info["backbone"]["name_or_path"] = name
    hub.put(ID, {"adapter_config.json": json.dumps(adapter).encode(), "prompt_tuning.json": json.dumps(info).encode()})
    assert name in refused()


def test_a_prompt_that_names_no_backbone(hub, repositories):
    adapter = json.loads(repositories[ID]["adapter_config.json"]) | {"base_model_name_or_path": None}
    hub.put(ID, {"adapter_config.json": json.dumps(adapter).encode(), "prompt_tuning.json": None})
    with pytest.raises(PromptLoadError, match="the prompt does not name its backbone; load both"):
        pipeline(TASK, model=ID)


def test_what_is_no_prompt(hub, repositories):
    adapter = json.loads(repositories[ID]["adapter_config.json"]) | {"peft_type": "LORA"}
    hub.put("alice/lora", {"adapter_config.json": json.dumps(adapter).encode()})
    assert "alice/lora is a LORA adapter" in refused(model="alice/lora")
    assert "has no adapter_config.json" in refused(model=BACKBONE)


@pytest.mark.parametrize("name", ["prompt_tuning.json", "adapter_model.safetensors"])
def test_a_server_that_fails(hub, name):
    hub.fail(name, status=503)
    assert "the server says 503" in refused(HubUnavailableError)
    hub.heal()
    assert pipeline(TASK, model=ID)("a dog")["label"] in ("great", "awful")
    hub.fail("/*", status=503, headers={"Retry_After": "0"})
    assert pipeline(TASK, model=ID)("a dog")["label"] in ("great", "awful")


def test_a_model_without_its_tokenizer():
    model = get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=3))
    with pytest.raises(PromptTuningError, match="tokenizer is not given; give it as tokenizer="):
        pipeline(TASK, model=model)
    with pytest.raises(PromptLoadError, match=r"the tokenizer of 'no-where' could not be loaded: .* Give another as"):
        pipeline(TASK, model=model, tokenizer="no-where")


def test_other_pipelines_are_as_they_were(hub, monkeypatch):
    assert pipeline("text-generation", model=BACKBONE)("a dog", max_new_tokens=2)[0]["generated_text"]
    config = transformers.pipelines.AutoConfig.from_pretrained(BACKBONE)
    assert type(config) is type(transformers.AutoConfig.from_pretrained(BACKBONE))


def test_with_a_terminal_nobody_is_asked(hub, repositories, tmp_path):
    """In a process of its own, whose standard input says yes."""
    hub.put(BACKBONE, code(repositories))
    script = f"""
from transformers import pipeline
import hf_prompt_tuning
try:
    pipeline({TASK!r}, model={ID!r})
except hf_prompt_tuning.PromptLoadError as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=hub.environment(tmp_path / "home"),
        input="y\n" * 10,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("refused: the backbone 'alice/backbone' could not be loaded"), done.stderr
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr

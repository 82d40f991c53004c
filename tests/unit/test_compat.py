"""Differences between versions: all in the folder compat, and each mended or refused on every version."""

import ast
import re
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from packaging.version import InvalidVersion, Version
from torch import nn
from transformers import DynamicCache

from hf_prompt_tuning import PromptLoadError, PromptTuningError
from hf_prompt_tuning.compat import peft as compat_peft
from hf_prompt_tuning.compat import transformers as compat
from hf_prompt_tuning.compat.newest import NEWEST_TESTED
from hf_prompt_tuning.hub.backbones import load_backbone
from hf_prompt_tuning.training.hooks import ATTRIBUTES, METHODS
from tests.shared.architectures import tiny_backbone
from tests.shared.reference import tiny_prompt_model
from tests.shared.repository import ROOT
from tests.shared.tiny_models import tiny_model

PACKAGE = ROOT / "hf_prompt_tuning"
DIFFER = {
    "_prepare_encoder_decoder_kwargs_for_generation",
    "_set_pg_timeout",
    "_sync_replicated_trainable_parameters",
    "cache",
    "is_activation_checkpointing",
    "is_gradient_checkpointing",
    "read_tree_cache",
    "past_key_values",
    "prompt_ignore_length",
    "resolve_revision",
}
IDS = torch.arange(5, 15).view(2, 5)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_else_asks_for_a_version_or_a_name_that_some_lack(file):
    asked = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            asked |= {node.attr} & (DIFFER - {"cache"} | {"__version__"})  # our own HubFolder has a cache, too
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            asked |= {node.value} & DIFFER
        elif isinstance(node, ast.keyword):
            asked |= {node.arg} & DIFFER
    if file.name == "hooks.py":
        asked.discard("_sync_replicated_trainable_parameters")  # its table lists the names of all hooks
    assert asked == set() or file.parent.name == "compat"
    named = re.findall(
        r"(?i)\b(?:transformers|peft|torch|accelerate) (?:from )?\d+\.\d+|\bfrom \d\.\d+", file.read_text()
    )
    assert not named or file.parent.name == "compat" or file.name == "hooks.py"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "t5", "jamba"])
def test_a_cache_of_keys_and_values_has_one_name(name):
    backbone = tiny_backbone(name) if name == "jamba" else tiny_model(name)
    assert compat.cache_name(backbone) == compat.CACHE
    assert compat.as_cache(backbone, None) == {}
    assert compat.with_cache_renamed(backbone, {"use_cache": True, "cache": None}) == {
        "use_cache": True,
        "cache": None,
    }


@pytest.mark.parametrize("given", compat.CACHE_NAMES)
def test_states_are_no_cache_whatever_they_are_called(given):
    model = tiny_prompt_model("mamba")
    assert compat.cache_name(model.base_model) is None
    for call in (model, model.generate):
        with pytest.raises(PromptTuningError, match=f"{given} is given"):
            call(IDS, **{given: DynamicCache()})


@pytest.mark.parametrize("name", compat.CACHE_NAMES)
def test_a_caller_may_use_either_name(name):
    model = tiny_prompt_model("llama").eval()
    whole = model(IDS).logits[:, -1]
    cache = DynamicCache()
    first = model(IDS[:, :4], **{name: cache}, use_cache=True)
    assert compat.cache_in(first) is cache
    torch.testing.assert_close(model(IDS[:, 4:], **{name: cache}).logits[:, -1], whole)
    model, cache = tiny_prompt_model("t5").eval(), DynamicCache()
    start = torch.zeros(2, 1, dtype=torch.long)
    assert compat.cache_in(model(IDS, decoder_input_ids=start, **{name: cache}, use_cache=True)) is not None


def test_two_caches_are_refused():
    with pytest.raises(PromptTuningError, match="cache and past_key_values are given, which are one; leave one out"):
        tiny_prompt_model("llama")(IDS, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("version", ["5.22.2", "5.23.0"])
def test_a_repetition_penalty_ignores_pads(version, monkeypatch):
    monkeypatch.setattr(compat, "TRANSFORMERS", min(Version(version), compat.TRANSFORMERS))
    penalty = compat.repetition_penalty(2.0, torch.tensor([0, 2]))
    scores = penalty(torch.tensor([[1, 1, 2], [1, 1, 2]]), torch.tensor([[1.0, 1.0, -1.0, 1.0]] * 2))
    assert scores.tolist() == [[1.0, 0.5, -2.0, 1.0], [1.0, 1.0, -2.0, 1.0]]


def test_what_an_old_version_does_wrong_is_refused(monkeypatch):
    monkeypatch.setattr(compat, "TRANSFORMERS", Version("5.17.0"))
    with pytest.raises(
        PromptTuningError, match=r"prompt_lookup_num_tokens is given, and transformers 5\.17\.0 checks"
    ):
        tiny_prompt_model("llama").eval().generate(IDS[:1], prompt_lookup_num_tokens=3)
    with pytest.raises(PromptTuningError, match=r"FSDP2 is on, .* install transformers 5\.19 or newer"):
        compat.average_prompts_over_processes(SimpleNamespace())
    hooks = {name: hook for table in (METHODS, ATTRIBUTES) for name, hook in table.items()}
    assert set(hooks) - set(compat.needed_hooks(hooks)) == {"_sync_replicated_trainable_parameters"}
    monkeypatch.setattr(compat, "TRANSFORMERS", Version("5.6.0"))
    assert set(hooks) - set(compat.needed_hooks(hooks)) == {
        "_sync_replicated_trainable_parameters",
        "_loss_shifts_labels",
    }


def test_a_gguf_file_is_refused_where_transformers_does_not_find_gguf(monkeypatch, tmp_path):
    """As 5.20 and older do not on Python 3.10."""

    def fails():
        raise InvalidVersion("Invalid version: 'N/A'")

    monkeypatch.setattr(compat, "is_gguf_available", fails)
    with pytest.raises(
        PromptLoadError, match=r"could not be loaded: transformers .* does not find the version of the library gguf"
    ):
        load_backbone(str(tmp_path), "CAUSAL_LM", {}, "", gguf_file="x.gguf")


@pytest.mark.parametrize("version", ["0.20.0", "0.21.2"])
@pytest.mark.parametrize("active", ["default", "b"])
def test_a_deleted_prompt_leaves_the_others(version, active, monkeypatch):
    monkeypatch.setattr(compat_peft, "PEFT", min(Version(version), compat_peft.PEFT))
    model = tiny_prompt_model("llama")
    model.add_adapter("b", model.peft_config["default"])
    model.set_adapter(active)
    kept = model.prompt_encoder["b"].embedding.weight.clone()
    with pytest.warns(UserWarning, match="default was active") if active == "default" else nullcontext():
        model.delete_adapter("default")
    assert list(model.peft_config) == list(model.prompt_encoder) == list(model.prompt_tokens) == ["b"]
    assert model.active_adapter == "b" and torch.equal(model.prompt, kept)


def test_peft_finds_the_method_of_encoders_that_transformers_has_no_more(monkeypatch):
    monkeypatch.setattr(compat_peft, "PEFT", Version("0.20.0"))
    backbone = nn.Linear(1, 1)
    with compat_peft.encoder_method(backbone):
        assert getattr(backbone, compat_peft.ENCODER) is None
    assert not hasattr(backbone, compat_peft.ENCODER)


@pytest.mark.parametrize("newer", [[], ["peft"], ["transformers", "accelerate"]], ids=" and ".join)
def test_one_line_is_logged_where_a_library_is_newer_than_tested(newer, tmp_path):
    """The libraries are those installed. Their metadata, of which Python takes the first, tell another version."""
    for name, tested in NEWEST_TESTED.items():
        told = tmp_path / f"{name}.dist-info" / "METADATA"
        told.parent.mkdir()
        told.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {'99.1' if name in newer else tested}+cpu\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from hf_prompt_tuning import load_prompt, PromptTuningTrainer"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tested = ", ".join(f"{name} {NEWEST_TESTED[name]}" for name in newer)
    installed = ", ".join(f"{name} 99.1+cpu" for name in newer)
    line = f"hf_prompt_tuning was tested with {tested} at the newest, and {installed} is installed."
    assert [told for told in done.stderr.splitlines() if "was tested" in told] == ([line] if newer else [])

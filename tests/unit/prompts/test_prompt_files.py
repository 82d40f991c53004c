"""A prompt's files are whole, or named as what is wrong."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prompt_tuning import PromptLoadError, PromptTemplate, PromptTuningConfig, get_prompt_tuning_model, load_prompt
from hf_prompt_tuning.prompts.files import read_prompt
from tests.shared.reference import tiny_prompt_model, with_prompts
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.versions import finds_gguf


@pytest.fixture
def folder(tmp_path):
    tiny_prompt_model("llama", num_virtual_tokens=3).save_pretrained(tmp_path)
    return tmp_path


def test_round_trip(folder):
    vectors, config, info, source, backbone, start, head, classifier = read_prompt(folder)
    assert torch.equal(start, vectors)  # nothing was trained
    assert vectors.shape == (3, 32) and vectors.dtype == torch.float32 and head.shape == (0, 32)
    assert config.num_virtual_tokens == 3 and classifier is None
    assert info.initialization["prompt_tuning_init"] == "RANDOM"
    info.write(folder)
    assert source == str(folder)
    assert backbone["architecture"] == "LlamaForCausalLM" and backbone["num_layers"] == 2
    assert read_prompt(folder).info == info


def test_numbers_that_json_does_not_have_are_in_no_file_and_no_card(tmp_path):
    """A prompt with them could not be loaded again, and the Hub refuses a card with infinite results."""
    model, nan = tiny_prompt_model("llama", num_virtual_tokens=3), float("nan")
    model.info.metrics = {"eval_acc": 0.5, "eval_f1": nan, "eval_loss": float("inf")}
    model.info.untuned_metrics = {"untuned_acc": nan}
    model.info.transfer = {"other": {"acc": 0.25, "loss": nan}}
    model.info.history = {"loss": [[1, nan], [2, torch.tensor(0.5)]]}
    model.info.calibration = {"temperature": nan, "rows": 3, "ece": 0.1, "calibrated_ece": 0.1}
    model.save_pretrained(tmp_path)
    info, card = read_prompt(tmp_path).info, (tmp_path / "README.md").read_text(encoding="utf-8")
    assert info.metrics == {"eval_acc": 0.5} and info.untuned_metrics == {} and info.calibration == {}
    assert info.transfer == {"other": {"acc": 0.25}} and info.history == {"loss": [[2, 0.5]]}
    assert not re.search(r"\b(nan|inf)\b", card, re.IGNORECASE) and "| acc | 0.5000 |" in card
    assert len(model.info.metrics) == 3 and len(model.info.history["loss"]) == 2  # the caller's stay


def test_any_text_is_one_cell_of_the_cards_tables(tmp_path):
    model = tiny_prompt_model("llama", num_virtual_tokens=3)
    model.info.initialization = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a\rb\r\nc\u2028d|e"}
    model.info.metrics, model.info.data, model.info.training = {"eval_a|b": 0.5}, {"c|d": "x"}, {"e|\nf": "y\r"}
    model.save_pretrained(tmp_path)
    lines = (tmp_path / "README.md").read_bytes().decode().split("\n")
    for line in (
        "| started from | the words “a b c d\\|e” |",
        "| a\\|b | 0.5000 |",
        "| c\\|d | x |",
        "| e\\| f | y |",
    ):
        assert line in lines


def test_an_empty_name_is_not_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert read_prompt(".").vectors.shape == (3, 32)
    with pytest.raises(PromptLoadError, match="the prompt is ''; give a folder or a Hub id"):
        read_prompt("")


def declare(file, shape):
    """A header that promises a tensor of this shape, and no bytes behind it."""
    size = 4 * shape[0] * shape[1]
    header = json.dumps({"prompt_embeddings": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json; a prompt's folder holds"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "is not a prompt's adapter_config.json"),
        (lambda f: change(f / "adapter_config.json", peft_type="LORA"), "is a LORA adapter, not a soft prompt"),
        (lambda f: change(f / "adapter_config.json", peft_type="LOTA"), "its peft_type is 'LOTA', not PROMPT_TUNING"),
        (lambda f: change(f / "adapter_config.json", num_virtual_tokens=4), "says 4 virtual tokens and .* holds 3"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"xx"), "is not a whole safetensors file"),
        (lambda f: save_file({"a": torch.ones(1)}, f / "adapter_model.safetensors"), "no tensor `prompt_embeddings`"),
        (
            lambda f: save_file({"prompt_embeddings": torch.ones(3)}, f / "adapter_model.safetensors"),
            r"shape \[3\]; a prompt is \[P, H\]",
        ),
        (
            lambda f: save_file(
                {"prompt_embeddings": torch.full((3, 32), torch.inf)}, f / "adapter_model.safetensors"
            ),
            "NaN or infinite",
        ),
        (
            lambda f: (f / "prompt_tuning.json").write_text("[]"),
            "is not a prompt's .*: it holds a list",
        ),
        (lambda f: change(f / "prompt_tuning.json", format_version=9), "it is of format 9"),
        (lambda f: change(f / "prompt_tuning.json", template={"sauce": "x"}), "template has an unknown field 'sauce'"),
        (
            lambda f: change(f / "prompt_tuning.json", template={"source": "{x.__class__}", "target": "{y}"}),
            "a field is a column's name, nothing else: take out '.__'",
        ),
        (
            lambda f: change(f / "prompt_tuning.json", metrics={"eval_loss": "low"}),
            "metrics holds 'low', not a number",
        ),
        (
            lambda f: change(f / "adapter_config.json", num_virtual_tokens="3"),
            "num_virtual_tokens is '3', and must be int",
        ),
        (lambda f: change(f / "adapter_config.json", task_type="OTHER"), "task_type is 'OTHER', not"),
        (lambda f: (f / "prompt_tuning.json").write_text("[" * 100_000), "recursion"),
        (lambda f: (f / "prompt_tuning.json").write_text(" " * (2**22 + 1)), "it is larger than 4 MB"),
        (
            lambda f: save_file({"prompt_embeddings": torch.ones(3, 32).int()}, f / "adapter_model.safetensors"),
            "numbers of type I32",
        ),
        (lambda f: declare(f / "adapter_model.safetensors", [2**20, 2**20]), "at most 134217728 numbers|not a whole"),
    ],
)
def test_what_is_wrong_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(PromptLoadError, match=message):
        read_prompt(folder)


def test_a_folder_without_a_prompt(tmp_path):
    with pytest.raises(PromptLoadError, match=r"has no adapter_config\.json"):
        read_prompt(tmp_path)
    with pytest.raises(PromptLoadError, match="is neither a folder on this machine nor a Hub id"):
        read_prompt(tmp_path / "nowhere")


def test_no_folder_of_this_machine_is_written_down(tmp_path):
    backbone = tiny_model("llama")
    backbone.save_pretrained(tmp_path / "backbone")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3))
    model.save_pretrained(tmp_path / "prompt")
    for file in (tmp_path / "prompt").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
    named = PromptTuningConfig(num_virtual_tokens=3, base_model_name_or_path="alice/llama")
    get_prompt_tuning_model(tiny_model("llama"), named).save_pretrained(tmp_path / "named")
    assert json.loads((tmp_path / "named" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "alice/llama"
    )


def test_a_pickled_backbone_is_not_read(tmp_path):
    """From a folder, where no Hub can answer in its place; the same folder with safetensors loads."""
    backbone = tiny_model("llama")
    get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3)).save_pretrained(tmp_path / "prompt")
    folder = tmp_path / "backbone"
    backbone.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    assert load_prompt(tmp_path / "prompt", backbone=folder)[0].prompt.shape == (3, 32)
    (folder / "model.safetensors").unlink()
    torch.save(backbone.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(PromptLoadError, match=r"no file named model\.safetensors"):
        load_prompt(tmp_path / "prompt", backbone=folder)


def test_what_is_loaded_explains_itself(folder):
    backbone = tiny_model("llama")
    loaded = load_prompt(folder, backbone=backbone, tokenizer=make_tokenizer())
    model, tokenizer, template = loaded
    assert (loaded.model, loaded.tokenizer, loaded.template) == (model, tokenizer, template)
    assert loaded[0] is model and model.get_base_model() is backbone
    assert repr(load_prompt(folder, backbone=backbone)) == (
        f"LoadedPrompt({str(folder)!r}: 3 virtual tokens on LlamaForCausalLM, no template, no tokenizer)"
    )
    template = PromptTemplate("A {message}", label_column="label", label_words={"1": "good", "2": "bad"})
    named = tiny_prompt_model("llama", num_virtual_tokens=4)
    named.info.template, backbone.name_or_path = template, "alice/llama"
    named.save_pretrained(folder)
    assert repr(load_prompt(folder, backbone=backbone, tokenizer=tokenizer)) == (
        f"LoadedPrompt({str(folder)!r}: 4 virtual tokens on LlamaForCausalLM 'alice/llama', "
        f"'A {{message}}' -> good | bad, {type(tokenizer).__name__})"
    )


def test_a_folder_has_no_revision(folder):
    with pytest.raises(PromptLoadError, match=r"revision is 'v2', and '.*' is a folder on this machine"):
        load_prompt(folder, revision="v2", backbone=tiny_model("llama"))


@pytest.mark.skipif(not finds_gguf(), reason="transformers does not find gguf's version")
def test_a_gguf_files_tokenizer_is_read_from_it(folder, monkeypatch):
    asked = {}

    def answer(kind, made):
        return lambda name, **kwargs: asked.setdefault(kind, kwargs) and made

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", answer("backbone", tiny_model("llama")))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", answer("tokenizer", make_tokenizer()))
    model = load_prompt(folder, backbone="some/where", gguf_file="model.gguf").model
    assert asked["backbone"]["gguf_file"] == asked["tokenizer"]["gguf_file"] == "model.gguf"
    assert model.fingerprint["embedding"]["quantized"] == "gguf"


def test_a_prompt_that_is_pushed_alone_is_at_the_root(tmp_path):
    model = with_prompts(tiny_prompt_model("llama"), other=3)
    model.set_adapter("other")
    card = (model.save_for_hub(tmp_path, "alice/other") / "README.md").read_text()
    assert (
        "load_prompt('alice/other', backbone=backbone" in card and "from_pretrained(backbone, 'alice/other')" in card
    )
    model.save_pretrained(tmp_path, repo_id="alice/both")
    assert "load_prompt('alice/both', subfolder='other', " in (tmp_path / "other" / "README.md").read_text()
    assert "load_prompt('alice/both', backbone" in (tmp_path / "README.md").read_text()


def test_a_prompt_that_is_saved_over_another_leaves_nothing_of_it(tmp_path):
    first = tiny_prompt_model("llama")
    first.info.metrics, first.info.history = {"eval_loss": 1.0}, {"loss": [[1, 2.0]]}
    first.info.confusion_matrix = {"labels": ["a", "b"], "counts": [[1, 0], [0, 1]]}
    first.save_pretrained(tmp_path)
    left = {"results.json", "loss.png", "confusion_matrix.png", "initial_prompt.safetensors"}
    assert left < {file.name for file in tmp_path.iterdir()}
    tiny_prompt_model("llama", prompt_tuning_init="FIRST_VOCAB").save_pretrained(tmp_path)
    assert not left & {file.name for file in tmp_path.iterdir()}

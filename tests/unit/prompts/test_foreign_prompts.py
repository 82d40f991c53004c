"""Prompts of other codebases come in as their vectors, or are refused by name."""

import json
import random
import zipfile

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_prompt_tuning import PromptLoadError, PromptTuningConfig, get_prompt_tuning_model, import_prompt
from tests.shared.tiny_models import tiny_model

P, H = 3, 32
VECTORS = torch.randn(P, H, generator=torch.Generator().manual_seed(0))


def peft_folder(folder, weights):
    folder.mkdir()
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": P}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if weights == "adapter_model.bin":
        torch.save({"prompt_embeddings": VECTORS}, folder / weights)
    else:
        save_file({"prompt_embeddings": VECTORS}, folder / weights)
    return folder


def soft_embedding(file, inside):
    """As kipgparker's module sits in a model: the vocabulary's embedding beside the learned one."""
    module = nn.Module()
    module.wte = nn.Embedding(10, H)
    module.learned_embedding = nn.Parameter(VECTORS.clone())
    if inside:
        outer = nn.Module()
        outer.transformer = module
        module = outer
    torch.save(module.state_dict(), file)
    return file


def saved(kind, folder):
    if kind.startswith("peft"):
        return peft_folder(folder / "p", kind.removeprefix("peft "))
    if kind.startswith("soft_embedding"):
        return soft_embedding(folder / "p.pt", inside="model" in kind)
    if kind == "google":
        np.save(folder / "p.npy", VECTORS.numpy())
        return folder / "p.npy"
    if kind == "ruprompts":
        (folder / "p").mkdir()
        torch.save(VECTORS, folder / "p" / "prompt_provider.bin")
        (folder / "p" / "prompt.json").write_text(json.dumps({"format": {"template": "<P*3>{text}"}, "config": {}}))
        return folder / "p"
    others = {"other": torch.ones(2)} if "names" in kind else {}
    save_file({"soft_prompt": VECTORS.half() if "half" in kind else VECTORS} | others, folder / "p.safetensors")
    return folder / "p.safetensors"


KINDS = {
    "peft adapter_model.safetensors": "peft",
    "peft adapter_model.bin": "peft",
    "soft_embedding": "soft_embedding",
    "soft_embedding in a model": "soft_embedding",
    "google": "google",
    "ruprompts": "ruprompts",
    "safetensors": "safetensors",
    "safetensors, half": "safetensors",
    "safetensors, several names": "safetensors",
}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_come_in_by_name_and_by_content(kind, tmp_path):
    path = saved(kind, tmp_path)
    expected = VECTORS.half().float() if "half" in kind else VECTORS
    for found in (import_prompt(path), import_prompt(path, format=KINDS[kind])):
        assert found.dtype == torch.float32 and torch.equal(found, expected)
    model = get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(init_prompt=str(path)))
    assert torch.equal(model.prompt, expected) and model.prompt.requires_grad


def test_what_peft_itself_saves(tmp_path):
    model = peft.get_peft_model(
        tiny_model("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    )
    model.save_pretrained(tmp_path)
    assert torch.equal(import_prompt(tmp_path), model.prompt_encoder["default"].embedding.weight)


def test_an_encoder_decoders_unused_half_is_left_out(tmp_path):
    """PEFT keeps 2P rows for it by default, and saves them in either format."""
    model = peft.get_peft_model(
        tiny_model("t5"), peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=P)
    )
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").exists()
    weight = model.prompt_encoder["default"].embedding.weight
    assert weight.shape == (2 * P, H) and torch.equal(import_prompt(tmp_path), weight[:P])
    ours = get_prompt_tuning_model(tiny_model("t5"), PromptTuningConfig(init_prompt=str(tmp_path)))
    ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, 2]])
    assert ours(input_ids=ids, labels=labels).loss.item() == pytest.approx(
        model(input_ids=ids, labels=labels).loss.item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("template", "warned"),
    [("<P*3>{text}", False), ("<P>Text</P><P>{text}", False), ("<P*2>{text}<P>", True), ("{a}<P>So:</P>", True)],
)
def test_vectors_that_did_not_stand_in_front_are_warned_of(template, warned, tmp_path, caplog):
    path = saved("ruprompts", tmp_path)
    (path / "prompt.json").write_text(json.dumps({"format": {"template": template}}))
    assert torch.equal(import_prompt(path), VECTORS)
    assert ["did not all stand in front" in r.getMessage() for r in caplog.records] == [True] * warned


def compressed(file):
    """A file that is larger in memory than on disk."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 2**20)


class Harmful:
    def __reduce__(self):
        return open, ("/tmp/never", "w")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("p.pt", lambda f: torch.save({"learned_embedding": Harmful()}, f), "no file of tensors alone"),
        ("p.npy", lambda f: np.save(f, np.array([{}], dtype=object), allow_pickle=True), "cannot be read as a .npy"),
        ("p.npy", lambda f: np.save(f, np.ones((2, 2), dtype=int)), "not floating-point"),
        ("p.npy", lambda f: np.save(f, np.ones(4)), r"shape \[4\]; a prompt is \[P, H\]"),
        ("p.npy", lambda f: np.save(f, np.full((2, 2), np.nan)), "NaN or infinite"),
        ("p.pt", lambda f: torch.save({"a": torch.ones(1, 1).expand(2**14, 2**14)}, f), "a prompt is floats"),
        ("p.pt", lambda f: torch.save({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, f), "known as a prompt"),
        (
            "p.pt",
            lambda f: torch.save({"lstm.weight": torch.ones(2, 2), "b": torch.ones(2)}, f),
            "a network of its own",
        ),
        ("p.pt", compressed, "no file of tensors alone, and others are not read: it is compressed"),
        pytest.param(
            "p.pt",
            lambda f: torch.save(VECTORS.to_sparse(), f),
            "holds a sparse, nested or empty",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor"),  # of torch 2.14
        ),
        pytest.param(
            "p.pt",
            lambda f: torch.save(torch.nested.nested_tensor([VECTORS]), f),
            "holds a sparse, nested or empty",
            marks=pytest.mark.filterwarnings("ignore::UserWarning"),
        ),
        ("p.pt", lambda f: torch.save(VECTORS.to("meta"), f), "holds a sparse, nested or empty"),
        ("p.txt", lambda f: f.write_text("x"), "is of no known kind"),
        ("p.safetensors", lambda f: f.write_bytes(b"xx"), "not a whole safetensors file"),
        ("p", lambda f: f.mkdir(), "holds no prompt that is known here"),
    ],
)
def test_refusals(name, make, message, tmp_path):
    make(tmp_path / name)
    with pytest.raises(PromptLoadError, match=message):
        import_prompt(tmp_path / name)


@pytest.mark.parametrize("format", [[1], "<P>{text}", {"template": [1]}])
def test_a_config_of_ruprompts_that_is_none_is_refused_by_name(format, tmp_path):
    path = saved("ruprompts", tmp_path)
    (path / "prompt.json").write_text(json.dumps({"format": format}))
    with pytest.raises(PromptLoadError, match=r"prompt\.json is not a prompt's prompt\.json: its format is "):
        import_prompt(path)
    (path / "prompt.json").write_text(json.dumps({"format": {"template": None}}))
    assert torch.equal(import_prompt(path), VECTORS)


def test_the_format_of_an_adapter_takes_its_file_too(tmp_path):
    path = saved("peft adapter_model.bin", tmp_path)
    assert torch.equal(import_prompt(path / "adapter_model.bin", format="peft"), VECTORS)


def test_unknown_names(tmp_path):
    with pytest.raises(PromptLoadError, match=r"is not there; give a file or folder \(a Hub id goes to load_prompt\)"):
        import_prompt(tmp_path / "nowhere")
    with pytest.raises(PromptLoadError, match="format is 'x'; give one of peft, soft_embedding"):
        import_prompt(tmp_path, format="x")
    with pytest.raises(PromptLoadError, match=r"format is \['peft'\]; give one of peft, soft_embedding"):
        import_prompt(tmp_path, format=["peft"])


def test_damaged_files_are_refused_or_read(tmp_path):
    dice = random.Random(0)
    for kind in ("soft_embedding", "google", "safetensors", "peft adapter_model.bin"):
        (tmp_path / kind).mkdir()
        path = saved(kind, tmp_path / kind)
        file = path / "adapter_model.bin" if path.is_dir() else path
        whole = file.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole[: dice.randrange(len(whole))] if dice.random() < 0.3 else whole)
            for _ in range(min(3, len(damaged))):
                damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
            file.write_bytes(damaged)
            try:
                assert torch.isfinite(import_prompt(path)).all()
            except PromptLoadError as error:
                assert str(path) in str(error)

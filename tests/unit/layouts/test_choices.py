"""Which layout and which way of generation each family gets: as written here on every version of transformers."""

import pytest

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.models import generation
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model
from tests.shared.tiny_models import DECODERS, tiny_model
from tests.shared.versions import states_continue

FAST = ("packed", "packed", "continued")
STATE = ("padded", "anew", "anew")
CHOICES = {
    # family: the layout, and how three rows of several lengths and a single row are generated
    "biogpt": FAST,
    "bloom": ("packed", "continued", "continued"),
    "codegen": FAST,
    "cohere": FAST,
    "cohere2": FAST,
    "falcon": ("cached", "continued", "continued"),
    "gemma": FAST,
    "gemma2": FAST,
    "gemma3_text": FAST,
    "gemma3n_text": FAST,
    "gemma4_text": FAST,
    "glm4": FAST,
    "gpt2": FAST,
    "gpt_bigcode": FAST,
    "gpt_neo": ("cached", "anew", "continued"),
    "gpt_neox": FAST,
    "gpt_oss": FAST,
    "gptj": FAST,
    "granite": FAST,
    "jamba": STATE,
    "lfm2": ("cached", "anew", "anew") if states_continue("lfm2") else STATE,
    "llama": FAST,
    "llama4_text": FAST,
    "mamba": STATE,
    "mamba2": STATE,
    "mistral": FAST,
    "mixtral": FAST,
    "mpt": ("packed", "anew", "continued"),
    "nemotron": FAST,
    "olmo2": FAST,
    "olmo3": FAST,
    "opt": FAST,
    "phi": FAST,
    "phi3": FAST,
    "qwen2": FAST,
    "qwen3": FAST,
    "qwen3_moe": FAST,
    "rwkv": ("padded", "refused", "anew"),
    "smollm3": FAST,
    "stablelm": FAST,
    "starcoder2": FAST,
    "xglm": FAST,
}
OPTIONS = dict(max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0)


def way_of(model, rows, monkeypatch):
    taken = []
    for way in ("packed", "continued", "anew"):
        run = getattr(generation, f"_{way}")
        monkeypatch.setattr(generation, f"_{way}", lambda *a, way=way, run=run: taken.append(way) or run(*a))
    try:
        model.generate(**{key: value for key, value in pad(rows, "left").items() if key != "labels"}, **OPTIONS)
    except PromptTuningError:
        taken.append("refused")
    monkeypatch.undo()
    return taken


@pytest.mark.filterwarnings("ignore")  # of models' own slow paths
@pytest.mark.parametrize("name", CHOICES)
def test_a_family_gets_its_layout_and_its_way_of_generation(name, monkeypatch):
    model = tiny_prompt_model(name, backbone=tiny_backbone(name) if name in ARCHITECTURES else tiny_model(name))
    rows = ragged_rows([7, 2, 5])
    model.train()
    model(**pad(rows, "left"), only_labelled=True).loss.backward()
    layout, of_rows, of_one = CHOICES[name]
    assert model.chosen_layouts == [layout]
    model.eval()
    assert (way_of(model, rows, monkeypatch), way_of(model, rows[:1], monkeypatch)) == ([of_rows], [of_one])


def test_every_family_of_the_tests_is_in_the_table():
    assert set(CHOICES) == {*DECODERS, *ARCHITECTURES}

"""The check before a layout is used: what the first batch is makes no difference to it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.layouts import CachedLayout, packed
from hf_prompt_tuning.layouts.base import IGNORED
from tests.conformance.families import fresh
from tests.conformance.prompts import wrapped
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.reference import greedy, pad, ragged_rows, require_exact, tiny_prompt_model
from tests.shared.tiny_models import LLAMA_LIKE, scale_weights
from tests.shared.versions import needs_states_of, states_continue

LINEAR = dict(layer_types=["linear_attention", "full_attention"])
MIXTURE = dict(num_local_experts=2, num_experts_per_tok=1)
MAMBA = dict(mamba_d_state=4, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_chunk_size=8)
STATEFUL = {
    "jamba": ARCHITECTURES["jamba"],
    "minimax": LLAMA_LIKE | LINEAR | MIXTURE | dict(block_size=8),
    "granitemoehybrid": LLAMA_LIKE
    | MAMBA
    | MIXTURE
    | dict(layer_types=["mamba", "attention"], shared_intermediate_size=32),
    "lfm2": ARCHITECTURES["lfm2"],
    "bamba": LLAMA_LIKE | MAMBA | dict(attn_layer_indices=[1]),
    "falcon_h1": LLAMA_LIKE | MAMBA | dict(mamba_d_ssm=64),
}
CHOSEN = {name: "cached" if states_continue(name) else "padded" for name in STATEFUL}


def stateful(name: str, scale: float = 2.0):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, bos_token_id=1, eos_token_id=2, pad_token_id=0, **STATEFUL[name])
    backbone = AutoModelForCausalLM.from_config(config).eval()
    scale_weights(backbone, scale)
    return tiny_prompt_model(name, backbone=backbone)


def without_labels(model):
    batch = pad(ragged_rows([7, 3]), "left")
    return model(**batch | {"labels": torch.full_like(batch["labels"], IGNORED)}, only_labelled=True)


def one_token_rows(model):
    return model(**pad(ragged_rows([1, 1]), "right"), only_labelled=True)


def two_token_rows(model):
    return model(**pad(ragged_rows([2, 2]), "right"), only_labelled=True)


def ranking(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5], [6]]), candidates=[[7], [8]])


def without_a_prompt(model):
    with model.disable_adapter():
        return one_token_rows(model)


FIRST = [without_labels, one_token_rows, two_token_rows, ranking, without_a_prompt]


@pytest.mark.filterwarnings("ignore")  # of models' own slow paths
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_that_is_lost_is_found_whatever_the_first_batch_is(name, first):
    model, rows = stateful(name), ragged_rows([9, 2, 1, 6])
    first(model)
    assert model.chosen_layouts == [CHOSEN[name]]
    require_exact(model, rows, "left")
    assert model.chosen_layouts == [CHOSEN[name]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("name", ["jamba", "minimax", "bamba"])
def test_it_is_refused_by_name_checked_or_not(name, scale):
    model = stateful(name, scale)
    for check in (True, False):
        model.use_layout("cached", check=check)
        with pytest.raises(PromptTuningError, match="layout 'cached' is not exact for"):
            without_labels(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STATEFUL)
def test_generation_behind_rows_of_several_lengths(name):
    model, rows = stateful(name), ragged_rows([7, 2, 1])
    batch = pad(rows, "left")
    batch.pop("labels")
    tokens = model.generate(**batch, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert tokens[:, 7:].tolist() == [greedy(model, ids, 3) for ids, _ in rows]


@needs_states_of("lfm2")
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_checked_is_not_used(monkeypatch):
    model = stateful("lfm2")
    model.active_peft_config.backbone_dropout = True
    model.train()
    without_labels(model)
    assert model.chosen_layouts == ["padded"]
    model.use_layout("cached", check=False)
    with pytest.raises(PromptTuningError, match="it has to be checked, which dropout"):
        without_labels(model)
    model.active_peft_config.backbone_dropout = False
    without_labels(model)  # a state of its own: nothing was kept of the refusal
    assert model.chosen_layouts == ["cached"]


@needs_states_of("lfm2")
@pytest.mark.filterwarnings("ignore")
def test_training_and_evaluation_are_checked_apart_where_there_is_a_state():
    model = stateful("lfm2")
    for training in (True, False, True):
        without_labels(model.train(training))
    assert model.chosen_layouts == ["cached", "cached"]


@pytest.mark.parametrize("first", FIRST)
def test_a_wrong_mask_is_found_whatever_the_first_batch_is(first, monkeypatch):
    monkeypatch.setattr(packed, "ancestors", lambda parents: torch.eye(len(parents), dtype=torch.bool))
    model = tiny_prompt_model("llama")
    first(model)
    assert model.chosen_layouts == ["cached"]


def test_a_layout_that_is_wrong_in_one_row_alone_is_found(monkeypatch):
    right = CachedLayout.labelled_logits

    def wrong(self, backbone, prompts, examples):
        found = right(self, backbone, prompts, examples)
        found.logits[int(found.rows.argmax())] *= 1.01
        return found

    monkeypatch.setattr(CachedLayout, "labelled_logits", wrong)
    model = tiny_prompt_model("bloom")
    model.use_layout("cached", check=True)
    with pytest.raises(PromptTuningError, match="layout 'cached' is not exact for BloomForCausalLM: its loss differs"):
        without_labels(model)


def test_a_first_batch_without_a_prompt_lets_a_fast_layout_through():
    """The pad token's vector is zero, and has no gradient in Gemma 3n: no word of it may stand for the prompt."""
    model = tiny_prompt_model("gemma3n_text", backbone=tiny_backbone("gemma3n_text"))
    with torch.no_grad():
        model.word_embeddings.weight[0] = 0.0
    model.use_layout("packed", check=True)
    with model.disable_adapter():
        one_token_rows(model)
    assert model.chosen_layouts == ["packed"]


@pytest.mark.filterwarnings("ignore")
def test_rounding_in_half_precision_is_no_fault():
    """torch's fused attention rounds this gradient by 7 % of its largest number, in rows one way, packed another."""
    model = wrapped(fresh("opt", "bfloat16", "sdpa"), (4,))
    model.use_layout("packed", check=True)
    one_token_rows(model)
    assert model.chosen_layouts == ["packed"]


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_a_prompt_that_leaves_few_positions_is_checked_with_fewer_vectors(name):
    model = tiny_prompt_model(name, num_virtual_tokens=125)
    assert model.room() == 3
    require_exact(model, ragged_rows([3, 2]))
    assert model.chosen_layouts == ["packed"]


def test_noise_in_the_embeddings_is_no_fault(caplog):
    """NEFTune draws other noise for each call, and the check compares two layouts on the same tokens."""
    model = tiny_prompt_model("llama").train()
    hook = activate_neftune(model, 5.0)
    model(**pad(ragged_rows([7, 3]), "right"), only_labelled=True)
    deactivate_neftune(model, hook)
    assert model.chosen_layouts == ["packed"] and not caplog.text

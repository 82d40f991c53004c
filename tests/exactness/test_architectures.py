"""Decoders of many kinds: the layout each gets by itself is exact, in rows longer than its window or chunk."""

from contextlib import nullcontext

import pytest
import torch
from transformers import StaticCache

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, get_prompt_tuning_model
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.reference import greedy, pad, ragged_rows, require_exact, tiny_prompt_model, with_prompts
from tests.shared.versions import MASKS_STATIC_CHUNKS, states_continue

LAYOUTS = {"gpt_neo": "cached", "falcon": "cached", "lfm2": "cached" if states_continue("lfm2") else "padded"}
LAYOUTS |= dict.fromkeys(("jamba", "mamba2", "rwkv"), "padded")


@pytest.mark.filterwarnings("ignore")  # of models' own slow paths and of tiny sizes
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_layout_that_a_backbone_gets_is_exact(name):
    backbone = tiny_backbone(name)
    torch.manual_seed(1)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=6, prompt_tuning_init="RANDOM"))
    rows = ragged_rows([17, 1, 25, 4])
    require_exact(model, rows)
    assert model.chosen_layouts == [LAYOUTS.get(name, "packed")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "rwkv"])
def test_mixed_batches_are_as_their_rows_alone(name):
    """Rows longer than a window or a chunk; prompts of several lengths, and none."""
    torch.manual_seed(1)
    config = PromptTuningConfig(num_virtual_tokens=6, prompt_tuning_init="RANDOM")
    model = with_prompts(get_prompt_tuning_model(tiny_backbone(name), config), other=3).eval()
    rows, names = ragged_rows([9, 2, 12]), ["default", "other", "__base__"]
    expected = [greedy(model, ids, 3, adapter) for (ids, _), adapter in zip(rows, names, strict=True)]
    for side in ("right", "left"):
        batch = pad(rows, side)
        batch.pop("labels")
        out = model.generate(**batch, adapter_names=names, max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert out[:, 12:].tolist() == expected
        scores = {}
        for layout in ("padded", "auto"):
            model.use_layout(layout)
            with torch.no_grad():
                scores[layout] = model(**batch, candidates=[[11, 2], [12, 13, 2]], adapter_names=names).scores
        torch.testing.assert_close(scores["auto"], scores["padded"], rtol=1e-5, atol=1e-4)


def test_rwkv_generates_for_one_row_and_refuses_more():
    backbone = tiny_backbone("rwkv")
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"))
    ids = torch.randint(4, 400, (2, 5))
    options = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert model.generate(input_ids=ids[:1], **options)[0, 5:].tolist() == greedy(model, ids[0], 3)
    for refused in ({"input_ids": ids}, {"input_ids": ids[:1], "num_beams": 2}):
        with pytest.raises(PromptTuningError, match="RwkvForCausalLM generates right for one alone"):
            model.generate(**refused, **options)


def test_gpt_neo_refuses_a_cache_of_fixed_size():
    """Its own `generate` writes other tokens with one; other models' do not."""
    backbone = tiny_backbone("gpt_neo")
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"))
    ids = torch.randint(4, 400, (1, 5))
    options = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = greedy(model, ids[0], 3)
    assert model.generate(input_ids=ids, **options)[0, 5:].tolist() == expected
    assert model.generate(input_ids=ids, cache_implementation="dynamic", **options)[0, 5:].tolist() == expected
    for fixed in (
        {"cache_implementation": "static"},
        {"past_key_values": StaticCache(backbone.config, max_cache_len=32)},
    ):
        with pytest.raises(
            PromptTuningError, match="the cache is static, and GPTNeoForCausalLM reads the wrong places"
        ):
            model.generate(input_ids=ids, **fixed, **options)
    other = tiny_prompt_model("gpt2")
    written = other.generate(input_ids=ids, cache_implementation="static", **options)[0, 5:].tolist()
    assert written == greedy(other, ids[0], 3)


def test_layers_that_see_chunks_read_a_cache_of_fixed_size_or_refuse_it():
    model = get_prompt_tuning_model(
        tiny_backbone("llama4_text"), PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
    )
    ids = torch.randint(4, 400, (1, 5))
    options = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    refused = pytest.raises(PromptTuningError, match="cannot mask one for Llama4ForCausalLM, whose layers see chunks")
    with nullcontext() if MASKS_STATIC_CHUNKS else refused:
        written = model.generate(input_ids=ids, cache_implementation="static", **options)
        assert written[0, 5:].tolist() == greedy(model, ids[0], 3)


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma4_text"])
def test_per_layer_embeddings_are_those_of_the_tokens(name):
    """With no prompt, the model is its backbone called with token ids."""
    backbone = tiny_backbone(name)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM"))
    ids = torch.randint(4, 400, (2, 9))
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, backbone(input_ids=ids).logits)
    with torch.no_grad():
        generated = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, num_beams=1)
        expected = ids
        for _ in range(4):
            expected = torch.cat([expected, model(input_ids=expected).logits[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == expected.tolist()
    with pytest.raises(PromptTuningError, match="has per-layer embeddings"):
        model(inputs_embeds=backbone.get_input_embeddings()(ids))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_change_with_the_longest_row_are_warned_of_once(rope_type, caplog):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    if rope_type == "longrope":
        rope |= {"original_max_position_embeddings": 16, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    limit = {"dynamic": 128, "longrope": 16}[rope_type]
    backbone = tiny_backbone("qwen3", rope_parameters=rope)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=6, prompt_tuning_init="RANDOM"))
    model(**pad(ragged_rows([limit - 6, 3]), "right"), only_labelled=True)
    assert not caplog.records
    for _ in range(2):
        model(**pad(ragged_rows([limit - 5, 3]), "right"), only_labelled=True)
    assert [r.getMessage() for r in caplog.records] == [
        f"A row has {limit + 1} tokens with its prompt, and beyond {limit} the rotary positions of Qwen3ForCausalLM "
        "change with a batch's longest row: a row's loss then depends on what else is in it. "
        "Shorten rows, or use batches of one."
    ]

"""Generation behind a computed prompt gives what computing it all anew gives, whatever is asked of `generate`."""

import functools

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.layouts import packed
from hf_prompt_tuning.models import generation
from tests.shared import reference
from tests.shared.places import placed_model
from tests.shared.reference import greedy, pad, ragged_rows, tiny_prompt_model, with_prompts
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.versions import CHECKS_DRAFTS

OPTIONS = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
ROWS = ragged_rows([7, 2, 5])
NAMES = ["default", "other", "__base__"]
ROWED = list(zip(ROWS, NAMES, strict=True))


@pytest.fixture
def ways(monkeypatch):
    """How each call was generated."""
    taken: list[str] = []
    for way in ("_packed", "_continued", "_anew"):
        run = getattr(generation, way)
        monkeypatch.setattr(generation, way, lambda *a, way=way, run=run: taken.append(way[1:]) or run(*a))
    return taken


def anew(monkeypatch):
    monkeypatch.setattr(generation, "_way", lambda *args: "anew")


def inputs(side="left", rows=ROWS):
    batch = pad(rows, side)
    batch.pop("labels")
    return batch


def windowed(monkeypatch, window):
    monkeypatch.setattr(reference, "tiny_model", lambda name, seed: tiny_model(name, seed, sliding_window=window))
    return tiny_prompt_model("mistral", num_virtual_tokens=6).eval()


class OneMoreThan(StoppingCriteria):
    """Stops a row once it has a token above a limit."""

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] > self.limit


ASKED = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "sampling several": {"do_sample": True, "num_return_sequences": 3, "top_k": 20},
    "beams": {"num_beams": 3},
    "beams returned": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "a static cache": {"cache_implementation": "static"},
    "beams in a static cache": {"cache_implementation": "static", "num_beams": 2},
    "max_length": {"max_new_tokens": None, "max_length": 12},
    "min_length": {"eos_token_id": list(range(3, 200)), "min_length": 10, "max_new_tokens": 6},
    "an end of its own": {"eos_token_id": list(range(3, 200)), "max_new_tokens": 6},
    "repetition": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
    "stopping": {"stopping_criteria": StoppingCriteriaList([OneMoreThan(150)]), "max_new_tokens": 6},
    "a config": {"generation_config": GenerationConfig(num_beams=2, num_return_sequences=2, max_length=11)},
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt"])
def test_the_tokens_are_those_of_computing_all_anew(name, asked, ways, monkeypatch):
    model = with_prompts(tiny_prompt_model(name), other=3).eval()
    options = OPTIONS | ASKED[asked]
    if "generation_config" in options:
        options = {"generation_config": options["generation_config"], "pad_token_id": 0, "eos_token_id": None}
    results = []
    for layout in ("auto", "cached", "anew"):
        if layout == "anew":
            anew(monkeypatch)
        else:
            model.use_layout(layout)
        for side in ("left", "right"):
            for names in (None, NAMES):
                torch.manual_seed(5)
                out = model.generate(**inputs(side), adapter_names=names, **options)
                copies = len(out) // 3
                assert torch.equal(out[:, :7], inputs(side)["input_ids"].repeat_interleave(copies, dim=0))
                results.append(out[:, 7:].tolist())
    first = "continued" if name == "bloom" or "static" in asked else "packed"
    assert ways == [first] * 4 + ["continued"] * 4 + ["anew"] * 4
    assert results[:4] == results[4:8] == results[8:]
    assert results[0] == results[2] and results[1] == results[3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mixed_batch_continues_each_row_as_if_alone(side):
    model = with_prompts(tiny_prompt_model("llama"), other=3).eval()
    out = model.generate(**inputs(side), adapter_names=NAMES, **OPTIONS)
    assert out[:, 7:].tolist() == [greedy(model, ids, 4, name) for (ids, _), name in zip(ROWS, NAMES, strict=True)]


@pytest.mark.parametrize("way", ["continued", "anew"])
def test_a_repetition_penalty_is_for_a_rows_own_tokens(way, monkeypatch):
    """Neither for pads (here a token that is wanted) nor short of a token, whatever the prompts' lengths."""
    model = with_prompts(tiny_prompt_model("llama"), other=3).eval()
    wanted = greedy(model, ROWS[1][0], 1, "other")[0]
    options = OPTIONS | {"repetition_penalty": 5.0, "pad_token_id": wanted}
    alone = [model.generate(input_ids=ids[None], adapter_names=[n], **options)[0, len(ids) :] for (ids, _), n in ROWED]
    assert alone[1][0] == wanted
    if way == "anew":
        anew(monkeypatch)
    for asked in (options, {"generation_config": GenerationConfig(**options)}):
        out = model.generate(**inputs(), adapter_names=NAMES, **asked)
        assert out[:, 7:].tolist() == [row.tolist() for row in alone]


def test_outputs_in_a_dict(monkeypatch):
    model = tiny_prompt_model("llama").eval()
    options = OPTIONS | dict(return_dict_in_generate=True, output_scores=True)
    out = model.generate(**inputs("right"), **options)
    states = model.generate(**inputs("right"), **options, output_hidden_states=True).hidden_states
    anew(monkeypatch)
    expected = model.generate(**inputs("right"), **options)
    assert torch.equal(out.sequences, expected.sequences)
    assert torch.equal(out.sequences[:, :7], inputs("right")["input_ids"])
    torch.testing.assert_close(torch.stack(out.scores), torch.stack(expected.scores), rtol=1e-4, atol=1e-4)
    assert states[0][0].shape[1] == 12  # the prompt's own are among them


# Pads that no row needs; the head of a prompt; both.
COUNTED = {
    "start": [[5, 6, 7, 0, 0], [8, 9, 0, 0, 0]],
    "after_bos": [[1, 5, 6, 7, 8], [0, 0, 1, 9, 10]],
    "system": [[1, 7, 9, 5, 6, 0, 0], [1, 7, 9, 8, 0, 0, 0]],
}


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("place", COUNTED)
def test_the_callers_functions_see_the_columns_of_the_result(place, beams):
    """By which they tell a text's own tokens from new ones."""
    model, ids = placed_model("llama", place).eval(), torch.tensor(COUNTED[place])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    width, expected = ids.shape[1], model.generate(**batch, num_beams=beams, **OPTIONS)[:, ids.shape[1] :]
    at_the_right = [[0] * row.count(0) + [i for i in row if i] for row in ids.tolist()]
    rows = [row for row in at_the_right for _ in range(beams)]

    class Seeing(LogitsProcessor):
        def __call__(self, input_ids, scores):
            processed.append(input_ids.tolist())
            return scores

    class Stopping(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            stopping.append(input_ids.tolist())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def allowed(row, tokens):
        assert tokens[:width].tolist() == at_the_right[row]
        constrained.append(len(tokens))
        return range(400)

    processed, stopping, constrained = [], [], []
    given = {"logits_processor": LogitsProcessorList([Seeing()]), "prefix_allowed_tokens_fn": allowed}
    given["stopping_criteria"] = StoppingCriteriaList([Stopping()])
    out = model.generate(**batch, num_beams=beams, **given, **OPTIONS)
    assert torch.equal(out[:, width:], expected) and torch.equal(out[:, :width], ids)
    assert [row[:width] for row in processed[0]] == rows and len(processed[-1][0]) == width + 3
    assert [row[:width] for row in stopping[0]] == [row for row in rows for _ in range(len(stopping[0]) // len(rows))]
    if beams == 1:
        assert [row[width:] for row in stopping[-1]] == expected.tolist()
    assert sorted(set(constrained)) == [width, width + 1, width + 2, width + 3]
    limit = StoppingCriteriaList([MaxLengthCriteria(width + 2)])
    assert model.generate(**batch, num_beams=beams, stopping_criteria=limit, **OPTIONS).shape[1] == width + 2
    assert limit[0].max_length == width + 2


def test_pads_that_no_row_needs_cost_nothing():
    """Ids padded to more columns than the longest row has."""
    model = tiny_prompt_model("llama").eval()
    batch = inputs()
    wide = {key: torch.nn.functional.pad(value, (9, 4)) for key, value in batch.items()}
    seen = []
    hook = model.base_model.model.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    out = model.generate(**wide, **OPTIONS)
    hook.remove()
    assert torch.equal(out[:, :20], wide["input_ids"])
    assert out[:, 20:].tolist() == model.generate(**batch, **OPTIONS)[:, 7:].tolist()
    assert seen == [5, 14, 1, 1, 1]  # the prompt, all texts in one row, and each new token but the last


@pytest.mark.parametrize("window, continued", [(4, "anew"), (64, "continued")])
def test_a_window_is_cut_where_the_tokens_are(window, continued, ways, monkeypatch):
    """Masked columns between a prompt and its text would take places in a short window."""
    model = windowed(monkeypatch, window)
    expected = [greedy(model, ids, 4) for ids, _ in ROWS]
    for layout in ("auto", "cached"):
        model.use_layout(layout)
        for static in ({}, {"cache_implementation": "static"}):
            for side in ("left", "right"):
                out = model.generate(**inputs(side), **OPTIONS, **static)
                assert out[:, 7:].tolist() == expected
    assert ways == ["packed"] * 2 + [continued] * 6


@pytest.mark.parametrize("name", ["mistral", "mpt", "gemma"])
def test_rows_of_one_length_are_always_continued(name, ways, monkeypatch):
    model = windowed(monkeypatch, 4) if name == "mistral" else tiny_prompt_model(name, 6).eval()
    with_prompts(model, other=6).use_layout("cached")
    rows, names = ragged_rows([5, 5]), ["default", "other"]
    expected = [greedy(model, ids, 4, adapter) for (ids, _), adapter in zip(rows, names, strict=True)]
    for static in ({}, {"cache_implementation": "static"}):
        out = model.generate(**inputs(rows=rows), adapter_names=names, **OPTIONS, **static)
        assert out[:, 5:].tolist() == expected
    assert ways == ["continued"] * 2


@pytest.mark.parametrize("budget", [8, 20, None])
def test_texts_are_packed_in_rows_under_the_budget(budget, ways):
    model = with_prompts(tiny_prompt_model("llama"), other=3).eval()
    model.use_layout("packed", max_packed_tokens=budget)
    out = model.generate(**inputs(), adapter_names=NAMES, **OPTIONS, num_beams=2, num_return_sequences=2)
    model.use_layout("cached")
    assert torch.equal(
        out, model.generate(**inputs(), adapter_names=NAMES, **OPTIONS, num_beams=2, num_return_sequences=2)
    )
    assert ways == ["packed", "continued"]


def test_a_layout_that_was_found_wrong_is_not_used(ways, monkeypatch):
    model = tiny_prompt_model("llama").eval()
    monkeypatch.setattr(packed, "ancestors", lambda parents: torch.eye(len(parents), dtype=torch.bool))
    model(**pad(ROWS, "left"), only_labelled=True)  # the check on the first batch
    out = model.generate(**inputs(), **OPTIONS)
    assert out[:, 7:].tolist() == [greedy(model, ids, 4) for ids, _ in ROWS]
    assert ways == ["continued"]


def test_the_backbones_forward_is_its_own_again():
    model = tiny_prompt_model("llama").eval()
    model.generate(**inputs(), **OPTIONS)
    assert "forward" not in vars(model.base_model)
    wrapper = model.base_model.forward = functools.partial(model.base_model.forward)
    model.generate(**inputs(), **OPTIONS)
    assert model.base_model.forward is wrapper


def test_what_is_computed_anew(ways):
    model = tiny_prompt_model("llama").eval()
    batch = inputs()
    expected = model.generate(**batch, **OPTIONS)[:, 7:].tolist()
    embeds = model.base_model.get_input_embeddings()(batch["input_ids"]).detach()
    out = model.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **OPTIONS)
    assert out.tolist() == expected
    assert model.generate(**batch, **OPTIONS, use_cache=False)[:, 7:].tolist() == expected
    # A row without a token is its prompt alone, whose last vector predicts the first new one.
    batch["attention_mask"][1] = 0
    empty = model.generate(**batch, **OPTIONS)[:, 7:].tolist()
    assert empty == [expected[0], greedy(model, torch.tensor([], dtype=torch.long), 4), expected[2]]
    assert ways == ["packed"] + ["anew"] * 3


def test_a_config_that_a_trainer_left_without_a_cache():
    model = tiny_prompt_model("llama").eval()
    model.config.use_cache = model.base_model.generation_config.use_cache = False
    out = model.generate(**inputs(), **OPTIONS)
    assert out[:, 7:].tolist() == [greedy(model, ids, 4) for ids, _ in ROWS]


def test_a_streamer_gets_the_text_and_each_token(capsys):
    model, tokenizer = tiny_prompt_model("llama").eval(), make_tokenizer("gpt2")
    ids = tokenizer("the parcel never came", return_tensors="pt").input_ids
    out = model.generate(input_ids=ids, streamer=TextStreamer(tokenizer), **OPTIONS)
    assert capsys.readouterr().out == tokenizer.decode(out[0]) + "\n"


@pytest.mark.parametrize("helper", ["assistant", "lookup"])
def test_drafts_are_checked_behind_the_prompt(helper, ways):
    model = tiny_prompt_model("llama").eval()
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    drafts = {"assistant": {"assistant_model": tiny_model("llama", seed=4)}, "lookup": {"prompt_lookup_num_tokens": 3}}
    options = OPTIONS | {"max_new_tokens": 8} | drafts[helper]
    if not CHECKS_DRAFTS:
        with pytest.raises(PromptTuningError, match=r"wrong places behind a prompt; install transformers 5\.18"):
            model.generate(input_ids=ids, **options)
        return
    out = model.generate(input_ids=ids, **options)
    assert out[0, 8:].tolist() == greedy(model, ids[0], 8)
    assert ways == ["continued"]


def test_lookup_drafts_in_an_encoder_decoder():
    model, ids = tiny_prompt_model("t5").eval(), torch.tensor([[5, 6, 7, 8, 9, 2]])
    options = OPTIONS | {"max_new_tokens": 6, "eos_token_id": 399}  # transformers 5.6 looks for one in each draft
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, prompt_lookup_num_tokens=2), expected)


def test_refusals():
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(
        PromptTuningError,
        match="prompt_lookup_num_tokens is given, and "
        + ("MambaForCausalLM cannot go on from a computed prompt" if CHECKS_DRAFTS else "transformers"),
    ):
        tiny_prompt_model("mamba").generate(input_ids=ids, prompt_lookup_num_tokens=2, **OPTIONS)
    with pytest.raises(PromptTuningError, match="assistant_model is given, whose drafts read the encoder's"):
        tiny_prompt_model("t5").generate(ids, assistant_model=tiny_model("t5", seed=4), **OPTIONS)
    rwkv = tiny_prompt_model("llama")
    rwkv.config.model_type = "rwkv"
    with pytest.raises(
        PromptTuningError, match=r"got 2 rows and 1 sequences for each, and .* generates right for one alone"
    ):
        rwkv.generate(input_ids=ids.repeat(2, 1), **OPTIONS)
    model = tiny_prompt_model("llama")
    with pytest.raises(PromptTuningError, match="max_length is 4, and input_ids have 4 columns already"):
        model.generate(input_ids=ids, max_length=4)
    with pytest.raises(PromptTuningError, match="has 'nobody'; there are 'default', and '__base__' for none"):
        model.generate(input_ids=ids, adapter_names="nobody")
    with pytest.raises(PromptTuningError, match="position_ids are given that do not count"):
        model.generate(input_ids=ids, position_ids=torch.zeros_like(ids))

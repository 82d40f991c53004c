"""A prompt at each place gives what the backbone gives by hand for [head | prompt | text], in every layout."""

import pytest
import torch

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.layouts.base import IGNORED
from tests.shared.places import (
    HEADS,
    expected_columns,
    greedy_by_hand,
    in_front,
    loss_by_hand,
    place_config,
    placed_model,
    real_logits,
)
from tests.shared.reference import loss_and_gradient, pad, ragged_rows, relative_error

FAMILIES = ["llama", "gpt2", "gemma", "bloom", "mamba", "gemma3n_text", "gemma3_text"]
PLACES = ["after_bos", "system"]
LENGTHS = [5, 2, 7]


def batches(place, rows):
    """Batches of the rows with the head and without it, padded at either side."""
    for head in (HEADS[place], ()):
        for side in ("right", "left"):
            yield head, pad(in_front(head, rows), side)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient_in_every_layout(name, place):
    model, rows = placed_model(name, place), ragged_rows(LENGTHS)
    expected_loss, expected = loss_and_gradient(model, loss_by_hand(model, rows))
    assert expected.shape == (4, 32)
    for layout in ("auto", "packed", "cached", "padded"):
        try:
            model.use_layout(layout)
            model(**pad(rows, "right"), only_labelled=True)
        except PromptTuningError:
            assert layout in ("packed", "cached")
            continue
        for _, batch in batches(place, rows):
            loss, gradient = loss_and_gradient(model, model(**batch, only_labelled=True).loss)
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert relative_error(gradient, expected) < 1e-5
    for _, batch in batches(place, rows):
        loss, gradient = loss_and_gradient(model, model(**batch).loss)
        assert loss == pytest.approx(expected_loss, rel=1e-5) and relative_error(gradient, expected) < 1e-5


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_hidden_states_are_in_the_columns_of_the_callers_ids(name, place):
    model, rows = placed_model(name, place), ragged_rows(LENGTHS)
    for head, batch in batches(place, rows):
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True)
        batch.pop("labels")
        assert output.logits.shape[:2] == (3, 4 + batch["input_ids"].shape[1])
        assert output.hidden_states[0].shape[-3:-1] == output.logits.shape[:2]
        for b, (text, _) in enumerate(rows):
            seen = torch.cat([torch.ones(4), batch["attention_mask"][b]]).bool()
            expected = expected_columns(model, text, bool(head))
            torch.testing.assert_close(output.logits[b][seen], expected, rtol=1e-4, atol=1e-4)
            last = batch["attention_mask"][b].nonzero()[-1, 0]
            one = model(**batch, logits_to_keep=torch.tensor([4 + last])).logits[b, 0]
            torch.testing.assert_close(one, expected[-1], rtol=1e-4, atol=1e-4)
    whole = torch.cat([torch.tensor(HEADS[place]), rows[0][0]])[None]
    for count in (1, 3, 8):
        kept = model(input_ids=whole, logits_to_keep=count).logits[0]
        torch.testing.assert_close(kept, expected_columns(model, rows[0][0], True)[-count:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FAMILIES)
def test_generation(name, place):
    model, rows = placed_model(name, place).eval(), ragged_rows(LENGTHS)
    expected = [greedy_by_hand(model, text, 5) for text, _ in rows]
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    for _, batch in batches(place, rows):
        del batch["labels"]
        result = model.generate(**batch, **options)
        columns = batch["input_ids"].shape[1]
        assert torch.equal(result[:, :columns], batch["input_ids"])
        assert result[:, columns:].tolist() == expected
        shown = model.generate(**batch, **options, return_dict_in_generate=True, output_hidden_states=True)
        assert shown.sequences[:, columns:].tolist() == expected
        assert shown.hidden_states[0][0].shape[-2] == 4 + columns
        longer = model.generate(**batch, max_length=columns + 2, do_sample=False, pad_token_id=0)
        assert longer.shape[1] == columns + 2
        beams = model.generate(**batch, max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0)
        assert torch.equal(beams[:, :columns], batch["input_ids"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["llama", "gemma", "mamba", "gemma3n_text"])
def test_ranking(name, place):
    model, rows = placed_model(name, place).eval(), ragged_rows(LENGTHS)
    words = [[11, 12], [13], [14, 15, 2]]
    expected = []
    for text, _ in rows:
        row = []
        for ids in words:
            logits = real_logits(model, torch.cat([text, torch.tensor(ids)]))
            scores = logits.log_softmax(-1)[-len(ids) - 1 : -1]
            row.append(scores.gather(1, torch.tensor(ids)[:, None]).sum())
        expected.append(torch.stack(row))
    for layout in ("auto", "padded"):
        model.use_layout(layout)
        for _, batch in batches(place, rows):
            del batch["labels"]
            scores = model(**batch, candidates=words).scores
            torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-4, atol=1e-4)


def mixed(name):
    """A model with prompts at all places, of several lengths."""
    model = placed_model(name, "after_bos")
    for adapter, place in (("front", "start"), ("chat", "system"), ("other", "after_bos")):
        model.add_adapter(adapter, place_config(place, num_virtual_tokens=3 if adapter == "chat" else 6))
    return model.eval()


@pytest.mark.parametrize("name", ["llama", "gemma", "bloom", "gemma3n_text"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("has_heads", [True, False])
def test_mixed_batches(name, side, has_heads):
    model, names = mixed(name), ["default", "front", "chat", "__base__", "other"]
    texts = [text for text, _ in ragged_rows([5, 3, 2, 6, 4], first_labelled=False)]
    heads = [HEADS[place] for place in ("after_bos", "start", "system", "start", "after_bos")]
    rows = [(torch.cat([torch.tensor(h, dtype=torch.long), t]), t) for h, t in zip(heads, texts, strict=True)]
    given = [(ids if has_heads else text, ids if has_heads else text) for ids, text in rows]
    batch = pad(given, side)
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], IGNORED)
    for b, h in enumerate(heads):  # nothing is predicted of the heads here
        first = int(batch["attention_mask"][b].argmax())
        batch["labels"][b, first : first + (len(h) if has_heads else 0)] = IGNORED

    def logits_of(text, adapter):
        if adapter != "__base__":
            return real_logits(model, text, adapter)
        return model.get_base_model()(input_ids=text[None]).logits[0]

    nll = []
    for text, adapter in zip(texts, names, strict=True):
        logits, targets = logits_of(text, adapter), text[1:] if adapter == "__base__" else text
        nll.append(torch.nn.functional.cross_entropy(logits[-len(targets) - 1 : -1], targets, reduction="none"))
    loss = torch.cat(nll).mean()
    for layout in ("auto", "padded"):
        model.use_layout(layout)
        got = model(**batch, adapter_names=names, only_labelled=True).loss
        torch.testing.assert_close(got, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(**batch, adapter_names=names).loss, loss, rtol=1e-5, atol=1e-5)
    del batch["labels"]
    output = model(**batch, adapter_names=names).logits
    assert output.shape[:2] == (5, 6 + batch["input_ids"].shape[1])
    for b, (text, adapter) in enumerate(zip(texts, names, strict=True)):
        columns = batch["attention_mask"][b].nonzero()[-len(text) :, 0] + 6
        torch.testing.assert_close(output[b, columns], logits_of(text, adapter)[-len(text) :], rtol=1e-4, atol=1e-4)
        if adapter != "__base__":
            before = columns[0] - 1 if has_heads and heads[b] else 5  # the prompt's last vector
            torch.testing.assert_close(
                output[b, before], logits_of(text, adapter)[-len(text) - 1], rtol=1e-4, atol=1e-4
            )
    new = model.generate(
        **batch, adapter_names=names, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
    )
    for b, (text, adapter) in enumerate(zip(texts, names, strict=True)):
        if adapter != "__base__":
            assert new[b, -4:].tolist() == greedy_by_hand(model, text, 4, adapter)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["llama", "gemma3n_text", "bloom", "gpt2"])
@pytest.mark.parametrize("has_head", [True, False])
def test_continuing_from_a_cache(name, place, has_head):
    model = placed_model(name, place).eval()
    text = torch.tensor([21, 22, 23, 24, 25, 26])
    ids = torch.cat([torch.tensor(HEADS[place] if has_head else (), dtype=torch.long), text])[None]
    expected = real_logits(model, text)[-3:]
    cache, got = model(input_ids=ids[:, :-3], use_cache=True).past_key_values, []
    for column in range(ids.shape[1] - 3, ids.shape[1]):
        # Positions count from the text's start (with its head), from the prompt's, or are left out.
        start = {
            0: {},
            1: {"position_ids": torch.tensor([[column]])},
            2: {"position_ids": torch.tensor([[4 + column]])},
        }
        mask = torch.ones(1, column + 1, dtype=torch.long)
        out = model(ids[:, column : column + 1], past_key_values=cache, attention_mask=mask, **start[len(got)])
        got, cache = [*got, out.logits[0, -1]], out.past_key_values
    torch.testing.assert_close(torch.stack(got), expected, rtol=1e-4, atol=1e-4)
    wide = torch.ones(1, 4 + ids.shape[1] + 1, dtype=torch.long)  # PEFT's, with the prompt's columns
    more = model(input_ids=torch.tensor([[27]]), past_key_values=cache, attention_mask=wide)
    again = real_logits(model, torch.cat([text, torch.tensor([27])]))[-1]
    torch.testing.assert_close(more.logits[0, -1], again, rtol=1e-4, atol=1e-4)
    if name == "gemma3n_text":
        return  # its generate takes no filled cache, with a head or without
    made = model.generate(
        input_ids=ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, pad_token_id=0
    )
    further = model.generate(
        input_ids=made.sequences,
        past_key_values=made.past_key_values,
        max_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
    )
    assert further[0, ids.shape[1] :].tolist() == greedy_by_hand(model, text, 6)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows_continue_from_a_cache(place, side):
    model, rows = placed_model("llama", place).eval(), in_front(HEADS[place], ragged_rows(LENGTHS))
    batch = pad(rows, side)
    cache = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=True).past_key_values
    new = torch.tensor([[31], [32], [33]])
    mask = torch.cat([batch["attention_mask"], torch.ones_like(new)], dim=1)
    output = model(new, attention_mask=mask, past_key_values=cache)
    for row, (ids, _) in enumerate(rows):
        text = torch.cat([ids[len(HEADS[place]) :], new[row]])
        torch.testing.assert_close(output.logits[row, -1], real_logits(model, text)[-1], rtol=1e-4, atol=1e-4)
    with pytest.raises(PromptTuningError, match="attention_mask has shape"):
        model(new, attention_mask=mask[:, 1:], past_key_values=output.past_key_values)

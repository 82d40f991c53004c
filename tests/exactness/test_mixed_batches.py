"""A prompt for each row, of several lengths and none: row by row what each gives alone."""

from functools import partial

import pytest
import torch

from hf_prompt_tuning import PromptTuningError
from tests.shared import reference
from tests.shared.reference import behind, greedy, pad, ragged_rows, tiny_prompt_model, with_prompts
from tests.shared.tiny_models import tiny_model

DECODERS = ["llama", "gpt2", "bloom", "opt", "gemma", "mpt", "mamba", "mistral"]
LABELS = [[11, 2], [12, 13, 2], [2]]
ROWS = ragged_rows([7, 2, 5, 9], first_labelled=False)
NAMES = ["other", "default", "__base__", "long"]
LENGTHS = {"default": 5, "other": 3, "long": 8, "__base__": 0}


@pytest.fixture(params=DECODERS)
def model(request, monkeypatch):
    """Mistral's window is shorter than the rows."""
    changes = {"sliding_window": 4} if request.param == "mistral" else {}
    monkeypatch.setattr(reference, "tiny_model", lambda name, seed: tiny_model(name, seed, **changes))
    return with_prompts(tiny_prompt_model(request.param), other=3, long=8).eval()


def alone(model, call):
    """What `call` gives for each row by itself, behind its prompt."""
    found = []
    for (ids, labels), name in zip(ROWS, NAMES, strict=True):
        with behind(model, name), torch.no_grad():
            found.append(call(ids, labels))
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_states_line_up_with_the_texts(model, side):
    batch = pad(ROWS, side)
    expected = alone(model, lambda ids, labels: model(input_ids=ids[None], output_hidden_states=True))
    with torch.no_grad():
        out = model(**batch, adapter_names=NAMES, output_hidden_states=True)
    assert out.logits.shape[1] == out.hidden_states[0].shape[1] == 8 + 9
    for b, (name, row) in enumerate(zip(NAMES, expected, strict=True)):
        real = torch.cat([torch.arange(8) >= 8 - LENGTHS[name], batch["attention_mask"][b].bool()])
        torch.testing.assert_close(out.logits[b, real], row.logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out.hidden_states[1][b, real], row.hidden_states[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("only_labelled", [False, True])
def test_the_loss_and_each_prompts_gradient(model, only_labelled):
    """Each prompt gets the gradient of its own rows; the loss counts every labelled token once."""
    counts = [
        int((labels[1:] != -100).sum()) + int(name != "__base__" and labels[0] != -100)
        for (_, labels), name in zip(ROWS, NAMES, strict=True)
    ]
    weights = {name: model.prompt_encoder[name].embedding.weight for name in ("default", "other", "long")}
    expected, total = {}, 0.0
    for row, name, count in zip(ROWS, NAMES, counts, strict=True):
        with behind(model, name):
            loss = model(**pad([row], "right")).loss * count
        total += loss.item()
        if name != "__base__":
            (expected[name],) = torch.autograd.grad(loss, weights[name])
    loss = model(**pad(ROWS, "left"), adapter_names=NAMES, only_labelled=only_labelled).loss * sum(counts)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_ranking(model, grad):
    batch = pad(ROWS, "left")
    batch.pop("labels")
    expected = alone(model, lambda ids, labels: model(input_ids=ids[None], candidates=LABELS).scores[0])
    with torch.set_grad_enabled(grad):
        scores = model(**batch, candidates=LABELS, adapter_names=NAMES).scores
    torch.testing.assert_close(scores.detach(), torch.stack(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_generation(model, side):
    batch = pad(ROWS, side)
    batch.pop("labels")
    out = model.generate(**batch, adapter_names=NAMES, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(out[:, :9], batch["input_ids"])
    assert out[:, 9:].tolist() == [greedy(model, ids, 4, name) for (ids, _), name in zip(ROWS, NAMES, strict=True)]


def test_the_active_prompt_stays_and_order_does_not_matter():
    model = with_prompts(tiny_prompt_model("llama"), other=3, long=8).eval()
    model.set_adapter("long")
    order = [2, 0, 3, 1]
    with torch.no_grad():
        scores = model(**_inputs(ROWS), candidates=LABELS, adapter_names=NAMES).scores
        again = model(
            **_inputs([ROWS[i] for i in order]), candidates=LABELS, adapter_names=[NAMES[i] for i in order]
        ).scores
    torch.testing.assert_close(again, scores[order], rtol=1e-5, atol=1e-4)
    assert model.active_adapter == "long"


def _inputs(rows):
    batch = pad(rows, "right")
    batch.pop("labels")
    return batch


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders(name):
    """The prompt is in the encoder."""
    model = with_prompts(tiny_prompt_model(name), other=3, long=8).eval()
    targets = torch.tensor([[5, 6, 7], [8, 9, 2], [9, 9, 2], [4, 2, 2]])
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, num_beams=1, forced_eos_token_id=None)
    rows = list(zip(ROWS, targets, NAMES, strict=True))
    expected: dict[str, list] = {"logits": [], "scores": [], "tokens": []}
    for (ids, _), target, prompt in rows:
        with behind(model, prompt), torch.no_grad():
            expected["logits"].append(model(input_ids=ids[None], labels=target[None]).logits)
            expected["scores"].append(model(input_ids=ids[None], candidates=LABELS).scores)
            expected["tokens"].append(model.generate(input_ids=ids[None], **options))
    batch = _inputs(ROWS)
    with torch.no_grad():
        logits = model(**batch, labels=targets, adapter_names=NAMES).logits
        scores = model(**batch, candidates=LABELS, adapter_names=NAMES).scores
    torch.testing.assert_close(logits, torch.cat(expected["logits"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, torch.cat(expected["scores"]), rtol=1e-5, atol=1e-4)
    assert torch.equal(model.generate(**batch, adapter_names=NAMES, **options), torch.cat(expected["tokens"]))


def test_one_name_is_for_all_rows():
    model = with_prompts(tiny_prompt_model("llama"), other=3).eval()
    generate = partial(model.generate, **_inputs(ROWS), max_new_tokens=3, pad_token_id=0)
    for call in (lambda **names: model(**_inputs(ROWS), **names).logits, generate):
        assert torch.equal(call(adapter_names="other"), call(adapter_names=["other"] * 4))


def test_refusals():
    model = with_prompts(tiny_prompt_model("llama"), other=3)
    for names, message in ((["default"], "1 names for 4 rows"), (["default"] * 3 + ["x"], "has 'x'; there are")):
        for call in (model, model.generate):
            with pytest.raises(PromptTuningError, match=message):
                call(**_inputs(ROWS), adapter_names=names)
    with pytest.raises(PromptTuningError, match="output_attentions is given for rows padded at the left, or for"):
        model(**_inputs(ROWS), adapter_names=["default", "other"] * 2, output_attentions=True)

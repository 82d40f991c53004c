"""Prompts at different places in one batch of chats: some rows begin with their prompt's head, others do not."""

import pytest
import torch
from transformers import pipeline

from hf_prompt_tuning import ChatTemplate, PromptTuningConfig, PromptTuningError, get_prompt_tuning_model
from hf_prompt_tuning.layouts.base import IGNORED
from hf_prompt_tuning.models.batch_checks import Texts
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.places import place_config, placed_model, real_logits
from tests.shared.tiny_models import tiny_model

NAMES = ["default", "chat", "bos", "__base__", "chat", "bos"]
HEAD = [1, 7, 9]
TEXTS = [[5, 6], [21, 22, 23, 24, 25], [31, 32, 33], [41, 42, 43, 44], [51], [61, 62, 63, 64]]


def model_and_rows():
    """A prompt at the start, one in the system turn, and one behind a token that a chat does not begin with."""
    model = placed_model("llama", "start").eval()
    model.add_adapter("chat", place_config("system", num_virtual_tokens=6))
    sink = dict(prompt_position="after_bos", head_token_ids=(3,), prompt_tuning_init="RANDOM", random_range=1.0)
    model.add_adapter("bos", PromptTuningConfig(num_virtual_tokens=2, **sink))
    return model, [torch.tensor(HEAD + text) for text in TEXTS]


def padded(rows, side, value=0):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side, padding_value=value)


def batch_of(rows, side):
    return {
        "input_ids": padded(rows, side),
        "attention_mask": padded([torch.ones_like(row) for row in rows], side),
        "adapter_names": NAMES,
    }


@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_each_row_of_a_forward_is_what_it_is_alone(side):
    model, rows = model_and_rows()
    batch = batch_of(rows, side)
    labels = [row.masked_fill(torch.arange(len(row)) == 3, IGNORED) for row in rows]
    output = model(**batch, labels=padded(labels, side, IGNORED), output_hidden_states=True)
    before, total, count = output.logits.shape[1] - batch["input_ids"].shape[1], 0.0, 0
    for i, row in enumerate(rows):
        alone = model(
            input_ids=row[None], labels=labels[i][None], adapter_names=NAMES[i : i + 1], output_hidden_states=True
        )
        columns = before + batch["attention_mask"][i].nonzero()[:, 0]
        for got, expected in ((output.logits, alone.logits), (output.hidden_states[-1], alone.hidden_states[-1])):
            torch.testing.assert_close(got[i, columns], expected[0, -len(row) :], rtol=1e-4, atol=1e-5)
        # The caller's first token has a label where a prompt stands before it.
        labelled = int((labels[i] != IGNORED).sum()) - (NAMES[i] in ("chat", "__base__"))
        total, count = total + float(alone.loss) * labelled, count + labelled
    torch.testing.assert_close(float(output.loss), total / count, rtol=1e-4, atol=1e-5)
    # The logits of the last token and of the prompt's last vector by hand: nothing of the package but its vectors.
    by_hand = {0: rows[0], 1: rows[1][3:], 2: rows[2]}
    for i, text in by_hand.items():
        column = before + int(batch["attention_mask"][i].nonzero()[-1])
        expected = real_logits(model, text, NAMES[i])
        torch.testing.assert_close(output.logits[i, column], expected[-1], rtol=1e-4, atol=1e-5)
        if NAMES[i] != "chat":  # its row has the head: the prompt's last vector predicts behind it
            torch.testing.assert_close(output.logits[i, before - 1], expected[-len(text) - 1], rtol=1e-4, atol=1e-5)


def test_positions_of_images_are_counted_from_the_texts_of_rows_with_their_heads():
    model, rows = model_and_rows()
    ids = torch.stack([rows[3], rows[5]])
    heads = model._heads(model._prompts(2, ["chat", "bos"]), Texts(ids, None, None, None))
    positions = torch.arange(7).expand(3, 2, 7)
    moved = heads.arguments_off(model.get_base_model(), {"position_ids": positions})["position_ids"]
    assert torch.equal(moved[:, 0, :4], torch.arange(4).expand(3, 4))
    assert torch.equal(moved[:, 1], positions[:, 1])


@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_each_row_is_labelled_ranked_and_continued_as_alone(side):
    model, rows = model_and_rows()
    batch = batch_of(rows, side)
    labels = [torch.where(torch.arange(len(row)) > 2, row, IGNORED) for row in rows]
    labelled = model(**batch, labels=padded(labels, side, IGNORED), only_labelled=True)
    ranked = model(**batch, candidates=[[20, 21], [22]]).scores
    for _ in range(2):  # the second call has computed prompts
        made = model.generate(**batch, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    for i, row in enumerate(rows):
        alone = {"input_ids": row[None], "adapter_names": NAMES[i : i + 1]}
        expected = model(**alone, labels=labels[i][None], only_labelled=True)
        assert torch.equal(labelled.targets[labelled.rows == i], expected.targets)
        torch.testing.assert_close(labelled.logits[labelled.rows == i], expected.logits, rtol=1e-4, atol=1e-5)
        scores = model(**alone, candidates=[[20, 21], [22]]).scores[0]
        torch.testing.assert_close(ranked[i], scores, rtol=1e-4, atol=1e-5)
        said = model.generate(**alone, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert torch.equal(made[i, -4:], said[0, -4:])


@torch.no_grad()
def test_each_row_continues_a_cache_as_alone():
    model, rows = model_and_rows()
    names, rows = NAMES[:3], [row[:5] for row in rows[:3]]  # of one length
    rows = [torch.cat([row, row.new_tensor([8] * (5 - len(row)))]) for row in rows]
    output = model(input_ids=torch.stack(rows), adapter_names=names, use_cache=True)
    new = torch.tensor([[11], [12], [13]])
    mask = torch.ones(3, 6, dtype=torch.long)
    got = model(input_ids=new, attention_mask=mask, past_key_values=output.past_key_values, adapter_names=names).logits
    for i, row in enumerate(rows):
        expected = model(input_ids=torch.cat([row, new[i]])[None], adapter_names=[names[i]]).logits[0, -1]
        torch.testing.assert_close(got[i, -1], expected, rtol=1e-4, atol=1e-5)


def test_labels_that_a_trainer_counts_otherwise_are_refused_row_by_row():
    model, rows = model_and_rows()
    batch = batch_of(rows, "right")
    none = torch.full_like(batch["input_ids"], IGNORED)
    of_prompt_at_start, of_head = none.clone(), none.clone()
    of_prompt_at_start[0, 0], of_head[1, 0] = 1, 1
    of_prompt_at_start[1, 4] = of_head[0, 4] = 22
    with pytest.raises(PromptTuningError, match="a row's very first token has a label"):
        model(**batch, labels=of_prompt_at_start, num_items_in_batch=torch.tensor(1))
    model(**batch, labels=of_head, num_items_in_batch=torch.tensor(1))  # counted by neither
    shifted = torch.nn.functional.pad(of_head, (0, 1), value=IGNORED)
    with pytest.raises(PromptTuningError, match="shift_labels has a label for a row's very first token"):
        model(**batch, shift_labels=shifted)
    model(**batch, shift_labels=torch.nn.functional.pad(of_prompt_at_start, (0, 1), value=IGNORED))


def test_rows_of_one_prompt_that_begin_differently_are_still_refused():
    model, _ = model_and_rows()
    ids = torch.tensor([[1, 7, 9, 5], [3, 5, 6, 7], [5, 6, 7, 8]])
    model(input_ids=ids, adapter_names=["chat", "bos", "default"])
    with pytest.raises(PromptTuningError, match="row 2 does not begin with the tokens that its prompt stands behind"):
        model(input_ids=ids, adapter_names=["chat", "bos", "chat"])


def test_a_pipeline_answers_chats_behind_prompts_at_different_places():
    tokenizer = chat_tokenizer("chatml")
    values = dict(num_virtual_tokens=4, prompt_tuning_init="RANDOM", random_range=1.0)
    backbone = tiny_model("llama", vocab_size=400)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(**values), tokenizer, ChatTemplate())
    model.add_adapter("chat", PromptTuningConfig(**values, prompt_position="system"))
    model.add_adapter("bos", PromptTuningConfig(**values, prompt_position="after_bos", sink_token="<pad>"))
    for name in ("chat", "bos"):
        model.prompt_info[name].template = ChatTemplate()
    chats = [[{"role": "user", "content": text}] for text in ("my line is down", "why why why why why", "x")]
    names = ["default", "chat", "bos"]
    chat = pipeline("prompt-generation", model=model.eval(), tokenizer=tokenizer)
    options = dict(max_new_tokens=5, do_sample=False)
    answers = chat(chats, adapter_names=names, batch_size=3, **options)
    for answer, messages, name in zip(answers, chats, names, strict=True):
        assert answer == chat(messages, adapter_names=name, **options)

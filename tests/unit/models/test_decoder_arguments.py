"""An encoder-decoder's labels and the decoder's own arguments: moved together or not at all, or refused by name."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

from hf_prompt_tuning import PromptTuningError
from tests.shared.reference import behind, pad, ragged_rows, tiny_prompt_model, with_prompts
from tests.shared.tiny_models import tiny_model

FAMILIES = ["t5", "bart", "mbart"]
ROWS = ragged_rows([7, 2, 5])
TARGETS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
NAMES = ["default", "other", "__base__"]
IGNORED = -100


def three(name):
    return with_prompts(tiny_prompt_model(name, random_range=1.0), other=3).eval()


def texts(side="left"):
    batch = pad(ROWS, side)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def targets(side, value=IGNORED):
    width = max(map(len, TARGETS))
    pads = [[value] * (width - len(row)) for row in TARGETS]
    return torch.tensor([p + t if side == "left" else t + p for t, p in zip(TARGETS, pads, strict=True)])


@torch.no_grad()
def by_hand(model, b, adapter, **kwargs):
    """The backbone's output of one row, unpadded, its encoder's input `[prompt | embedded text]`."""
    vectors = torch.zeros(0, 32) if adapter == "__base__" else model.prompt_encoder[adapter].embedding.weight
    embeds = torch.cat([vectors, model.base_model.get_input_embeddings()(ROWS[b][0])])[None]
    return model.base_model(inputs_embeds=embeds, **kwargs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_labels_beside_decoder_ids_stay_where_they_are(name, side):
    model, labels = three(name), targets("left")
    labels[0, 0] = IGNORED
    ids = torch.randint(4, 400, labels.shape, generator=torch.Generator().manual_seed(3))
    embeds = model.base_model.get_input_embeddings()(ids).detach()
    asked = [{"decoder_input_ids": ids}, {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}]
    if name == "t5":  # BART scales its decoder's embeddings in the embedding
        asked.append({"decoder_inputs_embeds": embeds})
    for given in asked:
        out = model(**texts(side), labels=labels, adapter_names=NAMES, **given)
        found = model(**texts(side), labels=labels, adapter_names=NAMES, only_labelled=True, **given)
        rows = [by_hand(model, b, n, decoder_input_ids=ids[b : b + 1]).logits[0] for b, n in enumerate(NAMES)]
        logits = torch.stack(rows)
        torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.loss, loss, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.logits, logits[labels != IGNORED], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_computed_of_moved_labels_is_moved_back(name, masked):
    model, labels = three(name), targets("left")
    given = {"decoder_attention_mask": (labels != IGNORED).long()} if masked else {}
    out = model(**texts(), labels=labels, adapter_names=NAMES, output_hidden_states=True, **given)
    found = model(**texts(), labels=labels, adapter_names=NAMES, only_labelled=True, **given)
    losses = []
    for b, adapter in enumerate(NAMES):
        row = torch.tensor([TARGETS[b]])
        expected = by_hand(model, b, adapter, labels=row, output_hidden_states=True)
        count = len(TARGETS[b])
        torch.testing.assert_close(out.logits[b, -count:], expected.logits[0], rtol=1e-4, atol=1e-4)
        last = out.decoder_hidden_states[-1][b, -count:]
        torch.testing.assert_close(last, expected.decoder_hidden_states[-1][0], rtol=1e-4, atol=1e-4)
        length = expected.encoder_last_hidden_state.shape[1]
        for got, right in (
            (out.encoder_last_hidden_state, expected.encoder_last_hidden_state),
            (out.encoder_hidden_states[1], expected.encoder_hidden_states[1]),
        ):
            assert got.shape == (3, 12, 32)
            torch.testing.assert_close(got[b, -len(ROWS[b][0]) :], right[0, -len(ROWS[b][0]) :], rtol=1e-4, atol=1e-4)
            start = 5 - (length - len(ROWS[b][0]))
            torch.testing.assert_close(got[b, start:5], right[0, : 5 - start], rtol=1e-4, atol=1e-4)
        losses.append(expected.loss * count)
    assert out.loss.item() == pytest.approx(sum(losses).item() / 9, abs=1e-4)
    assert found.loss.item() == pytest.approx(out.loss.item(), abs=1e-4)
    with pytest.raises(PromptTuningError, match="output_attentions is given for rows padded at the left"):
        model(**texts("right"), labels=labels, output_attentions=True)


def greedy(model, b, adapter, steps):
    """The decoder's tokens, each from a pass over all before it."""
    ids = [0]
    for _ in range(steps):
        ids.append(int(by_hand(model, b, adapter, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[1:]


@pytest.mark.parametrize("given", ["nothing", "empty", "empty of two"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoding_loop_by_hand(name, given):
    model = three(name)
    empty = {"empty": DynamicCache(), "empty of two": EncoderDecoderCache(DynamicCache(), DynamicCache())}
    expected = [greedy(model, b, n, 4) for b, n in enumerate(NAMES)]
    cache, tokens, found = empty.get(given), torch.zeros(3, 1, dtype=torch.long), []
    with torch.no_grad():
        for _ in range(4):
            batch = texts() | {"adapter_names": NAMES, "decoder_input_ids": tokens}
            out = model(**batch, past_key_values=cache, use_cache=True)
            cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
            found.append(tokens)
    assert torch.cat(found, dim=1).tolist() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_that_is_begun(name):
    model, start = three(name), torch.tensor([[0, 5, 6]] * 3)
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    out = model.generate(**texts(), adapter_names=NAMES, decoder_input_ids=start, **options)
    for b, adapter in enumerate(NAMES):
        with behind(model, adapter):
            row = model.generate(ROWS[b][0][None], decoder_input_ids=start[:1], **options)
        assert out[b].tolist() == row[0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_pads_without_a_mask_are_text_as_in_transformers(name):
    """transformers tells pads by their token for causal models alone."""
    model, ids = tiny_prompt_model(name).eval(), texts()["input_ids"]
    ones = torch.ones_like(ids)
    out, whole = model.generate(ids, max_new_tokens=4), model.generate(ids, attention_mask=ones, max_new_tokens=4)
    assert torch.equal(out, whole)
    with model.disable_adapter():
        bare = tiny_model(name).generate(ids, max_new_tokens=4)
        assert torch.equal(model.generate(ids, max_new_tokens=4), bare)


def test_refusals():
    model, batch = three("t5"), texts()
    labels = targets("right")
    encoded = model.base_model.get_encoder()(batch["input_ids"])
    for given, message in [
        ({"encoder_outputs": encoded}, "encoder_outputs are of shape"),
        ({"encoder_outputs": encoded[0]}, "encoder_outputs is a Tensor; give a BaseModelOutput"),
        ({"encoder_outputs": ()}, "encoder_outputs is a tuple; give a BaseModelOutput"),
        ({"encoder_outputs": {"last_hidden_state": encoded[0]}}, "encoder_outputs is a dict; give a BaseModel"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0\.1; give a share of the loss, from 0 to 1"),
        ({"candidates": ([i] for i in (5, 6))}, "candidates is a generator; give a list of lists"),
        ({"candidates": {(5,), (6,)}}, "candidates is a set; give a list of lists"),
        ({"shift_labels": labels}, "shift_labels is given, which leaves a prompt in the encoder no place"),
        ({"fused_lm_head": True}, "fused_lm_head is given, which leaves"),
        ({"position_ids": labels}, "position_ids is given, which leaves"),
        ({"pixel_values": torch.ones(3, 3, 4, 4)}, "pixel_values is given, which leaves"),
        ({"decoder_input_ids": labels[:, 1:]}, r"decoder_input_ids has shape \[3, 3\]; give \[3, 4\]"),
        (
            {"decoder_attention_mask": torch.ones(3, 3)},
            r"mask has shape \[3, 3\]; give \[3, 4\], as labels and the",
        ),
        ({"only_labelled": True, "output_attentions": True}, "output_attentions is given with only_labelled"),
        ({"candidates": [[5]], "decoder_input_ids": labels}, "decoder_input_ids is given with only_labelled or"),
        ({"candidates": [[]]}, r"candidates has \[\]; give lists of one token id or more"),
        ({"candidates": [[400]]}, "a candidate has the token id 400"),
        ({"candidates": []}, r"candidates has \(\); give lists"),
        ({"past_key_values": ((labels,),)}, "past_key_values is a tuple; give a Cache"),
    ]:
        with pytest.raises(PromptTuningError, match=message):
            model(**batch, labels=None if "candidates" in given else labels, **given)
    for name in ("t5", "bart"):
        with pytest.raises(PromptTuningError, match="neither labels nor decoder_input_ids are given"):
            three(name)(**batch)
    for call in (model, model.generate):
        with pytest.raises(PromptTuningError, match=r"decoder_input_ids has shape \[2, 4\]; give \[3, T'\]"):
            call(**batch, decoder_input_ids=labels[:2])
    for wrong in ([1, 2], [[1.5]], ["ab"]):
        with pytest.raises(PromptTuningError, match=r"candidates has .*; give lists of one token id or more"):
            model(**batch, candidates=wrong)
    with pytest.raises(PromptTuningError, match="only_labelled is given without labels"):
        model(**batch, only_labelled=True)
    with pytest.raises(PromptTuningError, match="encoder_outputs are of shape"):
        model.generate(**batch, encoder_outputs=encoded)
    start = torch.zeros(3, 1, dtype=torch.long)
    cache = model(**batch, decoder_input_ids=start, use_cache=True).past_key_values
    bare = model.base_model(**batch, decoder_input_ids=start, use_cache=True).past_key_values
    others = {"input_ids": batch["input_ids"], "decoder_input_ids": start}
    for given in ({"past_key_values": cache}, {"past_key_values": bare, "attention_mask": batch["attention_mask"]}):
        for call in (model, model.generate):
            with pytest.raises(PromptTuningError, match="past_key_values holds what an encoder made of other rows"):
                call(**others, **given)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_without_labels_predicts_nothing(name):
    """Beside others, and alone; the others are as they are without it."""
    model, labels = three(name), targets("right")
    labels[1] = IGNORED
    found = [by_hand(model, b, "default", labels=torch.tensor([TARGETS[b]])).logits[0] for b in (0, 2)]
    right = torch.nn.functional.cross_entropy(torch.cat(found), torch.tensor(TARGETS[0] + TARGETS[2]))
    with torch.no_grad():
        outputs = model(**texts(), labels=labels)
        torch.testing.assert_close(outputs.logits[0], found[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.logits[2, :3], found[1], rtol=1e-4, atol=1e-4)
        assert outputs.loss == pytest.approx(right.item(), rel=1e-5)
        assert model(**texts(), labels=torch.full_like(labels, IGNORED)).loss == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_with_several_ends_and_a_row_without_labels(name):
    """As T5Gemma's config has them."""
    model, ids = tiny_prompt_model(name).eval(), torch.tensor([[5, 6], [7, 8]])
    labels = torch.tensor([[9, 2], [-100, -100]])
    expected = model(input_ids=ids, labels=labels)
    model.get_base_model().config.eos_token_id = [2, 3]
    for only_labelled in (False, True):
        found = model(input_ids=ids, labels=labels, only_labelled=only_labelled)
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)

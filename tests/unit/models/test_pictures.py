"""Pictures beside a prompt: what the backbone gives by hand, row by row, or a refusal, but no picture is dropped."""

import functools

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_prompt_tuning import PromptTuningError
from tests.shared.reference import tiny_prompt_model, with_prompts
from tests.shared.tiny_pictures import (
    IMAGE,
    KINDS,
    batch_of,
    by_hand,
    greedy_by_hand,
    picture_batch,
    picture_rows,
    row_of,
    tiny_picture_model,
)

NAMES = ["default", "other"], ["other", "__base__"], ["default", "default"]
OPTIONS = dict(
    max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0, suppress_tokens=list(range(390, 400))
)


def model_of(name):
    torch.manual_seed(1)
    backbone = tiny_picture_model(name)
    return with_prompts(tiny_prompt_model("", 5, backbone=backbone, random_range=1.0), other=3).eval()


def vectors_of(model, name):
    if name == "__base__":
        return torch.zeros(0, 32)
    return model.prompt_encoder[name].embedding.weight.detach()


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("name", KINDS)
def test_logits_and_loss(name, names):
    model, batch = model_of(name), picture_batch(name)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :-3] = -100
    out = model(**batch, labels=labels, adapter_names=names)
    losses = []
    for b, adapter in enumerate(names):
        row = row_of(batch, b)
        with torch.no_grad():
            expected = by_hand(model.base_model, vectors_of(model, adapter), row)[0]
        count = row["input_ids"].shape[1]
        torch.testing.assert_close(out.logits[b, -count:], expected[-count:], rtol=1e-4, atol=1e-4)
        losses.append(torch.nn.functional.cross_entropy(expected[-4:-1], row["input_ids"][0, -3:]))
    assert out.loss.item() == pytest.approx(sum(losses).item() / 2, abs=1e-4)


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("name", KINDS)
def test_generated_tokens(name, names):
    model, batch = model_of(name), picture_batch(name)
    for seed in (0, 1):  # in turn, and text between them, because some backbones remember their last call's pictures
        batch = picture_batch(name, seed)
        out = model.generate(**batch, adapter_names=names, **OPTIONS)
        expected = [
            greedy_by_hand(model.base_model, vectors_of(model, n), row_of(batch, b), 4) for b, n in enumerate(names)
        ]
        assert torch.equal(out[:, :11], batch["input_ids"])
        assert out[:, 11:].tolist() == expected
        beams = model.generate(**batch, adapter_names=names, **OPTIONS, num_beams=2, num_return_sequences=2)
        alone = [
            model.generate(**row_of(batch, b), adapter_names=[n], **OPTIONS, num_beams=2, num_return_sequences=2)
            for b, n in enumerate(names)
        ]
        assert beams[:, 11:].tolist() == [row[-4:].tolist() for pair in alone for row in pair]
    texts = {"input_ids": torch.tensor([[5, 6, 7], [0, 9, 8]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}
    out = model.generate(**texts, adapter_names=names, **OPTIONS)
    for b, adapter in enumerate(names):
        row = {"input_ids": texts["input_ids"][b : b + 1, texts["attention_mask"][b].bool()]}
        assert out[b, 3:].tolist() == greedy_by_hand(fresh(name, model), vectors_of(model, adapter), row, 4)


def fresh(name, model):
    """The same backbone, which remembers nothing."""
    return tiny_picture_model(name)


@pytest.mark.parametrize("layout", ["auto", "cached", "padded"])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_text_after_pictures(name, layout):
    """These backbones keep how far their last call's pictures moved the text."""
    model = model_of(name)
    model.use_layout(layout)
    ids = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    asked = [dict(labels=ids), dict(labels=ids, only_labelled=True), dict(candidates=[[5, 6], [7]])]

    def all_of(model):
        with torch.no_grad():
            first = [model(input_ids=ids, **kind) for kind in asked]
        return [first[0].loss, first[0].logits, first[1].loss, first[2].scores, model.generate(ids, **OPTIONS)]

    expected = all_of(model)
    model.generate(**picture_batch(name), **OPTIONS)
    model.base_model(**picture_batch(name))
    remembered = model.base_model.model.rope_deltas.clone()
    assert bool((remembered != 0).any())
    for got, right in zip(all_of(model), expected, strict=True):
        torch.testing.assert_close(got, right)
    model(**picture_batch(name))
    model.generate(**picture_batch(name), **OPTIONS)
    assert torch.equal(model.base_model.model.rope_deltas, remembered)


@pytest.mark.parametrize("name", KINDS)
def test_another_picture_is_another_result(name):
    model, batch = model_of(name), picture_batch(name)
    other = batch | {"pixel_values": picture_batch(name, 5)["pixel_values"]}
    assert not torch.allclose(model(**batch).logits[:, -1], model(**other).logits[:, -1], atol=1e-3)


def test_token_types_that_do_not_fit():
    model, batch = model_of("gemma3"), picture_batch("gemma3")
    with pytest.raises(PromptTuningError, match=r"has shape \[2, 10\]; give \[2, 11\], a value for each token"):
        model(**batch | {"token_type_ids": batch["token_type_ids"][:, 1:]})
    with pytest.raises(PromptTuningError, match=r"token_type_ids has shape \[2, 16\]; give \[2, 11\]"):
        model.generate(**batch | {"token_type_ids": torch.zeros(2, 16, dtype=torch.long)}, **OPTIONS)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_positions_that_cannot_be_counted(name):
    model = tiny_prompt_model("", 3, backbone=tiny_picture_model(name))
    (row,) = picture_rows(name, [(14, 2)])
    model(**row)
    side_by_side = row["input_ids"].roll(-1, 1)
    side_by_side[0, 2:10], side_by_side[0, 10:] = IMAGE, 7
    changes = (
        {"image_grid_thw": None},
        {"image_grid_thw": row["image_grid_thw"][:1]},
        {"input_ids": side_by_side, "mm_token_type_ids": (side_by_side == IMAGE).long()},
    )
    for change in changes:
        with pytest.raises(PromptTuningError, match=r"pixel_values is given, and Qwen.* cannot count positions of"):
            model(**(row | change))


def test_what_cannot_be_right():
    model, batch = model_of("qwen2_5_vl"), picture_batch("qwen2_5_vl")
    del batch["mm_token_type_ids"]
    message = r"pixel_values is given, by which Qwen2_5_VLFor.* counts positions, and they cannot be counted"
    for call in (model, model.generate):
        with pytest.raises(PromptTuningError, match=message):
            call(**batch)
    with pytest.raises(PromptTuningError, match=r"input_features is given, .* is not known to put it among embedded"):
        model(**batch, input_features=torch.ones(2, 3))
    with pytest.raises(PromptTuningError, match="input_features is given to generate, which Qwen2_5_VLFor"):
        model.generate(**batch, input_features=torch.ones(2, 3))
    with pytest.raises(PromptTuningError, match="pixel_values is given, and LlamaForCausalLM is not known"):
        tiny_prompt_model("llama")(torch.ones(1, 2, dtype=torch.long), pixel_values=torch.ones(1, 3, 8, 8))
    with pytest.raises(PromptTuningError, match=r"pixel_values: LlavaForCon.* refuses them: Image feat"):
        batch = picture_batch("llava")
        model_of("llava")(**batch | {"pixel_values": batch["pixel_values"][:1]})


def test_text_of_a_backbone_that_sees():
    """Without pictures every way is open, token types or not."""
    model = model_of("gemma3")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = greedy_by_hand(model.base_model, vectors_of(model, "default"), {"input_ids": ids}, 4)
    assert model.generate(ids, **OPTIONS)[0, 4:].tolist() == expected
    types = torch.zeros_like(ids)
    torch.testing.assert_close(model(ids, token_type_ids=types).logits, model(ids).logits)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_behind_bos(name, begins):
    """Rows that begin with BOS, which stands before the prompt, and rows without it."""
    torch.manual_seed(1)
    place = dict(prompt_position="after_bos", head_token_ids=(1,))
    model = tiny_prompt_model("", 5, backbone=tiny_picture_model(name), random_range=1.0, **place).eval()
    plain = batch = picture_batch(name)
    if begins:
        batch = {
            key: torch.nn.functional.pad(value, (1, 0)) if value.shape == (2, 11) else value
            for key, value in plain.items()
        }
        first = plain["attention_mask"].argmax(1)
        batch["input_ids"][[0, 1], first] = batch["attention_mask"][[0, 1], first] = 1
    backbone = model.base_model
    vectors = torch.cat([backbone.get_input_embeddings()(torch.tensor([1])), model.prompt]).detach()
    logits = model(**batch).logits
    written = model.generate(**batch, **OPTIONS)
    for b in range(2):
        row = row_of(plain, b)
        with torch.no_grad():
            expected, count = by_hand(backbone, vectors, row)[0], row["input_ids"].shape[1]
        torch.testing.assert_close(logits[b, -count:], expected[-count:], rtol=1e-4, atol=1e-4)
        assert written[b, batch["input_ids"].shape[1] :].tolist() == greedy_by_hand(backbone, vectors, row, 4)


class TestMasked:
    """Pictures whose tokens are masked: each of the others keeps its own place, or the call is refused."""

    def masked(self, name):
        """A row of two pictures whose first is masked, and the row of the second alone."""
        (row,) = picture_rows(name, [(17, 2)])
        mask = row["attention_mask"].clone()
        mask[0, 2:7] = 0
        other = {key: value[:, mask[0].bool()] if value.shape == mask.shape else value for key, value in row.items()}
        return row | {"attention_mask": mask}, other

    @pytest.mark.parametrize("name", ["llava", "smolvlm", "gemma3"])
    def test_the_others_stay(self, name):
        model = model_of(name)
        row, other = self.masked(name)
        pixels = other["pixel_values"]
        other |= {"pixel_values": pixels[:, 1:] if pixels.dim() == 5 else pixels[1:]}
        if "pixel_attention_mask" in other:
            other["pixel_attention_mask"] = other["pixel_attention_mask"][:, 1:]
        with torch.no_grad():
            expected = by_hand(model.base_model, vectors_of(model, "default"), other)[0, -1]
            torch.testing.assert_close(model(**row).logits[0, -1], expected, rtol=1e-4, atol=1e-4)

    def test_where_positions_are_counted_by_pictures(self):
        model, (row, _) = model_of("qwen2_5_vl"), self.masked("qwen2_5_vl")
        with pytest.raises(PromptTuningError, match="attention_mask is 0 on tokens of pixel_values, and Qwen2_5_VL"):
            model(**row)

    def test_where_the_backbone_puts_them_itself(self, monkeypatch):
        model, (row, _) = model_of("llava"), self.masked("llava")
        monkeypatch.setattr("hf_prompt_tuning.models.pictures.MERGING", ())
        with pytest.raises(PromptTuningError, match="attention_mask is 0 on tokens of pixel_values, which pictures"):
            model(**row)


def test_a_backbone_that_is_not_known_puts_pictures_itself(monkeypatch):
    """Its own `forward` finds their places among the embedded tokens, in whole rows alone."""
    model, batch = model_of("llava"), picture_batch("llava")
    with torch.no_grad():
        expected = model(**batch).logits
        monkeypatch.setattr("hf_prompt_tuning.models.pictures.MERGING", ())
        torch.testing.assert_close(model(**batch).logits, expected)
    for asked in (dict(labels=batch["input_ids"], only_labelled=True), dict(candidates=[[5]])):
        with pytest.raises(PromptTuningError, match="pixel_values is given with only_labelled or candidates"):
            model(**batch, **asked)


def test_weights_that_are_spread_over_processes(monkeypatch):
    model, batch = model_of("llava"), picture_batch("llava")
    monkeypatch.setattr("hf_prompt_tuning.models.pictures.is_sharded", lambda backbone: True)
    with pytest.raises(PromptTuningError, match="LlavaForConditionalGeneration are spread over processes"):
        model(**batch, candidates=[[5]])


def test_a_language_model_that_is_told_more(monkeypatch):
    """A later version of a known backbone may tell its language model of pictures in another way, too."""
    model, batch = model_of("llava"), picture_batch("llava")
    inner = type(model.base_model.model)
    forward = inner.forward
    later = functools.wraps(forward)(lambda self, *args, **kwargs: forward(self, *args, **kwargs, told=5))
    monkeypatch.setattr(inner, "forward", later)
    with pytest.raises(PromptTuningError, match=r"tells its language model of it by .*told.*; give the text alone"):
        model(**batch)


@pytest.mark.parametrize("name", ["llava", "gemma3", "smolvlm", "qwen2_5_vl"])
def test_transformers_own_trainer(name, tmp_path):
    """Its collator is the caller's, and its loss that of the rows alone, by hand."""
    model, rows = model_of(name), picture_rows(name, [(11, 1), (6, 0), (17, 2)])
    expected = []
    for row in rows:
        row["labels"] = row["input_ids"].clone()
        row["labels"][:, :-3] = -100
        given = {key: value for key, value in row.items() if key != "labels"}
        logits = by_hand(model.base_model, vectors_of(model, "default"), given)[0, -4:-1]
        expected.append(torch.nn.functional.cross_entropy(logits, row["input_ids"][0, -3:]).item())

    def collate(rows):
        batch = batch_of(name, rows, "right")
        batch["labels"][batch["attention_mask"] == 0] = -100
        return batch

    options = dict(per_device_train_batch_size=3, max_steps=1, logging_steps=1, learning_rate=0.0, use_cpu=True)
    options |= dict(remove_unused_columns=False, save_strategy="no", report_to="none", disable_tqdm=True)
    args = TrainingArguments(output_dir=str(tmp_path), **options)
    trainer = Trainer(model.train(), args, data_collator=collate, train_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(expected) / 3, abs=1e-4)


def test_how_pictures_are_read():
    """LLaVA's choice of the layer whose features a picture has."""
    model, batch = model_of("llava"), picture_batch("llava")
    inner = model.base_model.model
    usual, first = ({"vision_feature_layer": layer} for layer in (-2, -1))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch, **usual).logits, model(**batch).logits)
        pictures = [
            torch.cat(list(inner.get_image_features(batch["pixel_values"], **kind).pooler_output))
            for kind in (usual, first)
        ]
        assert not torch.allclose(*pictures)
        row = row_of(batch, 0)
        ids = row.pop("input_ids")
        embeds = model.get_base_model().get_input_embeddings()(ids)
        embeds[0, 3:7] = pictures[1].reshape(-1, 32)[:4]
        expected = by_hand_of(model, embeds)
        torch.testing.assert_close(model(**batch, **first).logits[0, -1], expected[0, -1], rtol=1e-4, atol=1e-4)
        words = model(ids, pixel_values=row["pixel_values"], **first, candidates=[[5], [6]]).scores[0]
    torch.testing.assert_close(words, expected[0, -1].log_softmax(-1)[5:7], rtol=1e-4, atol=1e-4)


def by_hand_of(model, embeds):
    rows = torch.cat([vectors_of(model, "default")[None], embeds], 1)
    return model.base_model(inputs_embeds=rows, use_cache=False).logits

"""Whatever `forward` gives is in the order, the width and the columns in which it was asked for."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_prompt_tuning import PromptTuningError
from tests.shared.architectures import ARCHITECTURES
from tests.shared.reference import loss_and_gradient, tiny_prompt_model, with_prompts
from tests.shared.tiny_models import scale_weights, tiny_model
from tests.shared.tiny_pictures import by_hand as picture_by_hand
from tests.shared.tiny_pictures import picture_batch, row_of, tiny_picture_model
from tests.shared.versions import WITHOUT_TRL

LENGTHS = [6, 3, 1, 4]
SIDES = ["right", "left", "both", "scattered"]
NAMES = {"one prompt": None, "several": ["short", "default", "__base__", "long"]}
FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def add_fused_lm_head(backbone, **values):
    """As TRL's trainers do."""
    pytest.importorskip("trl", reason=WITHOUT_TRL)
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(backbone, **values)


def batch_of(side, labelled=2, lengths=LENGTHS):
    """Rows with pads at one side, at both, or in between, in 8 columns; the last tokens of each are labelled."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.zeros(len(lengths), 8, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, length in enumerate(lengths):
        start = {"right": 0, "left": 8 - length, "both": (8 - length) // 2, "scattered": 0}[side]
        places = torch.arange(start, start + length)
        if side == "scattered":
            places = torch.randperm(8, generator=generator)[:length].sort().values
        ids[row, places] = torch.randint(4, 400, (length,), generator=generator)
        mask[row, places] = 1
        labels[row, places[-labelled:]] = ids[row, places[-labelled:]]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def model_of(name, names, **changes):
    model = tiny_prompt_model(name, backbone=tiny_model(name, **changes), random_range=1.0)
    return model if names is None else with_prompts(model, short=2, long=9)


def alone(model, batch, row, names, **kwargs):
    """The backbone's output of [prompt | text] of one row, by hand; and how long the prompt is."""
    name = "default" if names is None else names[row]
    vectors = model.prompt[:0] if name == "__base__" else model.prompt_encoder[name].embedding.weight
    backbone = model.get_base_model()
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    embeds = torch.cat([vectors, backbone.get_input_embeddings()(ids)])[None]
    return backbone(inputs_embeds=embeds, return_dict=True, **kwargs), len(vectors)


def by_hand(model, batch, names, temperature=1.0):
    """TRL's fields of each label, [B, T] in the columns of the labels themselves, zero where there is none."""
    found = {name: torch.zeros(batch["labels"].shape) for name in FIELDS}
    for row in range(len(batch["labels"])):
        output, length = alone(model, batch, row, names)
        places = batch["attention_mask"][row].nonzero()[:, 0]
        for number, place in enumerate(places.tolist()):
            label = batch["labels"][row, place]
            if label == -100 or length + number == 0:
                continue
            scores = output.logits[0, length + number - 1] / temperature
            log_probs = scores.log_softmax(-1)
            values = {
                "log_probs": log_probs[label],
                "entropy": -(log_probs.exp() * log_probs).sum(),
                "log_sum_sq_probs": (2 * log_probs).logsumexp(0),
                "mean_logits": scores.mean(),
                "is_top1": scores.argmax() == label,
            }
            for name, value in values.items():
                found[name][row, place] = value
    return found


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prompts", NAMES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt", "mamba"])
def test_fused_outputs_are_in_the_callers_columns(name, prompts, side):
    """A TRL trainer reads `log_probs[:, -C:]` as those of the last C tokens."""
    model, names = model_of(name, NAMES[prompts]), NAMES[prompts]
    add_fused_lm_head(model.get_base_model(), temperature=0.7, outputs=FIELDS)
    batch = batch_of(side, labelled=2)
    batch["labels"][:, 0] = -100
    output = model(**batch, adapter_names=names, fused_lm_head=True, use_cache=False)
    right = by_hand(model, batch, names, temperature=0.7)
    for field in FIELDS:
        torch.testing.assert_close(
            output[field].float(), right[field][:, 1:], rtol=1e-3, atol=1e-4, msg=lambda m, f=field: f"{f}: {m}"
        )
    predicted = right["log_sum_sq_probs"][:, 1:] != 0
    assert output.label_mask.dtype == torch.bool and torch.equal(output.label_mask, predicted)
    total = -right["log_probs"].sum().item()
    assert output.loss.item() == pytest.approx(total / int(predicted.sum()), rel=1e-4)
    counted = model(**batch, adapter_names=names, fused_lm_head=True, num_items_in_batch=3, return_dict=False)
    assert counted[0].item() == pytest.approx(total / 3, rel=1e-4) and torch.equal(counted[1], output.log_probs)


@pytest.mark.parametrize("completion", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_gradient_of_the_last_columns_reaches_the_prompt(side, completion):
    """With completions of one token it never did: what is read is the last column alone."""
    model = model_of("llama", None)
    add_fused_lm_head(model.get_base_model())
    batch = batch_of(side, labelled=completion, lengths=[8, 8] if side == "right" else [8, 5])
    read = model(**batch, fused_lm_head=True).log_probs[:, -completion:]
    right = by_hand(model, batch, None)["log_probs"][:, -completion:]
    assert read.shape == (2, completion)
    found, expected = loss_and_gradient(model, read.sum()), loss_and_gradient(model, right.sum())
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-4)
    assert expected[1].abs().max() > 0.01


def test_fused_outputs_of_a_batch_without_labels_have_a_gradient():
    model = model_of("llama", None)
    add_fused_lm_head(model.get_base_model())
    batch = batch_of("left")
    batch["labels"].fill_(-100)
    _, gradient = loss_and_gradient(model, model(**batch, fused_lm_head=True).log_probs.sum())
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_the_fused_head_cannot_do_is_refused():
    model = model_of("llama", None)
    batch = batch_of("left")
    with pytest.raises(PromptTuningError, match="fused_lm_head is given, and the backbone has none"):
        model(**batch, fused_lm_head=True)
    add_fused_lm_head(model.get_base_model())
    for name, value in {"label_smoothing": 0.1, "only_labelled": True, "candidates": [[5]]}.items():
        with pytest.raises(PromptTuningError, match=f"{name} is given with fused_lm_head, which knows none"):
            model(**batch, fused_lm_head=True, **{name: value})
    with pytest.raises(PromptTuningError, match="fused_lm_head is given without labels"):
        model(**batch | {"labels": None}, fused_lm_head=True)
    assert model(**batch, fused_lm_head=False).logits.shape == (4, 13, 400)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("side", SIDES)
def test_fused_outputs_are_as_wide_as_shifted_labels(side, extra):
    """[B, T], as without a prompt; or [B, T+1] with the first token's."""
    model = model_of("llama", None)
    add_fused_lm_head(model.get_base_model(), outputs=FIELDS)
    batch = batch_of(side, labelled=8)
    batch["labels"][:, : 1 - extra] = -100
    right = by_hand(model, batch, None)
    shifted = torch.nn.functional.pad(batch.pop("labels")[:, 1 - extra :], (0, 1), value=-100)
    output = model(**batch, shift_labels=shifted, fused_lm_head=True)
    for field in FIELDS:
        assert output[field].shape == shifted.shape
        torch.testing.assert_close(output[field][:, :-1].float(), right[field][:, 1 - extra :], rtol=1e-3, atol=1e-4)
        assert not output[field][:, -1].any()


def test_a_first_token_that_trl_counts_has_a_column():
    """The class of GPT-2 has no loss of its own, and TRL counts all its labels; the last N-1 columns stay the same."""
    model = model_of("gpt2", None)
    add_fused_lm_head(model.get_base_model(), outputs=FIELDS)
    batch = batch_of("right", labelled=8)
    right = by_hand(model, batch, None)
    output = model(**batch, fused_lm_head=True)
    for field in FIELDS:
        torch.testing.assert_close(output[field].float(), right[field], rtol=1e-3, atol=1e-4)
    assert int(output.label_mask.sum()) == sum(LENGTHS)


def other_model(name, names):
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **ARCHITECTURES[name]))
    scale_weights(backbone, 3.0)
    model = tiny_prompt_model(name, backbone=backbone.eval(), random_range=1.0)
    return model if names is None else with_prompts(model, short=2, long=9)


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prompts", NAMES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mamba", "gemma2", "gemma3n_text", "mixtral", "jamba"])
def test_every_output_of_a_token_is_in_its_column(name, prompts, side):
    """Logits, hidden states (of Gemma 3n's several streams) and routers' scores; in the order of a tuple, too."""
    names = NAMES[prompts]
    model = other_model(name, names) if name in ARCHITECTURES else model_of(name, names)
    asked = {"output_hidden_states": True}
    if hasattr(model.config, "output_router_logits"):
        asked["output_router_logits"] = True
    batch = batch_of(side)
    del batch["labels"]
    output = model(**batch, adapter_names=names, **asked)
    as_tuple = model(**batch, adapter_names=names, **asked, return_dict=False)
    assert torch.equal(as_tuple[[*output.keys()].index("logits")], output.logits)
    longest = output.logits.shape[1] - 8
    for row in range(len(LENGTHS)):
        right, length = alone(model, batch, row, names, **asked)
        places = torch.cat(
            [torch.arange(longest - length, longest), longest + batch["attention_mask"][row].nonzero()[:, 0]]
        )
        torch.testing.assert_close(output.logits[row, places], right.logits[0], rtol=1e-3, atol=1e-3)
        for found, expected in zip(output.hidden_states, right.hidden_states, strict=True):
            assert found.dim() == expected.dim()
            torch.testing.assert_close(found[..., row, places, :], expected[..., 0, :, :], rtol=1e-3, atol=1e-3)
        for found, expected in zip(output.get("router_logits") or (), right.get("router_logits") or (), strict=True):
            found = found.unflatten(0, output.logits.shape[:2])[row, places]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "jamba"])
def test_the_loss_holds_what_the_routers_add(name):
    """As the backbone's own, where its routers' scores are asked for; without them it is that of the labels alone."""
    model = other_model(name, None)
    batch = batch_of("right", labelled=2, lengths=[8, 8])
    output = model(**batch, output_router_logits=True)
    text = model.get_base_model().get_input_embeddings()(batch["input_ids"])
    embeds = torch.cat([model.prompt.expand(2, -1, -1), text], dim=1)
    labels = torch.cat([torch.full((2, 5), -100), batch["labels"]], dim=1)
    right = model.get_base_model()(inputs_embeds=embeds, labels=labels, output_router_logits=True)
    assert right.aux_loss > 0.5
    assert output.aux_loss.item() == pytest.approx(right.aux_loss.item(), rel=1e-4)
    assert output.loss.item() == pytest.approx(right.loss.item(), rel=1e-5)
    alone = model.get_base_model()(inputs_embeds=embeds, labels=labels).loss.item()
    assert model(**batch).loss.item() == pytest.approx(alone, rel=1e-5) != output.loss.item()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_a_cache_is_given_where_its_columns_are_the_callers(name):
    """It goes on as the backbone's own would."""
    model = model_of(name, None)
    batch = batch_of("right", lengths=[8, 8])
    del batch["labels"]
    found, nxt = model(**batch), torch.tensor([[7], [9]])
    key = next(key for key in found.keys() & {"cache", "cache_params", "past_key_values"})
    step = {"input_ids": nxt, key: found[key], "use_cache": True}
    if name != "mamba":
        step["position_ids"] = torch.full((2, 1), 13)
    scores = model.get_base_model()(**step).logits[:, -1]
    longer = model(input_ids=torch.cat([batch["input_ids"], nxt], dim=1)).logits[:, -1]
    torch.testing.assert_close(scores, longer, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_attentions_that_a_config_asks_for_are_refused_too():
    model = model_of("llama", None, attn_implementation="eager")
    model.config.output_attentions = True
    batch = batch_of("right")
    found = model(**batch).attentions
    assert len(found) == 2 and found[0].shape == (4, 4, 13, 13)
    right, _ = alone(model, batch, 1, None)
    torch.testing.assert_close(found[0][1, :, :8, :8], right.attentions[0][0], rtol=1e-4, atol=1e-5)
    with pytest.raises(PromptTuningError, match="output_attentions is given for rows padded at the left, or for"):
        model(**batch_of("left"))
    assert model(**batch_of("left"), output_attentions=False).attentions is None


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prompts", NAMES)
@pytest.mark.parametrize(
    ("name", "layout"),
    [("llama", "padded"), ("llama", "packed"), ("llama", "cached"), ("gpt2", "packed"), ("mamba", "padded")],
)
def test_labelled_tokens_and_scores_belong_to_their_rows(name, layout, prompts, side):
    """Those of a row are in the order of its columns, whatever the layout computed first; scores are one a row."""
    names = NAMES[prompts]
    model = model_of(name, names)
    model.use_layout(layout)
    batch = batch_of(side, labelled=3)
    output = model(**batch, adapter_names=names, only_labelled=True)
    total = 0.0
    for row in range(len(LENGTHS)):
        right, length = alone(model, batch, row, names)
        labels = batch["labels"][row][batch["attention_mask"][row].bool()]
        places = (labels != -100).nonzero()[:, 0] + length - 1
        labels, places = labels[labels != -100][places >= 0], places[places >= 0]
        mine = output.rows == row
        assert output.targets[mine].tolist() == labels.tolist()
        torch.testing.assert_close(output.logits[mine], right.logits[0, places], rtol=1e-3, atol=1e-3)
        total += torch.nn.functional.cross_entropy(right.logits[0, places], labels, reduction="sum").item()
    assert output.loss.item() == pytest.approx(total / len(output.targets), rel=1e-4)
    if names is None:
        whole = model(**batch, num_items_in_batch=7 if side != "right" else None)
        assert whole.loss.item() == pytest.approx(total / (7 if side != "right" else len(output.targets)), rel=1e-4)
    del batch["labels"]
    words = [[5, 6], [7], [9, 8, 4]]
    scores = model(**batch, adapter_names=names, candidates=words).scores
    for row in range(len(LENGTHS)):
        for number, ids in enumerate(words):
            longer = {
                name: torch.cat([value, torch.tensor([ids if name == "input_ids" else [1] * len(ids)] * 4)], dim=1)
                for name, value in batch.items()
            }
            right, length = alone(model, longer, row, names)
            expected = right.logits[0, -len(ids) - 1 : -1].log_softmax(-1)[range(len(ids)), ids].sum()
            assert scores[row, number].item() == pytest.approx(expected.item(), rel=1e-3)


def targets_of(side):
    """Labels of 3, 5, 1 and 2 tokens in 5 columns, -100 at one side."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.full((4, 5), -100)
    for row, length in enumerate([3, 5, 1, 2]):
        start = 5 - length if side == "left" else 0
        labels[row, start : start + length] = torch.randint(4, 400, (length,), generator=generator)
    return labels


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prompts", NAMES)
@pytest.mark.parametrize("name", ["t5", "bart", "mbart"])
def test_every_output_of_an_encoder_decoder_is_in_its_column(name, prompts, side):
    """The encoder's in the columns of the source, the decoder's in those of the labels."""
    names = NAMES[prompts]
    model = model_of(name, names)
    batch = batch_of(side)
    batch["labels"] = targets_of("left" if side != "right" else "right")
    output = model(**batch, adapter_names=names, output_hidden_states=True)
    as_tuple = model(**batch, adapter_names=names, output_hidden_states=True, return_dict=False)
    assert torch.equal(as_tuple[[*output.keys()].index("logits")], output.logits)
    labelled = model(**batch, adapter_names=names, only_labelled=True)
    longest = output.encoder_last_hidden_state.shape[1] - 8
    total = 0.0
    for row in range(len(LENGTHS)):
        wanted = batch["labels"][row] != -100
        labels = batch["labels"][row][wanted]
        right, length = alone(model, batch, row, names, labels=labels[None].clone(), output_hidden_states=True)
        total += torch.nn.functional.cross_entropy(right.logits[0], labels, reduction="sum").item()
        text = longest + batch["attention_mask"][row].nonzero()[:, 0]
        places = torch.cat([torch.arange(longest - length, longest), text])
        close = {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(output.logits[row, wanted], right.logits[0], **close)
        torch.testing.assert_close(labelled.logits[labelled.rows == row], right.logits[0], **close)
        assert labelled.targets[labelled.rows == row].tolist() == labels.tolist()
        last = right.encoder_last_hidden_state[0]
        torch.testing.assert_close(output.encoder_last_hidden_state[row, places], last, **close)
        for found, expected in zip(output.encoder_hidden_states, right.encoder_hidden_states, strict=True):
            torch.testing.assert_close(found[row, places], expected[0], **close)
        for found, expected in zip(output.decoder_hidden_states, right.decoder_hidden_states, strict=True):
            torch.testing.assert_close(found[row, wanted], expected[0], **close)
    assert output.loss.item() == pytest.approx(total / 11, rel=1e-4) == labelled.loss.item()
    counted = model(**batch, adapter_names=names, num_items_in_batch=4)
    assert counted.loss.item() == pytest.approx(total / 4, rel=1e-4)


@torch.no_grad()
def test_attentions_of_an_encoder_decoder():
    """Right where nothing moved, the source's and the labels'; refused where they have no place."""
    model = model_of("t5", None, attn_implementation="eager")
    batch = batch_of("right") | {"labels": targets_of("right")}
    output = model(**batch, output_attentions=True)
    right, _ = alone(model, batch, 1, None, labels=batch["labels"][1:2].clone(), output_attentions=True)
    assert output.cross_attentions[0].shape == (4, 4, 5, 13)
    torch.testing.assert_close(output.cross_attentions[0][1, :, :, :8], right.cross_attentions[0][0])
    torch.testing.assert_close(output.encoder_attentions[0][1, :, :8, :8], right.encoder_attentions[0][0])
    for moved in (batch_of("left") | {"labels": targets_of("right")}, batch | {"labels": targets_of("left")}):
        with pytest.raises(PromptTuningError, match="output_attentions is given for rows padded at the left, or for"):
            model(**moved, output_attentions=True)


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prompts", NAMES)
def test_an_encoders_output_is_taken_back_as_it_was_given(prompts, side):
    """Also where its columns were moved in between; the encoder is not called again."""
    names, prompt_model = NAMES[prompts], model_of("t5", NAMES[prompts])
    batch = batch_of(side) | {"labels": targets_of("right")}
    whole = prompt_model(**batch, adapter_names=names)
    prompt_model.get_base_model().get_encoder().block[0].forward = None
    encoded = (whole.encoder_last_hidden_state,)
    again = prompt_model(**batch, adapter_names=names, encoder_outputs=encoded)
    torch.testing.assert_close(again.logits, whole.logits)
    torch.testing.assert_close(again.encoder_last_hidden_state, whole.encoder_last_hidden_state)
    del batch["labels"]
    texts = prompt_model.generate(**batch, adapter_names=names, encoder_outputs=encoded, max_new_tokens=4)
    right = model_of("t5", names).generate(**batch, adapter_names=names, max_new_tokens=4)
    assert texts.tolist() == right.tolist()
    with pytest.raises(PromptTuningError, match=r"encoder_outputs are of shape .* and rows with their prompt of"):
        prompt_model(**batch, adapter_names=names, encoder_outputs=(encoded[0][:, 1:],), decoder_input_ids=texts)


@torch.no_grad()
@pytest.mark.parametrize("names", [None, ["other", "__base__"], ["default", "other"]])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "qwen2_5_vl"])
def test_fused_outputs_see_the_pictures(name, names):
    """Pictures, token types and positions are those that `forward` has without TRL's head."""
    model = with_prompts(tiny_prompt_model("", backbone=tiny_picture_model(name), random_range=1.0), other=3).eval()
    batch = picture_batch(name)
    add_fused_lm_head(model.get_base_model())
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :-3] = -100
    output = model(**batch, labels=labels, adapter_names=names, fused_lm_head=True)
    assert output.log_probs.shape == (2, 10) and not output.log_probs[:, :-3].any()
    for row, adapter in enumerate(names or ["default"] * 2):
        vectors = model.prompt[:0] if adapter == "__base__" else model.prompt_encoder[adapter].embedding.weight
        scores = picture_by_hand(model.get_base_model(), vectors, row_of(batch, row))[0, -4:-1].log_softmax(-1)
        right = scores[range(3), batch["input_ids"][row, -3:]]
        torch.testing.assert_close(output.log_probs[row, -3:], right, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prompts", NAMES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "gemma3n_text"])
def test_states_of_generated_texts_are_in_the_callers_columns(name, prompts, side):
    """The first step's hidden states are [prompt | the batch as it came]."""
    names = NAMES[prompts]
    model = other_model(name, names) if name in ARCHITECTURES else model_of(name, names)
    batch = batch_of(side)
    del batch["labels"]
    asked = {"return_dict_in_generate": True, "output_hidden_states": True, "pad_token_id": 0, "eos_token_id": None}
    for copies in (1, 2):
        found = model.generate(
            **batch, adapter_names=names, max_new_tokens=2, num_beams=copies, num_return_sequences=copies, **asked
        ).hidden_states
        longest = found[0][0].shape[-2] - 8
        for row in range(len(LENGTHS)):
            right, length = alone(model, batch, row, names, output_hidden_states=True)
            text = longest + batch["attention_mask"][row].nonzero()[:, 0]
            places = torch.cat([torch.arange(longest - length, longest), text])
            for states, expected in zip(found[0], right.hidden_states, strict=True):
                for copy in range(copies):
                    mine = states[..., copies * row + copy, places, :]
                    torch.testing.assert_close(mine, expected[..., 0, :, :], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_attentions_of_generated_texts():
    model = model_of("llama", None, attn_implementation="eager")
    asked = {"return_dict_in_generate": True, "output_attentions": True, "max_new_tokens": 2, "pad_token_id": 0}
    batch = batch_of("right", lengths=[8, 8])
    found = model.generate(batch["input_ids"], **asked).attentions
    right, _ = alone(model, batch, 1, None, output_attentions=True)
    torch.testing.assert_close(found[0][1][1], right.attentions[1][0], rtol=1e-4, atol=1e-5)
    batch = batch_of("left")
    del batch["labels"]
    with pytest.raises(PromptTuningError, match="output_attentions is given to generate for rows with pads, or for"):
        model.generate(**batch, **asked)
    model = model_of("t5", None, attn_implementation="eager")
    with pytest.raises(PromptTuningError, match="output_attentions is given for rows padded at the left, or for"):
        model.generate(**batch, **asked)

"""The PEFT models: what PEFT gets right stays, what it gets wrong is right, and only the prompt moves."""

import json
import warnings

import peft
import pytest
import torch

from hf_prompt_tuning import (
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningModelForCausalLM,
    PromptTuningModelForSeq2SeqLM,
    get_prompt_tuning_model,
)
from tests.shared.reference import (
    greedy,
    loss_and_gradient,
    pad,
    ragged_rows,
    relative_error,
    tiny_prompt_model,
    with_prompts,
)
from tests.shared.tiny_models import DECODERS, ENCODER_DECODERS, VOCAB, tiny_model


def reload_with_peft(model, folder, name, seed=0):
    model.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(tiny_model(name, seed), folder)


@pytest.mark.parametrize("name", DECODERS)
def test_peft_loads_a_saved_prompt_and_gives_the_same_logits(name, tmp_path):
    model = tiny_prompt_model(name).eval()
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        theirs = peft.PeftModel.from_pretrained(tiny_model(name), tmp_path).eval()
    assert type(theirs) is peft.PeftModelForCausalLM
    for lengths in ([6, 6], [7, 3, 5]):
        batch = pad(ragged_rows(lengths), "right")
        with torch.no_grad():
            ours, other = model(**batch), theirs(**batch)
        mask = torch.cat([torch.ones(len(lengths), 5), batch["attention_mask"]], dim=1).bool()
        assert ours.logits.shape == (len(lengths), 5 + max(lengths), VOCAB)
        torch.testing.assert_close(ours.logits[mask], other.logits[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_peft_loads_a_saved_encoder_decoder_prompt(name, tmp_path):
    model = tiny_prompt_model(name).eval()
    theirs = reload_with_peft(model, tmp_path, name).eval()
    batch = pad(ragged_rows([7, 3]), "right") | {"labels": torch.tensor([[5, 6, 7], [8, 9, -100]])}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, theirs(**batch).logits, rtol=1e-5, atol=1e-5)


def test_right_padded_loss_and_gradient_are_pefts():
    """Where PEFT is right: pads at the right, no label on the first token."""
    model = tiny_prompt_model("llama")
    theirs = peft.get_peft_model(
        tiny_model("llama"),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, prompt_tuning_init="RANDOM"),
    )
    weight = theirs.prompt_encoder["default"].embedding.weight
    weight.data.copy_(model.prompt.data)
    batch = pad(ragged_rows([7, 3, 9], first_labelled=False), "right")
    loss, gradient = loss_and_gradient(model, model(**batch).loss)
    other = theirs(**batch).loss
    other.backward()
    assert loss == pytest.approx(other.item(), rel=1e-6)
    assert relative_error(gradient, weight.grad) < 1e-5


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoder_loss_does_not_depend_on_padding(name):
    model = tiny_prompt_model(name)
    sources, targets = ragged_rows([7, 3, 5]), ragged_rows([2, 5, 3], seed=1)
    right, left = pad(sources, "right"), pad(sources, "left")
    right["labels"], left["labels"] = (pad(targets, side)["input_ids"] for side in ("right", "left"))
    for batch in (right, left):
        batch["labels"][batch["labels"] == 0] = -100
    expected_loss, expected = loss_and_gradient(model, _alone(model, sources, targets))
    for batch in (right, left):
        for only_labelled in (True, False):
            loss, gradient = loss_and_gradient(model, model(**batch, only_labelled=only_labelled).loss)
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert relative_error(gradient, expected) < 1e-5


def _alone(model, sources, targets):
    backbone, total, count = model.get_base_model(), 0.0, 0
    for (source, _), (target, _) in zip(sources, targets, strict=True):
        embeds = torch.cat([model.prompt[None], backbone.get_input_embeddings()(source[None])], dim=1)
        total = total + backbone(inputs_embeds=embeds, labels=target[None]).loss * len(target)
        count += len(target)
    return total / count


@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_only_the_prompt_moves(name):
    model = tiny_prompt_model(name).train()
    before = {k: v.clone() for k, v in model.get_base_model().state_dict().items()}
    prompt = model.prompt.detach().clone()
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["prompt_encoder.default.embedding.weight"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model(**pad(ragged_rows([4, 6]), "right"), only_labelled=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(prompt, model.prompt)
    after = model.get_base_model().state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "t5", "bart"])
def test_the_backbones_dropout_is_off_unless_asked_for(name):
    dropout = {"opt": {"dropout": 0.5}, "bart": {"dropout": 0.5}, "t5": {"dropout_rate": 0.5}}.get(
        name, {"resid_pdrop": 0.5} if name == "gpt2" else {"hidden_dropout": 0.5}
    )
    batch = pad(ragged_rows([6, 4]), "right")

    def losses(asked):
        config = PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init="RANDOM", backbone_dropout=asked)
        model = get_prompt_tuning_model(tiny_model(name, **dropout), config).train()
        return {model(**batch).loss.item() for _ in range(3)}

    assert len(losses(False)) == 1
    assert len(losses(True)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_prompt_is_fp32_whatever_the_backbones_dtype(dtype):
    model = get_prompt_tuning_model(
        tiny_model("llama").to(dtype), PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
    )
    model(**pad(ragged_rows([4, 6]), "right"), only_labelled=True).loss.backward()
    assert model.prompt.dtype == model.prompt.grad.dtype == torch.float32


def test_saved_files_are_pefts_and_ours(tmp_path, tokenizer):
    template = PromptTemplate(source="Message : {message} Label :", label_column="label", label_words={"1": "yes"})
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init_text="good or bad:")
    model = get_prompt_tuning_model(tiny_model("llama"), config, tokenizer=tokenizer, template=template)
    model.save_pretrained(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "prompt_tuning.json",
    ]
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(values) == set(peft.PromptTuningConfig.__dataclass_fields__)
    assert values["prompt_tuning_init"] == "RANDOM"
    assert values["num_transformer_submodules"] == 1
    info = json.loads((tmp_path / "prompt_tuning.json").read_text())
    assert info["initialization"] == {
        "num_virtual_tokens": 4,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "good or bad:",
    }
    assert info["template"]["source"] == "Message : {message} Label :"
    assert info["backbone"]["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize("name", ["gpt2", "opt", "t5"])
def test_a_saved_prompt_loads_and_trains_further(name, tmp_path):
    model = tiny_prompt_model(name)
    model.save_pretrained(tmp_path)
    cls = PromptTuningModelForSeq2SeqLM if name == "t5" else PromptTuningModelForCausalLM
    frozen = cls.from_pretrained(tiny_model(name), tmp_path)
    assert type(frozen) is cls and not frozen.prompt.requires_grad and not frozen.training
    assert torch.equal(frozen.prompt, model.prompt)
    again = cls.from_pretrained(tiny_model(name), tmp_path, is_trainable=True)
    again(**pad(ragged_rows([5, 3]), "right")).loss.backward()
    assert again.prompt.grad.abs().sum() > 0
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/prompt_tuning.json").read_text()) == json.loads(
        (tmp_path / "prompt_tuning.json").read_text()
    )


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_prompt_that_peft_made_loads(name, tmp_path):
    task = "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    theirs = peft.get_peft_model(
        tiny_model(name), peft.PromptTuningConfig(task_type=task, num_virtual_tokens=6, prompt_tuning_init="RANDOM")
    ).eval()
    theirs.save_pretrained(tmp_path)
    cls = PromptTuningModelForSeq2SeqLM if name == "t5" else PromptTuningModelForCausalLM
    ours = cls.from_pretrained(tiny_model(name), tmp_path, is_trainable=True).eval()
    assert ours.prompt.shape == (6, 32) and ours.prompt.requires_grad
    batch = pad(ragged_rows([5, 3]), "right")
    if name == "t5":
        batch["labels"] = torch.tensor([[5, 6, 7], [8, 9, -100]])
    with torch.no_grad():
        logits, other = ours(**batch).logits, theirs(**batch).logits
    if name == "llama":
        mask = torch.cat([torch.ones(2, 6), batch["attention_mask"]], dim=1).bool()
        logits, other = logits[mask], other[mask]
    torch.testing.assert_close(logits, other, rtol=1e-5, atol=1e-5)


def test_several_prompts_on_one_backbone(tmp_path):
    model = tiny_prompt_model("llama", num_virtual_tokens=5)
    model.add_adapter("other", PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    model.set_adapter("other")
    assert model.prompt.shape == (3, 32)
    model.save_pretrained(tmp_path)
    back = PromptTuningModelForCausalLM.from_pretrained(tiny_model("llama"), tmp_path)
    back.load_adapter(tmp_path / "other", "other")
    back.set_adapter("other")
    assert torch.equal(back.prompt, model.prompt)
    back.delete_adapter("default")
    assert list(back.prompt_info) == ["other"]


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom", "gemma"])
def test_generation_continues_each_row_as_if_alone(name):
    model = tiny_prompt_model(name).eval()
    rows = ragged_rows([7, 2, 5])
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    alone = [model.generate(input_ids=ids[None], **options)[0, len(ids) :] for ids, _ in rows]
    theirs = [greedy(model, ids, 4) for ids, _ in rows]
    assert [row.tolist() for row in alone] == theirs
    for side in ("right", "left"):
        batch = pad(rows, side)
        out = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options)
        assert torch.equal(out[:, :7], batch["input_ids"])
        assert out[:, 7:].tolist() == theirs


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoder_generation_does_not_depend_on_padding(name):
    model = tiny_prompt_model(name).eval()
    rows = ragged_rows([7, 2, 5])
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, num_beams=1, forced_eos_token_id=None)
    alone = [model.generate(input_ids=ids[None], **options)[0].tolist() for ids, _ in rows]
    for side in ("right", "left"):
        batch = pad(rows, side)
        out = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options)
        assert out.tolist() == alone


def test_hidden_states_come_back_in_the_callers_columns():
    model = tiny_prompt_model("llama").eval()
    rows = ragged_rows([4, 2])
    right, left = (pad(rows, side) for side in ("right", "left"))
    with torch.no_grad():
        a = model(**right, output_hidden_states=True)
        b = model(**left, output_hidden_states=True)
    for x, y in ((a.logits, b.logits), (a.hidden_states[1], b.hidden_states[1])):
        torch.testing.assert_close(x[1, 5:7], y[1, 7:9], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x[1, :5], y[1, :5], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_backbone_alone_is_one_context_away(side):
    model = tiny_prompt_model("llama").eval()
    rows = ragged_rows([6, 3])
    batch, backbone = pad(rows, side), tiny_model("llama")
    with torch.no_grad(), model.disable_adapter():
        off = model(**batch)
        labelled = model(**batch, only_labelled=True)
    total, count = 0.0, 0
    for i, (ids, labels) in enumerate(rows):
        with torch.no_grad():
            alone = backbone(input_ids=ids[None], labels=labels[None])
        real = batch["attention_mask"][i].bool()
        torch.testing.assert_close(off.logits[i][real], alone.logits[0], rtol=1e-5, atol=1e-5)
        tokens = int((labels[1:] != -100).sum())  # nothing predicts a first token here
        total, count = total + alone.loss.item() * tokens, count + tokens
    assert len(labelled.targets) == count
    assert labelled.loss.item() == pytest.approx(total / count, rel=1e-5)
    assert off.loss.item() == pytest.approx(total / count, rel=1e-5)
    assert len(model.prompt) == 5


def test_a_dtype_free_tuple_is_returned_where_asked_for():
    model = tiny_prompt_model("gpt2")
    batch = pad(ragged_rows([4, 4]), "right")
    loss, logits, *_ = model(**batch, return_dict=False)
    assert loss.item() == pytest.approx(model(**batch).loss.item())
    assert logits.shape == (2, 9, VOCAB)


class TestRefusals:
    def test_a_backbone_without_inputs_embeds(self):
        backbone = tiny_model("gpt2")
        backbone.forward = lambda input_ids, attention_mask=None: None
        with pytest.raises(PromptTuningError, match="GPT2LMHeadModel takes no inputs_embeds"):
            get_prompt_tuning_model(backbone, PromptTuningConfig())

    def test_the_wrong_task_type(self):
        with pytest.raises(PromptTuningError, match="task_type is SEQ_2_SEQ_LM, and LlamaForCausalLM"):
            get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(task_type="SEQ_2_SEQ_LM"))

    def test_another_width(self, tmp_path):
        tiny_prompt_model("llama").save_pretrained(tmp_path)
        with pytest.raises(PromptTuningError, match="width 32, and this backbone's embeddings have 16"):
            PromptTuningModelForCausalLM.from_pretrained(tiny_model("opt"), tmp_path)

    def test_the_other_class(self, tmp_path):
        tiny_prompt_model("t5").save_pretrained(tmp_path)
        with pytest.raises(
            PromptTuningError, match="prompt of task type SEQ_2_SEQ_LM, and PromptTuningModelForCausalLM"
        ):
            PromptTuningModelForCausalLM.from_pretrained(tiny_model("llama"), tmp_path)

    def test_pickles(self, tmp_path):
        with pytest.raises(PromptTuningError, match="safe_serialization is False"):
            tiny_prompt_model("llama").save_pretrained(tmp_path, safe_serialization=False)

    def test_packed_positions(self):
        model = tiny_prompt_model("llama")
        ids = torch.ones(1, 4, dtype=torch.long)
        model(input_ids=ids, position_ids=torch.arange(4)[None])
        with pytest.raises(PromptTuningError, match="position_ids are given that do not count"):
            model(input_ids=ids, position_ids=torch.tensor([[0, 1, 0, 1]]))

    def test_masks_of_other_shapes(self):
        ids = torch.ones(1, 4, dtype=torch.long)
        with pytest.raises(PromptTuningError, match=r"attention_mask has shape \[1, 1, 4, 4\]"):
            tiny_prompt_model("llama")(input_ids=ids, attention_mask=torch.ones(1, 1, 4, 4))

    def test_another_kind_of_adapter(self):
        with pytest.raises(PromptTuningError, match="got a LoraConfig"):
            get_prompt_tuning_model(tiny_model("llama"), peft.LoraConfig())


def test_room_behind_a_prompt():
    model = with_prompts(tiny_prompt_model("gpt2"), other=3)
    limit = model.config.max_position_embeddings
    assert (model.room(), model.room("other")) == (limit - 5, limit - 3)
    assert tiny_prompt_model("t5").room() is None
    with pytest.raises(
        PromptTuningError, match="this model has no prompt 'third'; its prompts are 'default', 'other'"
    ):
        model.room("third")


def test_the_descriptions_are_a_view_of_the_prompts():
    model = with_prompts(tiny_prompt_model("llama"), other=3)
    assert model.prompt_info["other"] is model.prompt_encoder["other"].info
    with pytest.raises(TypeError):
        model.prompt_info["other"] = model.info
    model.delete_adapter("other")
    assert [*model.prompt_info] == ["default"]

"""Half precision: of the backbone, of the computation, of an evaluation. The prompt is fp32 throughout."""

import pytest
import torch
from safetensors.torch import load_file

from hf_prompt_tuning import PromptTuningModelForCausalLM
from tests.shared.reference import (
    loss_and_gradient,
    pad,
    ragged_rows,
    reference_loss,
    relative_error,
    tiny_prompt_model,
)
from tests.shared.short_runs import LAYOUTS, make, optimizer_dtypes, scaled_trainer
from tests.shared.tiny_models import ENCODER_DECODERS, tiny_model
from tests.shared.trainers import losses

HALVES = [torch.bfloat16, torch.float16]
ROWS = ragged_rows([7, 3, 12, 4])
# How many roundings of the dtype the gradient's largest error may be; it adds them up over the layers.
ROUNDINGS = {"opt": 16, "bart": 16, "t5": 32}
CASES = [
    (name, layout)
    for name in ("llama", "gpt2", "gemma", "opt", "bloom", "t5", "bart")
    for layout in LAYOUTS.get(name, ["padded", "cached", "packed"])
]


def expectation(name):
    """Loss and prompt gradient in fp32, by the slow reference where there is one."""
    model = tiny_prompt_model(name)
    loss = model(**pad(ROWS, "right")).loss if name in ENCODER_DECODERS else reference_loss(model, ROWS)
    return loss_and_gradient(model, loss)


@pytest.mark.parametrize("how", ["loaded", "autocast"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_loss_and_gradient_are_fp32s_within_rounding(name, layout, dtype, how):
    """A backbone loaded in half precision, and one that Accelerate's autocast computes in it."""
    expected_loss, expected = expectation(name)
    model = tiny_prompt_model(name)
    if how == "loaded":
        model.get_base_model().to(dtype)
    if layout is not None:
        model.use_layout(layout, max_packed_tokens=20, check=False)
    with torch.autocast("cpu", dtype, enabled=how == "autocast"):
        found = model(**pad(ROWS, "left"), only_labelled=True)
    loss, gradient = loss_and_gradient(model, found.loss)
    assert found.logits.dtype == (torch.float32 if (name, how) == ("bart", "autocast") else dtype)
    assert gradient.dtype == torch.float32
    assert loss == pytest.approx(expected_loss, rel=torch.finfo(dtype).eps)
    assert relative_error(gradient, expected) < ROUNDINGS.get(name, 4) * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "opt", "bloom"])
def test_the_check_of_a_layout_allows_for_rounding(name, dtype, caplog):
    model = tiny_prompt_model(name)
    model.get_base_model().to(dtype)
    model(**pad(ROWS, "right"), only_labelled=True)
    assert model.chosen_layouts == ["packed"]
    assert not caplog.records


@pytest.mark.parametrize("dtype", HALVES)
def test_ranking_in_half_precision(dtype):
    model, batch = tiny_prompt_model("llama").eval(), pad(ROWS, "right")
    batch.pop("labels")
    with torch.no_grad():
        expected = model(**batch, candidates=[[11, 2], [12, 13, 2]]).scores
        model.get_base_model().to(dtype)
        for layout in ("padded", "cached", "packed"):
            model.use_layout(layout)
            found = model(**batch, candidates=[[11, 2], [12, 13, 2]]).scores
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("how", ["bf16", "loaded in bfloat16", "loaded in float16"])
def test_training_keeps_prompt_and_optimizer_in_fp32(how, tmp_path, tokenizer, messages):
    expected = make(tmp_path / "fp32", tokenizer, messages)
    expected.train()
    model = tiny_prompt_model("llama", num_virtual_tokens=4)
    if how != "bf16":
        model.get_base_model().to(getattr(torch, how.split()[-1]))
    values = {"bf16": how == "bf16", "save_strategy": "steps", "save_steps": 3}
    trainer = make(tmp_path / "half", tokenizer, messages, model, **values)
    trainer.train()
    assert trainer.model.prompt.dtype == torch.float32
    assert optimizer_dtypes(trainer) == {torch.float32}
    assert losses(trainer) != losses(expected)  # it was computed in half precision
    assert losses(trainer) == pytest.approx(losses(expected), rel=2e-2)
    saved = load_file(tmp_path / "half/checkpoint-6/adapter_model.safetensors")["prompt_embeddings"]
    assert saved.dtype == torch.float32 and torch.equal(saved, trainer.model.prompt)
    backbone = tiny_model("llama").to(next(model.get_base_model().parameters()).dtype)
    loaded = PromptTuningModelForCausalLM.from_pretrained(backbone, tmp_path / "half/checkpoint-6", is_trainable=True)
    assert loaded.prompt.dtype == torch.float32 and torch.equal(loaded.prompt, saved)
    again = make(tmp_path / "half", tokenizer, messages, loaded, **values)
    again.train(resume_from_checkpoint=str(tmp_path / "half/checkpoint-3"))
    assert torch.equal(again.model.prompt, saved)
    assert optimizer_dtypes(again) == {torch.float32}


class TestGradientScaler:
    """fp16 needs one. On a CPU the Trainer's fp16 is fp32 without a word, so the scaler is put in by hand here."""

    @staticmethod
    def step(model, optimizer, scaler, rows=ROWS):
        with torch.autocast("cpu", torch.float16):
            loss = model(**pad(rows, "right"), only_labelled=True).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradient = model.prompt.grad.clone()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return gradient

    @pytest.mark.parametrize("loaded", [torch.float32, torch.float16])
    def test_the_gradient_that_is_unscaled_is_fp32(self, loaded):
        """torch refuses to unscale half gradients; the prompt's is whole whatever the backbone is loaded in."""
        _, expected = expectation("llama")
        model = tiny_prompt_model("llama")
        model.get_base_model().to(loaded)
        optimizer = torch.optim.AdamW([model.prompt], lr=0.1)
        before = model.prompt.detach().clone()
        gradient = self.step(model, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**10))
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, expected) < 4 * torch.finfo(torch.float16).eps
        assert not torch.equal(model.prompt, before)

    def test_a_step_that_overflowed_is_skipped(self):
        model = tiny_prompt_model("llama")
        optimizer = torch.optim.AdamW([model.prompt], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        before = model.prompt.detach().clone()
        assert not torch.isfinite(self.step(model, optimizer, scaler)).all()
        assert torch.equal(model.prompt, before) and not optimizer.state
        assert scaler.get_scale() == 2.0**39
        for _ in range(30):
            self.step(model, optimizer, scaler)
        assert torch.isfinite(model.prompt).all() and not torch.equal(model.prompt, before)

    def test_the_trainers_own_path(self, tmp_path, tokenizer, messages):
        expected = make(tmp_path, tokenizer, messages, max_steps=12)
        expected.train()
        trainer = scaled_trainer(make(tmp_path, tokenizer, messages, max_steps=12, fp16=True), 2.0**10)
        trainer.train()
        assert losses(trainer) != losses(expected)
        assert losses(trainer) == pytest.approx(losses(expected), rel=1e-2)
        assert trainer.model.prompt.dtype == torch.float32
        assert optimizer_dtypes(trainer) == {torch.float32}


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_a_cast_of_the_model_leaves_the_prompt_in_fp32(cast):
    model = tiny_prompt_model("llama")
    before = model.prompt.detach().clone()
    getattr(model, cast)()
    assert next(model.get_base_model().parameters()).dtype != torch.float32
    assert model.prompt.dtype == torch.float32 and torch.equal(model.prompt, before)
    assert model(**pad(ROWS, "right"), only_labelled=True).loss.isfinite()
    assert model.to("meta").prompt.is_meta  # a move is still a move


@pytest.mark.parametrize("flag", ["bf16_full_eval", "fp16_full_eval"])
def test_full_half_evaluation_does_not_touch_the_prompt(flag, tmp_path, tokenizer, messages):
    """It casts the whole model in place; what is saved afterwards is what was trained."""
    trainer = make(tmp_path, tokenizer, messages, **{flag: True})
    trainer.train()
    trained = trainer.model.prompt.detach().clone()
    metrics = trainer.evaluate()
    assert next(trainer.model.get_base_model().parameters()).dtype != torch.float32
    assert torch.equal(trainer.model.prompt, trained)
    trainer.save_model()
    assert torch.equal(load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"], trained)
    whole = make(tmp_path, tokenizer, messages)
    whole.train()
    assert metrics["eval_loss"] == pytest.approx(whole.evaluate()["eval_loss"], rel=1e-2)

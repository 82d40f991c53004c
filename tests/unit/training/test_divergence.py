"""Numbers that go wrong, by training that makes them so; and healthy runs, of which nothing is said."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from hf_prompt_tuning import (
    DataCollatorForPromptTuning,
    DivergenceCallback,
    PromptTuningArguments,
    PromptTuningError,
    PromptTuningTrainer,
)
from hf_prompt_tuning.training.callbacks.watched import mean_word_norm
from tests.shared.reference import tiny_prompt_model
from tests.shared.short_runs import TRAINERS, make, scaled_trainer, vanilla
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE


class Surge(TrainerCallback):
    """One step at a rate that throws the prompt out of fp32's range."""

    def __init__(self, at=4):
        self.at = at

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == self.at:
            optimizer.param_groups[0]["lr"] = 1e37


class Witness(TrainerCallback):
    """What the prompt was after each step."""

    def __init__(self):
        self.finite = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.finite.append(bool(torch.isfinite(model.prompt).all()))


def taught(tokenizer, rows, folder):
    """A model whose backbone tells the two labels apart, with a fresh prompt in front of it."""
    model = tiny_prompt_model("llama", num_virtual_tokens=20, prompt_tuning_init="SAMPLE_VOCAB")
    trainer = make(folder, tokenizer, rows, model)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    batch.pop("label")
    backbone = model.get_base_model().requires_grad_(True)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    backbone.requires_grad_(False)
    model.prompt.grad = None
    return model


def said(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "hf_prompt_tuning.training.callbacks.divergence"]


class TestNotFinite:
    @TRAINERS
    def test_a_loss_that_is_nan_ends_the_run_and_keeps_the_last_good_checkpoint(
        self, build, tmp_path, tokenizer, messages
    ):
        model = tiny_prompt_model("gpt2")
        values = {"max_steps": 20, "save_strategy": "steps", "save_steps": 2, "logging_steps": 20}
        trainer = build(tmp_path, tokenizer, messages, model, [Surge()], **values)
        with pytest.raises(FloatingPointError, match=r"the loss is nan at step 6; .*checkpoint-4 is from before"):
            trainer.train()
        kept = load_file(tmp_path / "checkpoint-4/adapter_model.safetensors")["prompt_embeddings"]
        assert torch.isfinite(kept).all() and kept.abs().max() < 10
        assert not (tmp_path / "checkpoint-6").exists()
        assert not model._forward_hooks

    @TRAINERS
    def test_it_is_noticed_within_a_logging_interval_and_never_reaches_the_prompt(
        self, build, tmp_path, tokenizer, messages
    ):
        model, witness = tiny_prompt_model("gpt2"), Witness()
        trainer = build(tmp_path, tokenizer, messages, model, [Surge(), witness], max_steps=20, logging_steps=8)
        with pytest.raises(FloatingPointError, match=r"the loss is nan at step 6; .*no checkpoint was saved before"):
            trainer.train()
        assert trainer.state.global_step == 8 or trainer.state.epoch == pytest.approx(2)  # epochs have 3 steps
        assert all(witness.finite) and torch.isfinite(model.prompt).all()

    def test_the_same_of_an_infinite_loss_with_a_finite_gradient(self, tmp_path, tokenizer, messages):
        model = tiny_prompt_model("llama")

        def forbid(module, inputs, logits):  # a model that holds a label's word for impossible
            return logits.index_fill(-1, torch.tensor([2]), -torch.inf)

        model.get_base_model().get_output_embeddings().register_forward_hook(forbid)
        with pytest.raises(FloatingPointError, match="the loss is inf at step 1;"):
            make(tmp_path, tokenizer, messages, model, check_layout=False).train()
        assert torch.isfinite(model.prompt).all()

    @TRAINERS
    def test_a_gradient_alone(self, build, tmp_path, tokenizer, messages):
        model, steps = tiny_prompt_model("llama"), []

        def spoil(gradient):
            steps.append(None)
            return gradient.index_fill(0, torch.tensor([1]), -torch.inf) if len(steps) == 3 else gradient

        model.prompt.register_hook(spoil)
        trainer = build(tmp_path, tokenizer, messages, model, logging_steps=4)
        with pytest.raises(FloatingPointError, match="the loss's gradient is not finite at step 3;"):
            trainer.train()
        assert torch.isfinite(model.prompt).all()

    def test_a_prompt_that_a_step_throws_out_of_range(self, tmp_path, tokenizer, messages):
        model = tiny_prompt_model("llama")
        values = {"optim": "sgd", "learning_rate": 1e38, "max_grad_norm": 0.0, "save_steps": 1}
        with pytest.raises(FloatingPointError, match=r"the prompt's norm is (inf|nan) at step 1;"):
            make(tmp_path, tokenizer, messages, model, save_strategy="steps", **values).train()
        assert not list(tmp_path.glob("checkpoint-*"))

    def test_an_evaluation_loss(self, tmp_path, tokenizer, messages):
        model = tiny_prompt_model("gpt2")
        head = model.get_base_model().get_output_embeddings()
        head.register_forward_hook(lambda module, inputs, logits: logits if module.training else logits * torch.nan)
        values = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
        with pytest.raises(FloatingPointError, match="eval_loss is nan at step 2;"):
            make(tmp_path, tokenizer, messages, model, **values).train()
        assert not (tmp_path / "checkpoint-2").exists()

    def test_a_prompt_that_is_not_finite_is_not_saved(self, tmp_path):
        model = tiny_prompt_model("llama")
        model.prompt.data[1, 2] = float("nan")
        with pytest.raises(FloatingPointError, match="the prompt 'default' is not finite, and is not saved"):
            model.save_pretrained(tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_all_processes_stop_where_one_has_the_bad_loss(self, tmp_path, tokenizer, messages, monkeypatch):
        """The other process is played by `all_reduce`: its loss was infinite at step 2."""

        class Two(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
                monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
                monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: tensor.clamp_(max=2.0))

        trainer = make(tmp_path, tokenizer, messages, callbacks=[Two()], logging_steps=2)
        with pytest.raises(FloatingPointError, match="at step 2;"):
            trainer.train()


class TestGradientScaler:
    def test_overflows_that_it_skips_are_no_divergence(self, tmp_path, tokenizer, messages, caplog):
        trainer = make(tmp_path, tokenizer, messages, max_steps=40, fp16=True)
        scaled_trainer(trainer, init_scale=2.0**40).train()
        assert trainer.accelerator.scaler.get_scale() < 2.0**25  # it skipped more than fifteen
        assert trainer.state.global_step == 40 and not said(caplog)

    def test_a_loss_that_is_nan_ends_the_run(self, tmp_path, tokenizer, messages):
        model = tiny_prompt_model("gpt2")
        trainer = make(tmp_path, tokenizer, messages, model, [Surge(2)], fp16=True, logging_steps=5)
        trainer.train_dataset = trainer.train_dataset.select(range(4)).repeat(6)  # so that an epoch is all of it
        with pytest.raises(FloatingPointError, match="the loss is nan at step 4;"):
            scaled_trainer(trainer, init_scale=2.0**10).train()
        assert torch.isfinite(model.prompt).all()

    def test_a_gradient_that_overflows_at_any_scale_ends_the_run(self, tmp_path, tokenizer, messages):
        model = tiny_prompt_model("llama")
        model.prompt.register_hook(lambda gradient: gradient * torch.inf)
        before = model.prompt.detach().clone()
        trainer = make(tmp_path, tokenizer, messages, model, max_steps=40, fp16=True)
        with pytest.raises(FloatingPointError, match="overflows in fp16 at any loss scale at step 11;"):
            scaled_trainer(trainer, init_scale=2.0**10).train()
        assert torch.equal(model.prompt, before)


class TestWarnings:
    @TRAINERS
    def test_a_norm_that_explodes(self, build, tmp_path, tokenizer, messages, caplog):
        trainer = build(tmp_path, tokenizer, messages, learning_rate=30.0, logging_steps=3)
        trainer.train()
        [message] = said(caplog)
        assert message.startswith("At step 3 the prompt's vectors have a mean norm of ")
        norm, times = float(message.split()[11].strip(",")), float(message.split()[12])
        words = trainer.model.word_embeddings.weight.norm(dim=1).mean().item()
        assert norm > 100 * words and times == pytest.approx(norm / words, rel=1e-2)
        assert message.endswith("Lower learning_rate.")

    @TRAINERS
    @pytest.mark.parametrize("warmup", [0, 3])
    def test_a_rate_that_leaves_the_prompt_where_it_started(
        self, warmup, build, tmp_path, tokenizer, messages, caplog
    ):
        trainer = build(tmp_path, tokenizer, messages, learning_rate=1e-6, warmup_steps=warmup, logging_steps=1)
        trainer.train()
        [message] = said(caplog)
        # with a warmup, the first step's rate is zero and tells nothing
        assert message.startswith(f"By step {2 if warmup else 1} the prompt has moved by ")
        # AdamW's first steps move each of the 32 numbers of a vector by the rate, or a little less
        most = float(message.split("it will move by ")[1].split()[0])
        assert 0.7 < most / (6 * 1e-6 * 32**0.5) < 1.1
        assert "in 6 steps at a learning rate of 1e-06" in message and message.endswith("3e-2 is a good start.")

    def test_a_rate_of_zero(self, tmp_path, tokenizer, messages, caplog):
        make(tmp_path, tokenizer, messages, learning_rate=0.0).train()
        [message] = said(caplog)
        assert "in 6 steps at a learning rate of 0 it will move by 0 at most" in message

    def test_the_rate_is_the_optimizers_own(self, tmp_path, tokenizer, messages, caplog):
        model = tiny_prompt_model("llama")
        optimizer = torch.optim.SGD([model.prompt], lr=3.0)
        args = PromptTuningArguments(
            output_dir=str(tmp_path), max_steps=3, learning_rate=1e-9, use_cpu=True, disable_tqdm=True, logging_steps=1
        )
        PromptTuningTrainer(
            model,
            args,
            train_dataset=messages,
            processing_class=tokenizer,
            template=TEMPLATE,
            optimizers=(optimizer, None),
        ).train()
        assert not said(caplog)

    def test_predictions_that_collapse_to_one_class(self, tmp_path, tokenizer, messages, caplog):
        """Trained on rows that all have one label, by mistake: it learns to say that whatever it reads."""
        model = taught(tokenizer, messages, tmp_path)
        wrong = make(tmp_path, tokenizer, [row | {"label": "2"} for row in messages]).train_dataset
        values = {"learning_rate": 0.3, "max_steps": 40, "eval_strategy": "steps", "eval_steps": 10}
        trainer = make(tmp_path, tokenizer, messages, model, **values, eval_on_start=True)
        trainer.train_dataset = wrong
        trainer.train()
        evaluations = [log for log in trainer.state.log_history if "eval_accuracy" in log]
        assert evaluations[0]["eval_accuracy"] == 1.0 and evaluations[-1]["eval_accuracy"] == 0.5
        collapsed = [log["step"] for log in evaluations if log["eval_accuracy"] == 0.5]
        [message] = said(caplog)
        expected = "all 12 rows of the evaluation are predicted 'no complaint', and 6 of them are not: "
        assert message.startswith(f"At step {collapsed[1]} {expected}")

    def test_a_collapse_that_only_the_last_evaluation_sees(self, tmp_path, tokenizer, messages, caplog):
        trainer = make(
            tmp_path, tokenizer, messages, taught(tokenizer, messages, tmp_path), max_steps=40, learning_rate=0.3
        )
        trainer.train_dataset = make(tmp_path, tokenizer, [row | {"label": "2"} for row in messages]).train_dataset
        trainer.train()
        assert not said(caplog)
        assert trainer.evaluate()["eval_accuracy"] == trainer.evaluate()["eval_accuracy"] == 0.5
        [message] = said(caplog)
        assert message.startswith("At step 40 all 12 rows")


class TestHealthyRuns:
    def test_the_defaults(self, tmp_path, tokenizer, messages, caplog):
        """learning_rate 3e-2, 20 virtual tokens, evaluated before, every epoch and after."""
        model = taught(tokenizer, messages, tmp_path)
        values = {"max_steps": 60, "eval_strategy": "epoch", "eval_on_start": True, "logging_steps": 10}
        trainer = make(tmp_path, tokenizer, messages, model, **values)
        trainer.train()
        assert trainer.evaluate()["eval_accuracy"] == 1.0
        assert not said(caplog)

    @TRAINERS
    def test_it_changes_no_bit(self, build, tmp_path, tokenizer, messages, monkeypatch):
        found = []
        for watched in (True, False):
            trainer = build(tmp_path, tokenizer, messages, max_steps=5, gradient_accumulation_steps=2)
            if not watched:
                trainer.remove_callback(DivergenceCallback)
            trainer.train()
            found.append(trainer.model.prompt.detach())
        assert torch.equal(*found)

    def test_an_encoder_decoder_in_transformers_seq2seq_trainer(self, tmp_path, tokenizers, messages, caplog):
        tokenizer, model = tokenizers["t5"], tiny_prompt_model("t5")
        rows = [tokenizer(row["message"])["input_ids"] for row in messages]
        Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=str(tmp_path), max_steps=5, learning_rate=0.3, use_cpu=True, report_to="none",
                disable_tqdm=True, save_strategy="no", logging_steps=1,
            ),
            data_collator=DataCollatorForPromptTuning(tokenizer),
            train_dataset=[{"input_ids": ids, "labels": ids} for ids in rows],
            callbacks=[DivergenceCallback()],
        ).train()  # fmt: skip
        assert not said(caplog) and not model._forward_hooks

    def test_ours_is_not_added_to_one_that_was_given(self, tmp_path, tokenizer, messages, caplog):
        mine = DivergenceCallback(max_norm=1e9)
        trainer = make(tmp_path, tokenizer, messages, callbacks=[mine], learning_rate=30.0)
        trainer.train()
        watching = [c for c in trainer.callback_handler.callbacks if isinstance(c, DivergenceCallback)]
        assert watching == [mine] and not said(caplog)

    def test_a_confusion_matrix_that_came_with_the_prompt_is_not_of_this_run(
        self, tmp_path, tokenizer, messages, caplog
    ):
        model = tiny_prompt_model("llama")
        model.info.confusion_matrix = {"labels": ["a", "b"], "counts": [[3, 0], [2, 0]]}
        trainer = vanilla(tmp_path, tokenizer, messages, model)
        trainer.train()
        assert "eval_loss" in trainer.evaluate(trainer.train_dataset)
        assert not said(caplog)


def test_a_model_without_a_prompt_is_refused(tmp_path, tokenizer, messages):
    with pytest.raises(PromptTuningError, match="DivergenceCallback is used with a LlamaForCausalLM; it watches"):
        vanilla(tmp_path, tokenizer, messages, tiny_model("llama")).train()


def test_the_mean_norm_is_of_the_vectors_that_the_backbone_sees():
    for name in ("llama", "gemma"):
        embed = tiny_prompt_model(name).word_embeddings
        scale = 32**0.5 if name == "gemma" else 1.0
        assert mean_word_norm(embed) == pytest.approx(scale * embed.weight.norm(dim=1).mean().item(), rel=1e-5)

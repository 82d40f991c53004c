"""Each callback in transformers' own Trainer, which knows nothing of prompts; and each made to speak."""

import logging
import math
from contextlib import contextmanager

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerState, TrainingArguments

from hf_prompt_tuning import PromptLoadError, PromptTuningError
from hf_prompt_tuning.training.callbacks import (
    PromptCheckpointCallback,
    PromptHubCallback,
    PromptMonitorCallback,
    kept_prompts,
    restore_prompt,
)
from tests.shared.reference import tiny_prompt_model, with_prompts
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import make
from tests.shared.vanilla_trainer import vanilla


class Watch(TrainerCallback):
    """The prompt after each step, and the gradient that made it."""

    def __init__(self):
        self.prompts, self.gradients = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(model.prompt.grad.clone())

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.prompts.append(model.prompt.detach().clone())


class TestMonitor:
    def test_what_is_logged(self, tmp_path, tokenizer):
        watch = Watch()
        trainer = vanilla(tmp_path, tokenizer, callbacks=[watch])
        start = trainer.model.prompt.detach().clone()
        trainer.add_callback(PromptMonitorCallback(trainer, every=3, tokenizer=tokenizer))
        trainer.train()
        logs = {log["step"]: log for log in trainer.state.log_history if "prompt/norm" in log}
        assert list(logs) == [3, 6]
        words = tiny_model("llama").get_input_embeddings().weight.norm(dim=1).mean().item()
        for step, log in logs.items():
            prompt, norm = watch.prompts[step - 1], watch.prompts[step - 1].norm(dim=1).mean().item()
            assert log["prompt/norm"] == pytest.approx(norm)
            assert log["prompt/norm_vs_vocabulary"] == pytest.approx(norm / words, rel=1e-4)
            assert log["prompt/moved"] == pytest.approx((prompt - start).norm(dim=1).mean().item())
            assert log["prompt/gradient_norm"] == pytest.approx(watch.gradients[step - 1].norm().item())
            assert log["prompt/nearest_words"].count(" | ") == 2
        # the Trainer's own logs are all there, those of step 6 too
        assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [2, 4, 6]

    def test_it_reaches_tensorboard(self, tmp_path, tokenizer, monkeypatch):
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
        trainer = vanilla(tmp_path, tokenizer, report_to="tensorboard")
        trainer.add_callback(PromptMonitorCallback(trainer, tokenizer=tokenizer))
        trainer.train()
        board = EventAccumulator(str(tmp_path / "board")).Reload()
        events = board.Scalars("train/prompt/moved")
        logs = [log for log in trainer.state.log_history if "prompt/moved" in log]
        assert [event.step for event in events] == [log["step"] for log in logs] == [2, 4, 6]
        assert [e.value for e in events] == pytest.approx([log["prompt/moved"] for log in logs])
        assert any("nearest_words" in tag for tag in board.Tags()["tensors"])

    def test_refusals(self, tmp_path, tokenizer):
        trainer = vanilla(tmp_path, tokenizer)
        with pytest.raises(PromptTuningError, match="every is 0; it counts update steps"):
            PromptMonitorCallback(trainer, every=0)
        other = vanilla(tmp_path, tokenizer, model=tiny_model("llama"))
        other.add_callback(PromptMonitorCallback(other))
        with pytest.raises(PromptTuningError, match="PromptMonitorCallback is used with a LlamaForCausalLM"):
            other.train()


class TestCheckpoint:
    def test_every_evaluated_prompt_can_be_gone_back_to(self, tmp_path, tokenizer):
        watch = Watch()
        trainer = vanilla(tmp_path, tokenizer, callbacks=[watch, PromptCheckpointCallback()], eval_strategy="epoch")
        trainer.train()
        kept = kept_prompts(tmp_path)
        assert list(kept) == [3, 6]
        for step, prompt in kept.items():
            assert torch.equal(prompt.vectors, watch.prompts[step - 1])
        losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
        assert {step: prompt.metrics["eval_loss"] for step, prompt in kept.items()} == losses
        assert restore_prompt(trainer.model, tmp_path, 3)["eval_loss"] == losses[3]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[3], rel=1e-6)
        # the evaluation just now was at step 6, with the older prompt: the file says what was evaluated last
        assert torch.equal(kept_prompts(tmp_path)[6].vectors, kept[3].vectors)

    def test_a_prompt_that_was_one_of_several_keeps_its_name(self, tmp_path, tokenizer):
        """TRL's copy of a prompt is there while it trains. Then an evaluation belongs to the same prompt."""
        model = with_prompts(tiny_prompt_model("llama", num_virtual_tokens=3), ref=3)
        trainer = vanilla(tmp_path, tokenizer, model, [PromptCheckpointCallback()], eval_strategy="epoch")
        trainer.train()
        model.delete_adapter("ref")
        model.prompt.data.normal_()
        found = trainer.evaluate()["eval_loss"]
        assert list(kept_prompts(tmp_path, "default")) == [3, 6]
        assert kept_prompts(tmp_path, "default")[6].metrics["eval_loss"] == found
        assert restore_prompt(model, tmp_path, 6)["eval_loss"] == found

    def test_prompts_from_before_there_were_others_are_found(self, tmp_path, tokenizer):
        model = tiny_prompt_model("llama", num_virtual_tokens=3)
        trainer = vanilla(tmp_path, tokenizer, model, [PromptCheckpointCallback()], eval_strategy="epoch")
        trainer.train()
        before = kept_prompts(tmp_path)
        with_prompts(model, b=3)
        trainer.evaluate()
        assert list(kept_prompts(tmp_path, "default")) == [6]
        assert list(kept_prompts(tmp_path)) == list(before) == [3, 6]
        with pytest.raises(PromptLoadError, match="has prompts called 'default', and adapter_name is 'c'; name one"):
            kept_prompts(tmp_path, "c")

    def test_a_run_begins_a_new_file_and_a_resumed_one_adds_to_it(self, tmp_path, tokenizer):
        def run(length, epochs, resume=None, **values):
            model = tiny_prompt_model("llama", num_virtual_tokens=length)
            values = dict(eval_strategy="epoch", num_train_epochs=epochs) | values
            trainer = vanilla(tmp_path, tokenizer, model, [PromptCheckpointCallback()], **values)
            trainer.train(resume_from_checkpoint=resume)
            return trainer

        run(2, 3)
        run(3, 1, save_strategy="epoch")
        assert {step: len(kept.vectors) for step, kept in kept_prompts(tmp_path).items()} == {3: 3}
        trainer = run(3, 2, str(tmp_path / "checkpoint-3"))
        assert list(kept_prompts(tmp_path)) == [3, 6]
        # a prompt that is looked at later, without training, is added as well
        vanilla(tmp_path, tokenizer, trainer.model, [PromptCheckpointCallback()]).evaluate()
        assert list(kept_prompts(tmp_path)) == [0, 3, 6]

    def test_a_file_of_an_earlier_run_stays_until_there_is_a_new_prompt(self, tmp_path, tokenizer):
        vanilla(tmp_path, tokenizer, callbacks=[PromptCheckpointCallback()], eval_strategy="epoch").train()
        vanilla(tmp_path, tokenizer, callbacks=[PromptCheckpointCallback()]).train()
        assert list(kept_prompts(tmp_path)) == [3, 6]

    def test_what_was_evaluated_before_training_is_of_the_run(self, tmp_path, tokenizer):
        trainer = vanilla(tmp_path, tokenizer, callbacks=[PromptCheckpointCallback()], eval_strategy="epoch")
        trainer.evaluate()
        trainer.train()
        assert list(kept_prompts(tmp_path)) == [0, 3, 6]

    def test_refusals(self, tmp_path, tokenizer):
        model = tiny_prompt_model("llama", num_virtual_tokens=3)
        with pytest.raises(PromptLoadError, match="is not there; PromptCheckpointCallback writes it"):
            kept_prompts(tmp_path)
        vanilla(tmp_path, tokenizer, model, [PromptCheckpointCallback()]).evaluate()
        with pytest.raises(PromptLoadError, match="has no prompt of step 7; it has 0"):
            restore_prompt(model, tmp_path, 7)
        with pytest.raises(PromptLoadError, match=r"shape \[3, 32\], and the active one's is \[5, 32\]"):
            restore_prompt(tiny_prompt_model("llama"), tmp_path, 0)
        file = tmp_path / "evaluated_prompts.safetensors"
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(PromptLoadError, match="is not a whole file of evaluated prompts"):
            kept_prompts(file)


class TestHub:
    """The pushes themselves, with the real client, are in test_hub.py."""

    @pytest.fixture
    def pushes(self, monkeypatch):
        made = []
        monkeypatch.setattr(
            "hf_prompt_tuning.models.soft_prompts.SoftPrompts.push_to_hub",
            lambda model, repo_id, **kwargs: made.append((repo_id, kwargs, dict(model.info.metrics))),
        )
        return made

    @staticmethod
    def evaluated(callback, trainer, *values, name="eval_loss"):
        for step, value in enumerate(values):
            trainer.state.global_step = step
            metrics = {name: value, "eval_runtime": 1.0}
            callback.on_evaluate(trainer.args, trainer.state, trainer.control, model=trainer.model, metrics=metrics)

    @pytest.mark.parametrize(("name", "expected"), [("eval_loss", [0, 2, 4]), ("eval_accuracy", [0, 1])])
    def test_only_a_better_prompt_is_pushed(self, name, expected, pushes, tmp_path, tokenizer):
        trainer = vanilla(tmp_path, tokenizer)
        callback = PromptHubCallback("alice/prompt", metric=name)
        self.evaluated(callback, trainer, 0.6, 0.7, 0.5, 0.5, 0.4, name=name)
        assert [kwargs["commit_message"].split(":")[0] for _, kwargs, _ in pushes] == [f"Step {n}" for n in expected]
        assert all(repo_id == "alice/prompt" and set(metrics) == {name} for repo_id, _, metrics in pushes)

    def test_a_run_in_a_vanilla_trainer(self, pushes, tmp_path, tokenizer):
        callback = PromptHubCallback("alice/prompt", private=True)
        trainer = vanilla(tmp_path, tokenizer, callbacks=[callback], eval_strategy="epoch")
        trainer.train()
        losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
        best = [loss for i, loss in enumerate(losses) if loss < min(losses[:i], default=math.inf)]
        assert [metrics["eval_loss"] for _, _, metrics in pushes] == best
        assert pushes[0][1]["private"] is True
        assert trainer.model.info.training["learning_rate"] == 3e-2

    def test_a_push_that_fails_is_said_and_tried_again(self, monkeypatch, caplog, tmp_path, tokenizer):
        def down(*args, **kwargs):
            raise OSError("the Hub is down")

        trainer, callback = vanilla(tmp_path, tokenizer), PromptHubCallback("alice/prompt")
        monkeypatch.setattr("hf_prompt_tuning.models.soft_prompts.SoftPrompts.push_to_hub", down)
        with caplog.at_level(logging.WARNING):
            self.evaluated(callback, trainer, 0.6, 0.7)
        said = [record.getMessage() for record in caplog.records]
        assert said == [f"The prompt of step {n} could not be pushed: the Hub is down" for n in (0, 1)]

    def test_a_metric_that_is_not_there(self, tmp_path, tokenizer):
        trainer = vanilla(tmp_path, tokenizer)
        with pytest.raises(PromptTuningError, match="goes by 'eval_f1', and the evaluation has eval_loss"):
            self.evaluated(PromptHubCallback("alice/prompt", metric="f1"), trainer, 0.6)


class TestPartitionedPrompts:
    """With ZeRO-3 a prompt's vectors are here only while every process has asked for them."""

    @pytest.fixture
    def model(self, monkeypatch):
        """A prompt that is empty outside of `whole`; and how often each rank entered."""
        model = tiny_prompt_model("llama", num_virtual_tokens=3)
        embedding = model.prompt_encoder["default"].embedding
        vectors = embedding.weight.data

        @contextmanager
        def whole(embed):
            before = embed.weight.data
            embed.weight.data = vectors if embed is embedding else before
            model.entered.append(embed is embedding)
            yield
            embed.weight.data = before

        monkeypatch.setattr("hf_prompt_tuning.models.soft_prompts.whole", whole)
        embedding.weight.data = vectors[:0]
        model.entered, model.vectors = [], vectors
        return model

    @pytest.mark.parametrize("rank", [0, 1])
    def test_every_rank_enters_and_whole_prompts_are_kept_and_pushed(self, rank, model, tmp_path, monkeypatch):
        pushed = []
        monkeypatch.setattr(
            "hf_prompt_tuning.models.soft_prompts.SoftPrompts.push_to_hub",
            lambda model, repo_id, **kwargs: pushed.append(model.prompt.detach().clone()),
        )
        arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
        state = TrainerState(is_world_process_zero=rank == 0)
        for callback in (PromptHubCallback("alice/prompt"), PromptCheckpointCallback()):
            callback.on_evaluate(arguments, state, None, model=model, metrics={"eval_loss": 1.0})
        assert model.entered.count(True) == 2
        assert [torch.equal(prompt, model.vectors) for prompt in pushed] == [True] * (rank == 0)
        if rank == 0:
            assert torch.equal(kept_prompts(tmp_path)[0].vectors, model.vectors)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_trainers_pushes_too(self, rank, model, tmp_path, tokenizer, messages):
        model.prompt_encoder["default"].embedding.weight.data = model.vectors
        trainer = make(tmp_path, tokenizer, messages, model=model)
        model.prompt_encoder["default"].embedding.weight.data = model.vectors[:0]
        model.entered, lengths = [], []
        trainer.is_world_process_zero, trainer.push_in_progress = (lambda: rank == 0), None
        trainer.publisher._start_pushes = lambda folder: lengths.append(len(model.prompt)) or []
        trainer.publisher.push_checkpoint(str(tmp_path))
        assert model.entered == [True] and lengths == [3] * (rank == 0)

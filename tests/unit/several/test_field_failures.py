"""A prompt of a field that overflows goes at once; the others train as if it had not been there."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_prompt_tuning import EnsembleTrainer, FieldTrainer, PromptTuningConfig
from hf_prompt_tuning.several.field import plan_field
from tests.shared.ensembles import TEMPLATE
from tests.shared.resumed_runs import ROWS
from tests.shared.several_prompts import arguments
from tests.shared.tiny_models import make_tokenizer, tiny_model

CONFIG = PromptTuningConfig(num_virtual_tokens=4)
LEARNED, APART = ROWS[:8], ROWS[8:]
TOO_FAR = 0.9
"""A number that the backbones of this file cannot compute, as fp16 cannot compute 70,000."""
FASTEST = ["prompt_5", "prompt_10"]
"""The prompts with a rate of 0.3: they get there within 12 steps, and the others do not."""


def overflowing():
    """Return a backbone that gives NaN where its input is too large. In packed rows it spreads to other prompts."""
    model = tiny_model("llama")

    def overflow(layer, args):
        hidden, *others = args
        return hidden.masked_fill(hidden.abs() > TOO_FAR, torch.nan), *others

    model.model.layers[0].register_forward_pre_hook(overflow)
    return model


def run_arguments(folder, **values):
    defaults = {"num_train_epochs": 6, "max_grad_norm": 1.0, "warmup_steps": 1, "logging_steps": 1}
    return arguments(folder, **defaults | values)


def make(folder, model=None, **values):
    args, model = run_arguments(folder, recipe="auto", **values), overflowing() if model is None else model
    return FieldTrainer(model, args, CONFIG, LEARNED, APART, make_tokenizer("gpt2"), TEMPLATE)


def trained_without_rounds(trainer, checkpoint=None):
    """Train a field whose prompts all train to the end. Rounds would drop the fast ones before they overflow."""
    trainer._rounds, trainer._decide = [], lambda: None
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def failed_steps(trainer):
    return {entry["prompt"]: entry["step"] for entry in trainer._progress.failed}


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    return trained_without_rounds(make(tmp_path_factory.mktemp("field"), save_strategy="steps", save_steps=1))


class TestSteps:
    def test_only_those_that_overflow_go(self, field):
        assert set(failed_steps(field)) == set(FASTEST)
        assert field.members == [name for name in field.tasks if name not in FASTEST]

    def test_the_others_train_as_without_them(self, field, tmp_path):
        members = plan_field(CONFIG, TEMPLATE, None, field.args.seed, 4.0).members
        reference = EnsembleTrainer(
            *(tiny_model("llama"), run_arguments(tmp_path), members),
            *(field.tasks["prompt_1"].train_dataset, None, field.processing_class, TEMPLATE),
        )
        reference.train()
        for name in field.members:
            torch.testing.assert_close(field.prompts[name], reference.prompts[name], rtol=1e-5, atol=1e-5)

    def test_they_stay_as_they_were_before_the_step(self, field):
        for name, step in failed_steps(field).items():
            file = f"{field.args.output_dir}/checkpoint-{step - 1}/{name}/adapter_model.safetensors"
            assert torch.equal(field.prompts[name].detach(), load_file(file)["prompt_embeddings"])

    def test_all_logged_losses_are_finite(self, field):
        losses = [value for log in field.state.log_history for name, value in log.items() if "loss" in name]
        assert len(losses) > 100 and torch.tensor(losses).isfinite().all()

    def test_a_resumed_field_ends_the_same(self, field, tmp_path):
        first = min(failed_steps(field).values())
        for step in (first - 1, first, 11):
            checkpoint = f"{field.args.output_dir}/checkpoint-{step}"
            resumed = trained_without_rounds(make(tmp_path / str(step)), checkpoint)
            assert resumed._progress.failed == field._progress.failed
            assert all(torch.equal(resumed.prompts[name], field.prompts[name]) for name in field.tasks)

    def test_a_gradient_that_is_not_finite(self, tmp_path):
        trainer = make(tmp_path, model=tiny_model("llama"))
        trainer.prompts["prompt_3"].register_hook(lambda gradient: gradient * torch.inf)
        trained_without_rounds(trainer)
        assert failed_steps(trainer) == {"prompt_3": 1}
        assert len(trainer.members) == 9

    def test_accumulated_gradients(self, tmp_path):
        trainer = make(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
        trained_without_rounds(trainer)
        assert set(failed_steps(trainer)) == set(FASTEST)

    def test_all_of_them(self, tmp_path):
        trainer = make(tmp_path, model=tiny_model("llama"))
        for vectors in trainer.prompts.values():
            vectors.register_hook(lambda gradient: gradient * torch.nan)
        with pytest.raises(FloatingPointError, match="at step 1 no prompt of the field has a finite loss"):
            trainer.train()


class TestComparison:
    def test_who_overflows_on_the_rows_held_apart(self, tmp_path, caplog):
        """There the others' losses are those of each alone."""
        trainer = make(tmp_path)
        with torch.no_grad():
            trainer.prompts["prompt_2"].mul_(100)
        losses, results, labels = trainer._losses_apart()
        assert list(losses) == trainer.members == [name for name in trainer.tasks if name != "prompt_2"]
        assert results.nll.shape == (len(APART), 9) and len(labels) == len(APART)
        assert "prompt_2" in caplog.text and "is not finite" in caplog.text
        sound = make(tmp_path / "sound", model=tiny_model("llama"))
        expected, results_of_all, _ = sound._losses_apart()
        assert losses == pytest.approx({name: expected[name] for name in losses}, rel=1e-5)
        places = [list(sound.tasks).index(name) for name in losses]
        torch.testing.assert_close(
            torch.tensor(results.label_scores), torch.tensor(results_of_all.label_scores[:, places])
        )

    def test_a_round_that_has_too_few_to_drop_any(self, tmp_path, caplog):
        caplog.set_level("INFO", "hf_prompt_tuning.several")
        trainer = make(tmp_path)
        trainer._progress.failed = [{"prompt": f"prompt_{i}", "step": 1} for i in range(1, 7)]
        trainer._end_round(trainer._rounds[0])
        assert trainer.members == [f"prompt_{i}" for i in range(7, 11)]
        assert caplog.messages[-1].endswith(" stay; none goes.")

    def test_one_of_the_last_two(self, tmp_path):
        trainer = make(tmp_path)
        trainer._progress.rounds = [{"step": 6, "losses": {}, "stay": ["prompt_2", "prompt_3"]}]
        with torch.no_grad():
            trainer.prompts["prompt_2"].mul_(100)
        trainer._decide()
        assert (trainer.end.kind, trainer.end.prompt, trainer.members) == ("one", "prompt_3", ["prompt_3"])

    def test_a_whole_run(self, tmp_path):
        trainer = make(tmp_path)
        trainer.train()
        trainer.save_model()
        record = json.loads((tmp_path / "prompt_tuning.json").read_text())["training"]
        assert record["field_failed"] == [entry["prompt"] for entry in trainer._progress.failed]
        assert trainer.end.prompt not in FASTEST

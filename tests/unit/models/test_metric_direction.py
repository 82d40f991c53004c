"""One rule says which direction of a metric is better, whoever asks."""

import math

import optuna
import pytest

from hf_prompt_tuning import PromptTuningArguments, PromptTuningError, PromptTuningTrainer
from hf_prompt_tuning.models.metric_direction import greater_is_better, is_better
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.several.task import PromptTask
from hf_prompt_tuning.training.callbacks import PromptHubCallback
from tests.shared.several_prompts import arguments as arguments_of_several
from tests.shared.several_prompts import random_prompt
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE, make
from tests.shared.vanilla_trainer import vanilla

LOWER = ["loss", "eval_perplexity", "kl", "error_rate", "wer", "eval_cer", "ter", "mse", "mae", "eval_a_loss", "nll"]
HIGHER = ["accuracy", "eval_f1_macro", "rougeLsum", "bleu", "exact_match", "eval_b_f1", "mcc", "pass@1", "ROUGE-L"]


def test_names():
    assert [greater_is_better(name) for name in LOWER] == [False] * len(LOWER)
    assert [greater_is_better(name) for name in HIGHER] == [True] * len(HIGHER)
    assert greater_is_better("loss", True) is True and greater_is_better("mine", False) is False
    for name in ("mine", "eval_mine", "per_class", "f1_of_mine"):
        with pytest.raises(PromptTuningError, match=f"the metric '{name}' is not one whose better direction is known"):
            greater_is_better(name)
    assert not is_better(math.nan, None, True) and not is_better(0.5, 0.5, True) and is_better(0.4, 0.5, False)


def test_arguments_take_the_metrics_own_direction(tmp_path):
    def direction(**values):
        return PromptTuningArguments(str(tmp_path), use_cpu=True, **values).greater_is_better

    assert direction(metric_for_best_model="perplexity") is False
    assert direction(metric_for_best_model="eval_wer") is False
    assert direction(metric_for_best_model="accuracy") is True
    assert direction(metric_for_best_model="perplexity", greater_is_better=True) is True
    assert direction(early_stopping_patience=2) is False
    with pytest.raises(PromptTuningError, match="the metric 'mine' is not one whose"):
        direction(metric_for_best_model="mine")
    assert direction(metric_for_best_model="mine", greater_is_better=False) is False
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}
    for metric, mode in (("accuracy", "max"), ("perplexity", "min")):
        arguments = PromptTuningArguments(str(tmp_path), use_cpu=True, metric_for_best_model=metric, **plateau)
        assert arguments.lr_scheduler_kwargs == {"mode": mode}


def test_the_best_by_perplexity_is_the_best_by_loss(tmp_path, tokenizer, messages):
    common = dict(num_train_epochs=4, learning_rate=1.0, early_stopping_patience=4)
    trainer = make(tmp_path, tokenizer, messages, eval_rows=messages, metric_for_best_model="perplexity", **common)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.state.best_metric == min(log["eval_perplexity"] for log in logs)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(log["eval_loss"] for log in logs), rel=1e-4)


def test_transformers_arguments_that_guessed_wrong_are_refused(tmp_path, tokenizer, messages):
    from transformers import TrainingArguments

    args = TrainingArguments(str(tmp_path), metric_for_best_model="perplexity", use_cpu=True)
    with pytest.raises(PromptTuningError, match="greater_is_better is True, and less of it is better"):
        PromptTuningTrainer(tiny_model("llama"), args, None, messages, messages, tokenizer, TEMPLATE, random_prompt(3))


class TestHub:
    @pytest.fixture
    def pushed(self, monkeypatch):
        made = []
        monkeypatch.setattr(
            "hf_prompt_tuning.models.soft_prompts.SoftPrompts.push_to_hub",
            lambda model, repo_id, **kwargs: made.append(kwargs["commit_message"].split(":")[0]),
        )
        return made

    @staticmethod
    def steps(callback, trainer, values, name):
        for step, value in enumerate(values):
            trainer.state.global_step = step
            metrics = {name: value, "eval_runtime": 1.0}
            callback.on_evaluate(trainer.args, trainer.state, trainer.control, model=trainer.model, metrics=metrics)

    @pytest.mark.parametrize(("metric", "expected"), [("accuracy", [0, 1]), ("wer", [0, 2, 4])])
    @pytest.mark.parametrize("best", [None, "loss", "perplexity"])
    def test_its_own_metrics_direction(self, metric, expected, best, pushed, tmp_path, tokenizer):
        """Whatever the run's own metric is: early stopping's is the loss."""
        trainer = vanilla(tmp_path, tokenizer, metric_for_best_model=best)
        callback = PromptHubCallback("alice/prompt", metric=metric)
        self.steps(callback, trainer, (0.6, 0.7, 0.5, 0.5, 0.4), f"eval_{metric}")
        assert pushed == [f"Step {n}" for n in expected]

    @pytest.mark.parametrize("greater", [None, True, False])
    def test_the_runs_metric(self, greater, pushed, tmp_path, tokenizer):
        """transformers' guess of perplexity is not taken; what was asked is."""
        trainer = vanilla(tmp_path, tokenizer, metric_for_best_model="perplexity")
        callback = PromptHubCallback("alice/prompt", greater_is_better=greater)
        self.steps(callback, trainer, (0.6, 0.7, 0.5), "eval_perplexity")
        assert pushed == [f"Step {n}" for n in ([0, 1] if greater else [0, 2])]

    def test_nan_is_never_the_best(self, pushed, tmp_path, tokenizer):
        callback = PromptHubCallback("alice/prompt")
        self.steps(callback, vanilla(tmp_path, tokenizer), (math.nan, 0.7, math.nan, 0.5), "eval_loss")
        assert pushed == ["Step 1", "Step 3"]

    def test_other_evaluations_push_nothing(self, pushed, tmp_path, tokenizer):
        callback = PromptHubCallback("alice/prompt")
        trainer = vanilla(tmp_path, tokenizer, callbacks=[callback], eval_strategy="epoch", num_train_epochs=1)
        trainer.evaluate(metric_key_prefix="test")
        assert not pushed
        trainer.train()
        assert pushed == ["Step 3"]
        callback.best = math.inf
        trainer.evaluate(metric_key_prefix="test")
        trainer.evaluate(trainer.train_dataset)
        assert pushed == ["Step 3"]

    def test_one_of_several_data_sets(self, pushed, tmp_path, tokenizer):
        callback = PromptHubCallback("alice/prompt", metric="b_loss")
        trainer = vanilla(tmp_path, tokenizer, callbacks=[callback], eval_strategy="epoch", num_train_epochs=1)
        trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset.select([0])}
        trainer.train()
        assert pushed == ["Step 3"]
        other = PromptHubCallback("alice/prompt")
        trainer = vanilla(tmp_path, tokenizer, callbacks=[other], eval_strategy="epoch", num_train_epochs=2)
        trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
        with pytest.raises(PromptTuningError, match="goes by 'eval_loss', and the evaluation has epoch, eval_b_loss"):
            trainer.train()

    def test_what_cannot_be_compared(self, tmp_path, tokenizer):
        with pytest.raises(PromptTuningError, match="the metric 'mine' is not one whose better direction is known"):
            PromptHubCallback("alice/prompt", metric="mine")
        callback = PromptHubCallback("alice/prompt", metric="mine", greater_is_better=True)
        with pytest.raises(PromptTuningError, match=r"goes by 'eval_mine', which is \[0.1\]; name a number"):
            self.steps(callback, vanilla(tmp_path, tokenizer), ([0.1],), "eval_mine")


def test_a_search_goes_the_metrics_way(tmp_path, tokenizer, messages, monkeypatch):
    from tests.shared.searches import Search

    search = Search(tmp_path, tokenizer, messages, metric_for_best_model="perplexity")
    best = search.run(n_trials=2)
    trials = [log for log in search.trainer.state.log_history if "eval_perplexity" in log]
    assert best.objective <= trials[-1]["eval_perplexity"] + 1e-6
    asked = {}
    monkeypatch.setattr(optuna, "create_study", lambda **kwargs: asked.update(kwargs) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search.run(n_trials=1)
    assert asked["direction"] == "minimize"


def test_the_best_member_goes_the_metrics_way(tmp_path, tokenizer, messages):
    members = [PromptTask(name, random_prompt(4), seed=seed) for name, seed in (("one", 1), ("one_b", 2), ("two", 3))]
    args = arguments_of_several(tmp_path, metric_for_best_model="perplexity")
    trainer = EnsembleTrainer(tiny_model("llama"), args, members, None, messages, tokenizer, TEMPLATE)
    metrics = trainer.evaluate()
    by_member = {name: metrics[f"eval_{name}_perplexity"] for name in trainer.members}
    assert trainer.best_member == min(by_member, key=by_member.get)
    infos = trainer.model.prompt_info
    assert {name: infos[name].metrics["eval_perplexity"] for name in by_member} == by_member
    trainer.args.metric_for_best_model = "bleu"
    with pytest.raises(
        PromptTuningError, match="metric_for_best_model is 'bleu', and each member is evaluated by loss"
    ):
        trainer.evaluate()

"""What stands in a prompt's description is of that prompt, and of the evaluation data; and it is JSON."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hf_prompt_tuning import PromptLoadError, PromptTemplate, PromptTuningError, load_prompt
from hf_prompt_tuning.prompts.ensemble_info import EnsembleInfo
from hf_prompt_tuning.prompts.files import read_prompt
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.several.task import PromptTask
from hf_prompt_tuning.several.trainer import MultiPromptTrainer
from hf_prompt_tuning.training.callbacks import (
    DivergenceCallback,
    PromptCheckpointCallback,
    PromptHubCallback,
    PromptMonitorCallback,
    kept_prompts,
    restore_prompt,
)
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE, make

METRICS = ("loss", "perplexity", "accuracy", "f1")
OTHER = PromptTemplate(source="{message} film plot", label_column="label", label_words={"1": "bad", "2": "good"})


def ensemble(folder, tokenizer, rows, names=("one", "one_b", "two"), callbacks=(), **values):
    members = [PromptTask(name, random_prompt(3 + i), seed=i, learning_rate=1.0) for i, name in enumerate(names)]
    args = arguments(folder, **{"num_train_epochs": 1, "max_grad_norm": 1.0} | values)
    backbone = tiny_model("llama")
    return EnsembleTrainer(backbone, args, members, rows, rows[:7], tokenizer, TEMPLATE, callbacks=list(callbacks))


def several_tasks(folder, tokenizer, rows, callbacks=(), **values):
    tasks = [
        PromptTask("first", random_prompt(3), rows, rows, TEMPLATE, seed=1, learning_rate=1.0),
        PromptTask("second", random_prompt(5), rows, rows[:5], OTHER, seed=2, learning_rate=1.0),
    ]
    args = arguments(folder, **{"num_train_epochs": 2, "max_grad_norm": 1.0} | values)
    return MultiPromptTrainer(tiny_model("llama"), args, tasks, tokenizer, callbacks=list(callbacks))


def alone(folder, tokenizer, trainer, name, rows, template):
    """The metrics of one of a trainer's prompts, from a trainer of that prompt alone."""
    model = trainer.model
    before = model.active_adapter
    model.set_adapter(name)
    single = make(folder, tokenizer, None, template, model, eval_rows=rows[:1])
    found = single.predict(rows).metrics
    model.set_adapter(before)
    return {metric: found[f"test_{metric}"] for metric in METRICS}


class TestWhatIsWritten:
    def test_the_evaluation_datas_alone(self, tmp_path, tokenizer, messages):
        trainer = make(tmp_path, tokenizer, messages, eval_rows=messages)
        own, untuned = trainer.evaluate(), trainer.evaluate_untuned()
        info = trainer.model.info
        kept = [dict(info.metrics), info.confusion_matrix, info.calibration, dict(info.untuned_metrics)]
        assert info.metrics["eval_loss"] == own["eval_loss"] and sum(map(sum, kept[1]["counts"])) == 12
        trainer.evaluate(messages[:3], metric_key_prefix="test")
        trainer.evaluate(messages[:3])
        trainer.evaluate(metric_key_prefix="again")
        trainer.evaluate({"a": messages[:2], "b": messages[3:5]})
        trainer.evaluate_untuned(messages[:3])
        trainer.predict(messages[:5])
        trainer.evaluate_transfer({"other": messages[:4]})
        assert [info.metrics, info.confusion_matrix, info.calibration, info.untuned_metrics] == kept
        trainer.save_model()
        saved = read_prompt(tmp_path).info
        assert saved.metrics["eval_loss"] == own["eval_loss"] and saved.confusion_matrix == kept[1]
        assert saved.untuned_metrics["untuned_loss"] == untuned["untuned_loss"]

    def test_of_several_data_sets_each_under_its_name(self, tmp_path, tokenizer, messages):
        trainer = make(tmp_path, tokenizer, messages, eval_rows={"a": messages, "b": messages[:4]})
        metrics, info = trainer.evaluate(), trainer.model.info
        assert set(info.metrics) == {f"eval_{name}_{metric}" for name in "ab" for metric in METRICS}
        assert info.metrics["eval_b_loss"] == metrics["eval_b_loss"] and not info.confusion_matrix
        assert set(trainer.evaluate_untuned()) >= {"untuned_a_loss", "untuned_b_loss"}

    @pytest.mark.parametrize("kind", [ensemble, several_tasks])
    def test_of_several_prompts_too(self, kind, tmp_path, tokenizer, messages):
        trainer = kind(tmp_path, tokenizer, messages)
        trainer.evaluate()
        infos = trainer.model.prompt_info
        kept = {name: [dict(info.metrics), info.confusion_matrix, info.calibration] for name, info in infos.items()}
        other = messages[:3] if kind is ensemble else dict.fromkeys(trainer.tasks, messages[:3])
        trainer.evaluate(other, metric_key_prefix="test")
        trainer.evaluate(other)
        trainer.evaluate_untuned(other)
        found = {name: [info.metrics, info.confusion_matrix, info.calibration] for name, info in infos.items()}
        assert found == kept and all(kept[name][0] and kept[name][1] for name in kept)
        assert not any(info.untuned_metrics for info in infos.values())


class TestSeveralPrompts:
    def test_each_members_own_metrics_though_names_begin_alike(self, tmp_path, tokenizer, messages):
        trainer = ensemble(tmp_path, tokenizer, messages)
        trainer.evaluate()
        transfer = trainer.evaluate_transfer({"other": messages[4:10]})
        for name in trainer.members:
            info = trainer.model.prompt_info[name]
            expected = alone(tmp_path / "alone", tokenizer, trainer, name, messages[:7], TEMPLATE)
            assert info.metrics == pytest.approx({f"eval_{key}": v for key, v in expected.items()}, rel=1e-4)
            expected = alone(tmp_path / "alone", tokenizer, trainer, name, messages[4:10], TEMPLATE)
            assert info.transfer["other"] == pytest.approx(expected | {"rows": 6}, rel=1e-4)
            assert transfer[f"transfer_other_{name}_accuracy"] == expected["accuracy"]
        trainer.save_model()
        vote = EnsembleInfo.from_json(json.loads((tmp_path / "ensemble.json").read_text())).transfer["other"]
        assert vote["accuracy"] == transfer["transfer_other_accuracy"] and vote["rows"] == 6
        assert "On data that they were not trained on" in (tmp_path / "README.md").read_text()

    def test_transfer_of_every_task(self, tmp_path, tokenizer, messages):
        trainer = several_tasks(tmp_path, tokenizer, messages)
        found = trainer.evaluate_transfer({"other": messages[4:10]})
        for name, template in (("first", TEMPLATE), ("second", OTHER)):
            expected = alone(tmp_path / "alone", tokenizer, trainer, name, messages[4:10], template)
            assert trainer.model.prompt_info[name].transfer["other"] == pytest.approx(expected | {"rows": 6}, rel=1e-4)
            assert found[f"transfer_other_{name}_loss"] == pytest.approx(expected["loss"], rel=1e-4)
        trainer.evaluate_transfer({"second": {"more": messages[:4]}})
        assert "more" in trainer.model.prompt_info["second"].transfer
        assert "more" not in trainer.model.prompt_info["first"].transfer
        with pytest.raises(PromptTuningError, match="predict is asked of several tasks"):
            trainer.predict(messages)

    @pytest.mark.parametrize("kind", [ensemble, several_tasks])
    def test_each_evaluated_prompt_is_kept_with_its_own_metrics(self, kind, tmp_path, tokenizer, messages):
        seen = {}

        class Watch(TrainerCallback):
            def on_evaluate(self, args, state, control, model=None, **kwargs):
                prompts = {name: prompt.embedding.weight for name, prompt in model.prompt_encoder.items()}
                seen[state.global_step] = {name: weight.detach().clone() for name, weight in prompts.items()}

        callbacks = [PromptCheckpointCallback(), Watch()]
        trainer = kind(tmp_path, tokenizer, messages, callbacks=callbacks, eval_strategy="epoch")
        trainer.train()
        last = trainer.state.global_step
        logs = {key: v for log in trainer.state.log_history if log["step"] == last for key, v in log.items()}
        for name in trainer.tasks:
            kept = kept_prompts(tmp_path, name)
            assert list(kept) == list(seen)
            assert all(torch.equal(kept[step].vectors, seen[step][name]) for step in seen)
            assert kept[last].metrics["eval_accuracy"] == logs[f"eval_{name}_accuracy"]
            assert kept[last].metrics["eval_loss"] == logs[f"eval_{name}_loss"]
        trainer.model.set_adapter(name)
        assert restore_prompt(trainer.model, tmp_path, last)["eval_loss"] == logs[f"eval_{name}_loss"]
        with pytest.raises(PromptLoadError, match=r"has prompts called .*, and adapter_name is None; name one"):
            kept_prompts(tmp_path)

    def test_the_monitor_shows_each(self, tmp_path, tokenizer, messages):
        trainer = several_tasks(tmp_path, tokenizer, messages)
        trainer.add_callback(PromptMonitorCallback(trainer, every=3))
        starts = {name: weight.detach().clone() for name, weight in trainer.prompts.items()}
        trainer.train()
        log = next(log for log in reversed(trainer.state.log_history) if "prompt/first/norm" in log)
        for name, start in starts.items():
            weight = trainer.prompts[name].detach()
            assert log[f"prompt/{name}/moved"] == pytest.approx((weight - start).norm(dim=1).mean().item(), rel=1e-5)
            assert log[f"prompt/{name}/gradient_norm"] > 0

    def test_divergence_looks_at_each(self, tmp_path, tokenizer, messages, caplog):
        trainer = several_tasks(tmp_path, tokenizer, messages, callbacks=[DivergenceCallback(max_norm=0.001)])
        trainer.train()
        said = [record.getMessage() for record in caplog.records if "mean norm of" in record.getMessage()]
        assert {"the prompt first's vectors" in text for text in said} == {True, False}
        assert {"the prompt second's vectors" in text for text in said} == {True, False}

    def test_a_hub_callback_is_of_one_prompt(self, tmp_path, tokenizer, messages):
        with pytest.raises(PromptTuningError, match="PromptHubCallback pushes one prompt, and this run trains"):
            several_tasks(tmp_path, tokenizer, messages, callbacks=[PromptHubCallback("alice/prompt")])
        with pytest.raises(PromptTuningError, match="PromptHubCallback pushes one prompt, and this run trains"):
            ensemble(tmp_path, tokenizer, messages).add_callback(PromptHubCallback("alice/prompt"))


HOSTILE = {
    "per_class": [0.1, 0.2],
    "array": np.array([0.5, 0.25]),
    "tensor": torch.tensor([[1.0, 2.0]]),
    "one": np.array([0.75]),
    "scalar": np.float32(0.5),
    "cell": torch.tensor(0.25),
    "flag": np.bool_(True),
    "nan": float("nan"),
    "infinite": np.inf,
    "none": None,
    "text": "fine",
    "nested": {"a": np.float64(0.5), "b": [torch.tensor(1)]},
    "some_loss": [1.0],
    3: 0.5,
}
NUMBERS = {"eval_one": 0.75, "eval_scalar": 0.5, "eval_cell": 0.25, "eval_flag": 1, "eval_3": 0.5}


class TestMetricsOfAnyKind:
    @pytest.mark.parametrize("kind", ["one", "ensemble", "tasks"])
    def test_they_are_logged_saved_and_loaded(self, kind, tmp_path, tokenizer, messages):
        common = dict(eval_strategy="epoch", save_strategy="epoch", num_train_epochs=1)
        extra = {"compute_metrics": lambda prediction: dict(HOSTILE)}
        if kind == "one":
            callbacks = [PromptCheckpointCallback()]
            trainer = make(
                tmp_path, tokenizer, messages, eval_rows=messages, trainer=extra | {"callbacks": callbacks}, **common
            )
        else:
            cls = EnsembleTrainer if kind == "ensemble" else MultiPromptTrainer
            members = [PromptTask(name, random_prompt(3), seed=i) for i, name in enumerate(("one_x", "two"))]
            if kind == "tasks":
                data = dict(train_dataset=messages, eval_dataset=messages, template=TEMPLATE)
                members = [PromptTask(m.name, m.config, seed=m.seed, **data) for m in members]
            rest = (messages, messages, tokenizer, TEMPLATE) if kind == "ensemble" else (tokenizer,)
            args = arguments(tmp_path, **common)
            trainer = cls(tiny_model("llama"), args, members, *rest, **extra)
        trainer.train()
        trainer.save_model()
        steps = trainer.state.global_step
        for file in [*tmp_path.rglob("prompt_tuning.json"), *tmp_path.rglob("ensemble.json")]:
            json.loads(file.read_text(), parse_constant=pytest.fail)
        file = {"one": "prompt_tuning.json", "ensemble": "ensemble.json", "tasks": "two/prompt_tuning.json"}[kind]
        metrics = json.loads((tmp_path / file).read_text())["metrics"]
        assert {name: metrics.get(name) for name in NUMBERS} == NUMBERS
        assert not {"eval_per_class", "eval_nan", "eval_text", "eval_some_loss"} & set(metrics)
        card = (tmp_path / "two/README.md" if kind == "tasks" else tmp_path / "README.md").read_text()
        assert "| scalar | 0.5000 |" in card
        log = [log for log in trainer.state.log_history if any("per_class" in name for name in log)][-1]
        name = "eval_two_array" if kind == "tasks" else "eval_array"
        assert log[name] == [0.5, 0.25] and log["step"] == steps
        # the checkpoint of it all is resumed from
        trainer.train(resume_from_checkpoint=True)
        if kind == "one":
            assert kept_prompts(tmp_path)[steps].metrics["eval_scalar"] == 0.5
            backbone = tiny_model("llama")
            loaded = load_prompt(tmp_path, backbone=backbone, tokenizer=tokenizer)[0]
            assert loaded.info.metrics["eval_one"] == 0.75

    def test_what_was_put_there_by_hand(self, tmp_path, tokenizer, messages):
        trainer = make(tmp_path, tokenizer, messages, max_grad_norm=math.inf)
        info = trainer.model.info
        info.metrics["eval_mine"] = np.float32(0.5)
        info.transfer["other"] = {"list": [1], "loss": math.nan, "rows": np.int64(3)}
        trainer.state.log_history.append({"loss": math.nan, "step": 1})
        trainer.save_model()
        saved = read_prompt(tmp_path).info
        assert saved.metrics == {"eval_mine": 0.5} and saved.transfer == {"other": {"rows": 3}}
        assert saved.training["max_grad_norm"] is None and saved.history == {}

    def test_memory_and_place_are_no_metrics(self, tmp_path, tokenizer, messages):
        values = dict(skip_memory_metrics=False, include_num_input_tokens_seen="all")
        trainer = make(tmp_path, tokenizer, messages, eval_rows=messages, **values)
        trainer.evaluate()
        assert set(trainer.model.info.metrics) == {f"eval_{name}" for name in METRICS}

    def test_what_is_no_dict_is_refused(self, tmp_path, tokenizer, messages):
        extra = {"compute_metrics": lambda prediction: 0.5}
        trainer = make(tmp_path, tokenizer, messages, eval_rows=messages, trainer=extra)
        with pytest.raises(PromptTuningError, match="compute_metrics returned a float; return a dict"):
            trainer.evaluate()

    def test_the_metric_that_decides_is_a_number(self, tmp_path, tokenizer, messages):
        def trained(value, **values):
            extra = {"compute_metrics": lambda prediction: {"mine": value}}
            rows = {"eval_rows": messages, "trainer": extra}
            best = dict(early_stopping_patience=2, metric_for_best_model="mine", greater_is_better=True)
            trainer = make(tmp_path, tokenizer, messages, **rows, num_train_epochs=4, **best | values)
            trainer.train()
            return trainer

        with pytest.raises(
            PromptTuningError, match=r"metric_for_best_model is 'mine', and compute_metrics gave \[0.1\]"
        ):
            trained([0.1])
        with pytest.raises(PromptTuningError, match="metric_for_best_model is 'eval_theirs', and an evaluation gives"):
            trained(0.5, metric_for_best_model="theirs")

    def test_nan_is_not_the_best_and_is_said(self, tmp_path, tokenizer, messages, caplog):
        values = iter([math.nan, 0.5, math.nan, math.nan])
        extra = {"compute_metrics": lambda prediction: {"mine": next(values)}}
        best = dict(early_stopping_patience=2, metric_for_best_model="mine", greater_is_better=True)
        trainer = make(tmp_path, tokenizer, messages, eval_rows=messages, trainer=extra, num_train_epochs=9, **best)
        trainer.train()
        assert trainer.state.best_metric == 0.5 and trainer.state.best_global_step == 6
        assert trainer.state.epoch == 4
        said = [record.getMessage() for record in caplog.records]
        assert "At step 3 mine is nan: it is not the best." in said

"""A field of prompts: who stays trains as without a field, who is dropped stands still, and a run resumes exactly."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file

from hf_prompt_tuning import (
    EnsembleTrainer,
    FieldTrainer,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    Teacher,
    load_ensemble,
    load_prompt,
)
from hf_prompt_tuning.several.field import plan_field
from hf_prompt_tuning.several.rows_apart import LEAST_OF_A_LABEL, rows_apart
from hf_prompt_tuning.several.streams import with_first_rows
from hf_prompt_tuning.training.scorer import RowResults
from tests.shared.ensembles import FREE, TEMPLATE, state_of
from tests.shared.reference import tiny_prompt_model
from tests.shared.resumed_runs import ROWS
from tests.shared.several_prompts import arguments
from tests.shared.tiny_models import make_tokenizer, tiny_model

CONFIG = PromptTuningConfig(num_virtual_tokens=4)
HELD = rows_apart([row["label"] for row in ROWS], LEAST_OF_A_LABEL, 42)  # the seed of the runs
LEARNED, APART = [row for i, row in enumerate(ROWS) if i not in HELD], [ROWS[i] for i in HELD]
STREAM = Dataset.from_list(ROWS).to_iterable_dataset()


def run_arguments(folder, **values):
    """Of the 14 rows 6 are held apart. In 12 steps, the rounds of 10 prompts end at 2, 4 and 6."""
    defaults = {"num_train_epochs": 6, "max_grad_norm": 1.0, "recipe": "auto", "warmup_steps": 1}
    return arguments(folder, **defaults | values)


def make(folder, rows=LEARNED, evaluation=APART, template=TEMPLATE, config=CONFIG, model=None, options=None, **values):
    model, args = tiny_model("llama") if model is None else model, run_arguments(folder, **values)
    tokenizer = make_tokenizer("gpt2")
    return FieldTrainer(model, args, config, rows, evaluation, tokenizer, template, **options or {})


def keep_all(trainer):
    """Train a field without the decision at the end, which may change a prompt."""
    trainer._decide = lambda: None
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A field that trained without a break, with a checkpoint of each step."""
    return keep_all(make(tmp_path_factory.mktemp("whole"), save_strategy="steps", save_steps=1))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A field that held some of few training rows apart, with a checkpoint of each step."""
    trainer = make(tmp_path_factory.mktemp("few"), ROWS, None, save_strategy="steps", save_steps=1)
    trainer.train()
    return trainer


def folder_of(trainer, step, name):
    return f"{trainer.args.output_dir}/checkpoint-{step}/{name}"


def vectors_at(trainer, step, name):
    return load_file(f"{folder_of(trainer, step, name)}/adapter_model.safetensors")["prompt_embeddings"]


class TestTraining:
    def test_rounds_keep_some_of_the_prompts(self, whole):
        rounds = whole._progress.rounds
        sizes = [(end["step"], len(end["losses"]), len(end["stay"])) for end in rounds]
        assert sizes == [(2, 10, 5), (4, 5, 3), (6, 3, 2)]
        before = set(whole.tasks)
        for end in rounds:
            assert set(end["losses"]) == before > set(end["stay"])
            before = set(end["stay"])
        assert whole.members == rounds[-1]["stay"]

    def test_a_round_keeps_those_with_clearly_lower_losses(self, tmp_path, caplog):
        caplog.set_level("INFO", "hf_prompt_tuning.several")
        trainer = make(tmp_path)
        noise = np.array([-0.01, 0.01, 0.0])
        rounded(trainer, [[1.0 + 0.1 * i + noise * i] for i in range(10)])
        assert trainer.members == [f"prompt_{i}" for i in range(1, 6)]
        assert caplog.messages[-1].endswith(" go, whose loss on the rows held apart is higher.")

    def test_and_else_those_nearest_to_the_default(self, tmp_path, caplog):
        """The rates 0.003 and 0.3 of both starts go, and one of the others of the second start."""
        caplog.set_level("INFO", "hf_prompt_tuning.several")
        trainer = make(tmp_path)
        noise = np.random.default_rng(0).normal(size=(10, 3))
        rounded(trainer, [[1.0 - 0.01 * i + noise[i] - noise[i].mean()] for i in range(10)])
        assert trainer.members == ["prompt_2", "prompt_3", "prompt_4", "prompt_8", "prompt_9"]
        assert "or who are further from the default" in caplog.messages[-1]

    def test_rows_without_a_label_tell_nothing(self, tmp_path):
        trainer = make(tmp_path)
        rounded(trainer, [[np.array([1.0 + 0.1 * i, 1.0 + 0.1 * i, 0.0])] for i in range(10)], tokens=[1, 1, 0])
        assert trainer.members == [f"prompt_{i}" for i in range(1, 6)]

    def test_the_losses_are_those_of_each_prompt_alone(self, whole, tmp_path):
        losses = whole._progress.rounds[0]["losses"]
        for name in ("prompt_1", "prompt_10"):
            loaded = load_prompt(
                folder_of(whole, 2, name), backbone=tiny_model("llama"), tokenizer=whole.processing_class
            )
            alone = PromptTuningTrainer(loaded.model, arguments(tmp_path), processing_class=whole.processing_class)
            assert losses[name] == pytest.approx(alone.evaluate(whole.eval_dataset)["eval_loss"], rel=1e-5)

    def test_who_stays_ends_as_without_a_field(self, whole, tmp_path):
        """The reference trains all ten to the end. Sums over other batches are rounded in other ways."""
        reference = EnsembleTrainer(
            tiny_model("llama"),
            run_arguments(tmp_path, recipe=None),
            plan_field(CONFIG, TEMPLATE, None, whole.args.seed, 4.0).members,
            whole.tasks["prompt_1"].train_dataset,
            whole.eval_dataset,
            whole.processing_class,
            TEMPLATE,
        )
        reference.train()
        for name in whole.members:
            torch.testing.assert_close(whole.prompts[name], reference.prompts[name], rtol=1e-5, atol=1e-5)
        for name in set(whole.tasks) - set(whole.members):
            moved_on = reference.prompts[name] - whole.prompts[name]
            assert moved_on.abs().max() > 1e-4

    def test_who_is_dropped_stays_as_it_was(self, whole):
        before = list(whole.tasks)
        for end in whole._progress.rounds:
            for name in set(before) - set(end["stay"]):
                at_its_drop = vectors_at(whole, end["step"], name)
                assert torch.equal(whole.prompts[name].detach(), at_its_drop)
                assert not torch.equal(at_its_drop, vectors_at(whole, end["step"] - 1, name))
            before = end["stay"]

    def test_the_cost_is_counted_in_rows(self, tmp_path, monkeypatch):
        trainer, rows = make(tmp_path, recipe_budget=3.9, warmup_steps=0), []
        compute_loss = trainer.compute_loss

        def counted(model, inputs, **kwargs):
            rows.append(len(inputs["adapter_names"]))
            return compute_loss(model, inputs, **kwargs)

        monkeypatch.setattr(trainer, "compute_loss", counted)
        output = trainer.train()
        ordinary = 6 * len(trainer.tasks["prompt_1"].train_dataset)
        assert rows == [40, 20, 12] + 9 * [8]
        assert sum(rows) / ordinary == trainer.cost == output.metrics["recipe_cost"] <= 3.9

    def test_workers_that_prepare_batches_before_a_round_ends(self, whole, tmp_path):
        other = keep_all(make(tmp_path, dataloader_num_workers=1))
        assert all(torch.equal(other.prompts[name], whole.prompts[name]) for name in whole.tasks)

    @pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 7, 12])
    def test_a_resumed_field_ends_the_same(self, step, whole, tmp_path):
        resumed = make(tmp_path)
        resumed._decide = lambda: None
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
        assert resumed._progress.rounds == whole._progress.rounds and resumed.members == whole.members
        assert all(torch.equal(resumed.prompts[name], whole.prompts[name]) for name in whole.tasks)

    def test_a_field_with_other_rounds_is_no_resumed_one(self, whole, tmp_path):
        resumed = make(tmp_path, recipe_budget=3.7, warmup_steps=0)
        before = {name: vectors.clone() for name, vectors in resumed.prompts.items()}
        with pytest.raises(PromptTuningError, match=r"rounds end at the steps .*; resume with the same recipe_budget"):
            resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
        assert all(torch.equal(resumed.prompts[name], vectors) for name, vectors in before.items())

    def test_a_resumed_field_decides_the_same(self, whole, tmp_path):
        ends = []
        for step in (3, 12):
            resumed = make(tmp_path / str(step))
            resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
            ends.append((resumed.end, resumed.prompts[resumed.end.prompt].tolist()))
        assert ends[0] == ends[1]

    def test_accumulated_gradients(self, tmp_path):
        trainer = make(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
        trainer.train()
        assert [end["step"] for end in trainer._progress.rounds] == [2, 4, 6]

    def test_free_text(self, tmp_path):
        rows, apart = ([row | {"answer": row["message"][-5:]} for row in rows] for rows in (LEARNED, APART))
        trainer = make(tmp_path, rows, apart, template=FREE)
        trainer.train()
        assert trainer.end.wins is None and trainer.end.kind in ("one", "average")
        assert "eval_exact_match" in trainer.evaluate()

    def test_the_log_says_who_stays(self, tmp_path, caplog):
        caplog.set_level("INFO", "hf_prompt_tuning.several")
        trainer = make(tmp_path)
        trainer.train()
        plan, *rounds, end = [message for message in caplog.messages if "Nothing" not in message]
        assert plan == (
            "The field has 10 prompts; rounds end at the steps 2, 4, 6 of 12. It costs 4.00 ordinary runs. Prompts "
            "are compared on 6 rows held apart."
        )
        first = trainer._progress.rounds[0]
        assert len(rounds) == 3 and rounds[0].startswith("Round 1 of 3, step 2 of 12: ")
        stay, go = rounds[0].split(" stay; ")
        assert [stay.count(f"{name} (") for name in trainer.tasks] == [name in first["stay"] for name in trainer.tasks]
        assert [go.count(f"{name} (") for name in trainer.tasks] == [
            name not in first["stay"] for name in trainer.tasks
        ]
        assert end.startswith("The field ends with ")


def rounded(trainer, of_rows, tokens=(1, 1, 1)):
    """Let a field's first round end with made losses of rows, [N] for each prompt."""
    nll, tokens = np.concatenate(of_rows).T, np.array(tokens)
    losses = dict(zip(trainer.members, nll.sum(0) / tokens.sum(), strict=True))
    trainer._losses_apart = lambda: (losses, RowResults(nll=nll, tokens=tokens), None)
    trainer._end_round(trainer._rounds[0])


def decided(trainer, losses, predictions, average=9.0, no_prompt=8.0):
    """Let a field decide on made losses and predicted labels, [N] of each of two prompts; the labels are all 0."""
    names = list(trainer.tasks)[:2]
    trainer._progress.rounds = [{"step": 6, "losses": {}, "stay": names}]
    scores = np.eye(2)[np.array(predictions)].transpose(1, 0, 2)
    results = RowResults(label_scores=scores)
    trainer._losses_apart = lambda: (dict(zip(names, losses, strict=True)), results, np.zeros(scores.shape[0], int))
    alone = iter([average, no_prompt])
    of_average = RowResults(label_scores=scores[:, 0])
    trainer._alone = lambda: SimpleNamespace(metrics={"apart_loss": next(alone)}, predictions=of_average)
    trainer._decide()
    return names


class TestEnd:
    def test_the_better_of_two(self, tmp_path):
        trainer = make(tmp_path)
        before = {name: vectors.detach().clone() for name, vectors in trainer.prompts.items()}
        first, second = decided(trainer, [2.0, 1.0], [[0, 0], [0, 1]])
        assert trainer.end.kind == "one" and trainer.members == [second] == [trainer.unwrapped.active_adapter]
        assert trainer.end.losses == {first: 2.0, second: 1.0, "average": 9.0, "no prompt": 8.0}
        assert all(torch.equal(trainer.prompts[name], before[name]) for name in before)

    def test_their_average(self, tmp_path):
        trainer = make(tmp_path)
        before = {name: vectors.detach().clone() for name, vectors in trainer.prompts.items()}
        first, second = decided(trainer, [2.0, 1.0], [[0, 0], [0, 1]], average=0.5)
        assert trainer.end.kind == "average" and trainer.members == [second]
        assert torch.equal(trainer.prompts[second], (before[first] + before[second]) / 2)
        assert torch.equal(trainer.prompts[first], before[first])

    def test_prompts_of_other_lengths_have_no_average(self, tmp_path):
        trainer = make(tmp_path, recipe_lengths=[3, 4], recipe_budget=6.0, warmup_steps=0)
        trainer.tasks = {name: trainer.tasks[name] for name in ("prompt_1", "prompt_11")}
        decided(trainer, [2.0, 1.0], [[0, 0], [0, 1]], average=8.0)
        assert trainer.end.losses == {"prompt_1": 2.0, "prompt_11": 1.0, "no prompt": 8.0}

    def test_a_vote_that_is_clearly_better(self, tmp_path):
        """The better prompt is wrong on rows 2 to 6; where the two disagree, the surer one decides: here label 0."""
        trainer = make(tmp_path)
        names = decided(trainer, [1.0, 2.0], [[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
        assert trainer.end.kind == "vote" and trainer.members == names and trainer.end.wins == (5, 0)

    def test_a_vote_that_is_not_clearly_better(self, tmp_path):
        trainer = make(tmp_path)
        decided(trainer, [1.0, 2.0], [[0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
        assert trainer.end.kind == "one" and trainer.end.wins == (4, 0)

    def test_nothing_was_learned(self, tmp_path, caplog):
        decided(make(tmp_path), [2.0, 1.0], [[0, 0], [0, 1]], no_prompt=0.9)
        assert "Nothing was learned: no prompt's loss on the rows held apart is lower than without one." in caplog.text

    def test_it_ends_once(self, tmp_path):
        trainer = make(tmp_path)
        decided(trainer, [2.0, 1.0], [[0, 0], [0, 1]])
        with pytest.raises(PromptTuningError, match="the field has ended; make a new FieldTrainer"):
            trainer.train()


class TestFewRows:
    """Without evaluation data, rows are held apart from 14: 4 steps an epoch, and rounds end at 4, 8 and 12 of 24."""

    def test_the_last_round_leaves_one(self, few):
        rounds = few._progress.rounds
        assert [(end["step"], len(end["losses"]), len(end["stay"])) for end in rounds] == [
            (4, 10, 5),
            (8, 5, 3),
            (12, 3, 1),
        ]
        assert few.members == rounds[-1]["stay"]
        assert (few.learns_from_all, few.end.kind, few.end.rows, few.cost) == (True, "one", 6, 3.5)
        assert few.end.losses.keys() - {"no prompt"} == rounds[-1]["losses"].keys()

    def test_rows_held_apart_are_learned_from_after_it(self, few):
        for run in few._runs.values():
            rows = [{row for batch in step for row in batch} for step in run.stream.steps]
            assert not set().union(*rows[:12]) & set(HELD)
            assert all(set().union(*rows[start : start + 4]) == set(range(14)) for start in (12, 16, 20))

    def test_it_ends_as_without_a_field(self, few, tmp_path):
        """The reference trains all ten to the end, on the same rows. Both end with means of the last half."""

        class Reference(EnsembleTrainer):
            def prepared(self, run):
                return replace(run, stream=with_first_rows(run.stream, few._first, 12, run.args))

        members = plan_field(CONFIG, TEMPLATE, None, few.args.seed, 4.0).members
        reference = Reference(
            *(tiny_model("llama"), run_arguments(tmp_path, recipe=None, average_last=0.5), members, ROWS, None),
            *(few.processing_class, TEMPLATE),
        )
        reference.train()
        name = few.end.prompt
        torch.testing.assert_close(few.prompts[name], reference.prompts[name], rtol=1e-5, atol=1e-5)
        assert (vectors_at(few, 12, name) - few.prompts[name]).abs().max() > 1e-4

    @pytest.mark.parametrize("step", [3, 11, 12, 13, 24])
    def test_a_resumed_field_ends_the_same(self, step, few, tmp_path):
        resumed = make(tmp_path, ROWS, None)
        resumed.train(resume_from_checkpoint=f"{few.args.output_dir}/checkpoint-{step}")
        assert resumed.end == few.end
        assert all(torch.equal(resumed.prompts[name], few.prompts[name]) for name in few.tasks)

    def test_the_given_share_is_averaged(self, few, tmp_path):
        last = make(tmp_path / "last", ROWS, None, average_last=0.0, save_strategy="steps", save_steps=24)
        last.train()
        name = few.end.prompt
        assert last.end.prompt == name
        assert torch.equal(last.prompts[name].detach(), vectors_at(last, 24, name))
        assert torch.equal(last.prompts[name].detach(), vectors_at(few, 24, name))
        assert not torch.equal(last.prompts[name], few.prompts[name])

    def test_there_is_no_evaluation_data(self, few, tmp_path):
        with pytest.raises(ValueError, match="eval_dataset"):
            few.evaluate()
        with pytest.raises(ValueError, match="eval_dataset"):
            make(tmp_path, ROWS, None, eval_strategy="epoch")

    def test_it_says_so(self, few, tmp_path, caplog):
        caplog.set_level("INFO", "hf_prompt_tuning.several")
        trainer = make(tmp_path, ROWS, None)
        trainer.train()
        plan, *_, end = [message for message in caplog.messages if "Nothing" not in message]
        assert plan.endswith(
            "compared on 6 rows held apart, which are training rows, and the last one then learns from these, too."
        )
        assert "Losses on the rows held apart, before they were learned from: " in end
        trainer.save_model()
        training = json.loads((tmp_path / "prompt_tuning.json").read_text())["training"]
        assert (training["rows_held_apart"], training["learned_from_later"]) == (6, True)
        assert training["average_last"] == 0.5 and trainer.args.average_last == 0.5

    def test_many_rows_are_not_learned_from(self, tmp_path):
        many = [ROWS[i % 14] for i in range(500)]
        trainer = make(tmp_path, many, None)
        assert not trainer.learns_from_all and len(trainer.eval_dataset) == 100
        assert make(tmp_path, many[:499], None).learns_from_all


class TestSaved:
    def test_one_prompt_is_saved_like_any_other(self, tmp_path, messages):
        trainer = make(tmp_path, evaluation=messages[:6])
        trainer.evaluate_untuned()
        trainer.train()
        trainer.end = trainer.end if trainer.end.kind != "vote" else pytest.fail("the run ended with a vote")
        metrics = trainer.evaluate()
        (tmp_path / "ensemble.json").write_text("of an earlier run")
        trainer.save_model()
        files = {file.name for file in tmp_path.iterdir()}
        assert files == {
            *("adapter_config.json", "adapter_model.safetensors", "prompt_tuning.json", "results.json", "README.md"),
            *("initial_prompt.safetensors", "loss.png", "confusion_matrix.png", "field.png"),
        }
        kept = trainer.prompts[trainer.end.prompt]
        loaded = load_prompt(tmp_path, backbone=tiny_model("llama"), tokenizer=trainer.processing_class)
        assert torch.equal(loaded.model.prompt, kept)
        peft = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
        assert torch.equal(peft.prompt_encoder["default"].embedding.weight, kept)
        known = json.loads((tmp_path / "prompt_tuning.json").read_text())
        assert known["metrics"]["eval_accuracy"] == metrics["eval_accuracy"]
        training = known["training"]
        assert training["learning_rate"] == trainer.tasks[trainer.end.prompt].learning_rate
        assert (training["recipe"], training["field_prompts"], training["field_cost"]) == ("auto", 10, 4.0)
        assert training["field_end"] == trainer.end.kind and training["rows_held_apart"] == 6
        output = trainer.predict(messages)
        assert output.predictions.shape == (12, 2)
        assert trainer.evaluate_transfer({"other": messages})["transfer_other_accuracy"] >= 0

    def test_a_vote_is_saved_as_an_ensemble_of_two(self, tmp_path):
        trainer = make(tmp_path)
        names = decided(trainer, [1.0, 2.0], [[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
        for method in ("_losses_apart", "_alone"):
            delattr(trainer, method)
        trainer.evaluate()
        trainer.save_model()
        assert {file.name for file in tmp_path.iterdir() if file.is_dir()} == set(names)
        ensemble = load_ensemble(tmp_path, backbone=tiny_model("llama"), tokenizer=trainer.processing_class)
        assert ensemble.members == names
        assert json.loads((tmp_path / "ensemble.json").read_text())["best"] == names[0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"learning_rate": 3e-2}, "learning_rate is 0.03, and recipe auto finds the learning rate"),
            ({"recipe": "peft"}, "a FieldTrainer has the recipe auto, and is given peft"),
            ({"recipe_budget": 0.5}, "recipe_budget is 0.5, and one ordinary run costs 1"),
            ({"warmup_steps": 2}, "warmup_steps is 2, and the first round ends at step 2"),
            ({"num_train_epochs": 2}, "the run has 4 update steps"),
            ({"early_stopping_patience": 2}, "early_stopping_patience and save_strategy best ask for one best step"),
            ({"auto_find_batch_size": True}, "auto_find_batch_size is on"),
            ({"restore_callback_states_from_checkpoint": False}, "restore_callback_states_from_checkpoint is False"),
            ({"rows": None}, "recipe auto has no training data"),
            ({"rows": ROWS[:2], "evaluation": None}, "there are too few, 2"),
            ({"template": None}, "recipe auto needs a template"),
            ({"evaluation": [{"message": "x", "label": None}]}, "no row of the evaluation data has a label"),
            ({"evaluation": {"a": ROWS}}, "one evaluation data set"),
            (
                {"options": {"teacher": Teacher(text="Be kind.")}},
                "teacher is given, and recipe auto trains on targets",
            ),
            ({"options": {"compute_metrics": print}}, "compute_metrics is given, which a field would call with votes"),
            ({"rows": STREAM}, "the training data is a IterableDataset, and recipe auto chooses among rows"),
            ({"evaluation": STREAM}, "the evaluation data is a IterableDataset, and recipe auto chooses among rows"),
            ({"options": {"model_init": print}}, "model_init is given beside tasks"),
            ({"model": "prompt"}, "the model has a prompt, and recipe auto makes its own"),
        ],
    )
    def test_what_does_not_go_with_it(self, values, message, tmp_path):
        model = tiny_prompt_model("llama", num_virtual_tokens=4) if "model" in values else tiny_model("gpt2")
        before = state_of(model)
        with pytest.raises(PromptTuningError, match=message):
            make(tmp_path, **values | {"model": model})
        assert state_of(model) == before

    def test_trainers_that_do_not_find_settings(self, tmp_path):
        with pytest.raises(
            PromptTuningError, match="recipe is auto, which trains a field of prompts; use FieldTrainer"
        ):
            PromptTuningTrainer(tiny_prompt_model("llama", num_virtual_tokens=4), run_arguments(tmp_path))

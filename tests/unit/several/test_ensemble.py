"""Prompts that vote: trained in one run, evaluated in one pass, saved and loaded as one."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from hf_prompt_tuning import PromptLoadError, PromptTuningConfig, PromptTuningError, load_prompt
from hf_prompt_tuning.several.ensemble import PromptEnsemble, load_ensemble
from hf_prompt_tuning.several.task import PromptTask
from hf_prompt_tuning.several.voting import vote, vote_on_texts, votes
from hf_prompt_tuning.training.trainer import PromptTuningTrainer
from tests.shared.ensembles import FREE, MEMBERS, TEMPLATE, make, state_of
from tests.shared.reference import row_encoder_of
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_models import tiny_model


class TestVotes:
    def test_the_majority_wins_though_the_minority_is_surer(self):
        scores = np.array([[[-1.0, -2.0, -9.0], [-1.0, -2.0, -9.0], [-50.0, -1.0, -9.0]]])
        assert votes(scores).tolist() == [[2, 1, 0]]
        assert vote(scores).tolist() == [0]

    def test_a_tie_goes_to_the_likelier_of_the_tied(self):
        # one vote each for labels 0 and 1; label 2, with none, has the highest sum
        scores = np.array([[[-1.0, -9.0, -2.0], [-8.0, -1.5, -2.0]]])
        assert scores.sum(1).argmax() == 2
        assert vote(scores).tolist() == [0]

    def test_texts(self):
        assert vote_on_texts(["x", "y", "y", "x", "z"]) == "x"
        assert vote_on_texts(["z", "y", "y", "x"]) == "y"


@pytest.mark.parametrize("backbone", ["llama", "t5"])
def test_one_pass_gives_what_each_prompt_gives_alone(backbone, tmp_path, messages):
    """Scores, metrics and the vote against each prompt by itself, row by row."""
    trainer = make(tmp_path, messages, backbone)
    trainer.train()
    calls = []
    handle = trainer.model.register_forward_pre_hook(lambda *_: calls.append(1))
    metrics = trainer.evaluate()
    assert len(calls) == 1  # seven rows, three prompts
    handle.remove()
    output = trainer.predict(messages[:7])
    assert output.predictions.shape == (7, 3, 2)
    gold = np.array([int(row["label"]) - 1 for row in messages[:7]])
    alone = []
    for g, name in enumerate(trainer.members):
        model = trainer.model
        model.set_adapter(name)
        single = PromptTuningTrainer(
            model,
            arguments(tmp_path),
            eval_dataset=messages[:7],
            processing_class=trainer.processing_class,
            template=TEMPLATE,
        )
        expected = single.predict(messages[:7])
        np.testing.assert_allclose(output.predictions[:, g], expected.predictions, rtol=1e-4, atol=1e-4)
        for key in ("loss", "accuracy", "f1"):
            assert metrics[f"eval_{name}_{key}"] == pytest.approx(expected.metrics[f"test_{key}"], rel=1e-4)
        alone.append(expected.predictions.argmax(1))
    majority = (np.stack(alone).sum(0) > 1).astype(int)
    assert metrics["eval_accuracy"] == pytest.approx((majority == gold).mean())
    assert metrics["eval_loss"] == pytest.approx(np.mean([metrics[f"eval_{n}_loss"] for n in trainer.members]))


@pytest.mark.parametrize("backbone", ["llama", "t5"])
def test_texts_are_voted_on(backbone, tmp_path, messages):
    trainer = make(tmp_path, messages, backbone, FREE)
    trainer.evaluate_untuned()
    trainer.train()
    metrics = trainer.evaluate()
    output = trainer.predict([row | {"answer": row["message"][-9:].strip()} for row in messages[:7]])
    assert np.shape(output.predictions) == (7, 3)
    for g, name in enumerate(trainer.members):
        exact = np.mean([texts[g] == right for texts, right in zip(output.predictions, output.label_ids, strict=True)])
        assert metrics[f"eval_{name}_exact_match"] == pytest.approx(exact)
        trainer.model.set_adapter(name)
        info = trainer.model.info
        assert set(info.untuned_metrics) == {f"untuned_{k}" for k in ("loss", "perplexity", "exact_match", "rougeL")}
    voted = [vote_on_texts(texts) for texts in output.predictions]
    right = np.mean([a == b for a, b in zip(voted, output.label_ids, strict=True)])
    assert metrics["eval_exact_match"] == output.metrics["test_exact_match"] == pytest.approx(right)
    trainer.save_model()
    ensemble = load_ensemble(tmp_path, backbone=tiny_model(backbone), tokenizer=trainer.processing_class)
    assert repr(ensemble).startswith(f"PromptEnsemble({', '.join(ensemble.members)} on ")
    assert [record["prediction"] for record in ensemble.predict(messages[:7], batch_size=4)] == voted


def test_texts_end_where_each_prompt_leaves_no_positions(tmp_path, messages):
    """Of GPT-2's 128 positions a row leaves 3 behind the longest prompt (7), and 6 behind the others."""
    trainer = make(tmp_path, messages, "gpt2", FREE)
    encoder, rows = row_encoder_of(trainer), [{"message": row["message"], "answer": "x"} for row in messages[:3]]
    while len(encoder.source_ids(rows[1])[0]) < 128 - 7 - 3:
        rows[1]["message"] += " x"
    assert len(encoder.source_ids(rows[1])[0]) == 128 - 7 - 3
    found = np.transpose(trainer.predict(rows).predictions).tolist()
    for name, texts in zip(trainer.members, found, strict=True):
        trainer.model.set_adapter(name)
        single = PromptTuningTrainer(
            trainer.model, arguments(tmp_path), processing_class=trainer.processing_class, template=FREE
        )
        assert texts == single.predict(rows).predictions
    ensemble = PromptEnsemble(trainer.model, trainer.members, trainer.processing_class, FREE)
    assert [list(record["votes"].values()) for record in ensemble.predict(rows)] == np.transpose(found).tolist()


def test_an_ensemble_takes_tables_and_texts_and_refuses_one_row(tmp_path, messages):
    trainer = make(tmp_path, messages)
    ensemble = PromptEnsemble(trainer.model, trainer.members, trainer.processing_class, TEMPLATE)
    rows = [{"message": row["message"]} for row in messages[:5]]
    texts = [row["message"] for row in rows]
    frame, data = pd.DataFrame(rows), Dataset.from_list(rows)
    expected, scores = ensemble.predict(rows, batch_size=2), ensemble.scores(rows)
    for table in (frame, data, pa.table({"message": texts}), texts, frame["message"], tuple(rows), iter(rows)):
        assert ensemble.predict(table, batch_size=2) == expected
    for table in (frame, data, texts):
        np.testing.assert_array_equal(ensemble.scores(table), scores)
    assert ensemble.predict([]) == ensemble.predict(frame[:0]) == []
    for call in (ensemble.predict, ensemble.scores):
        for other in (rows[0], {"message": texts}, frame.iloc[0], texts[0], 5, None):
            with pytest.raises(
                PromptTuningError, match=r"rows is a \w+; give a list of rows, each a dict of 'message'"
            ):
                call(other)
        with pytest.raises(
            PromptTuningError, match=r"row 2: inputs hold a row that is a int; give a dict of 'message'"
        ):
            call([rows[0], 5])
        with pytest.raises(PromptTuningError, match=r"row 2: \{message\} is missing"):
            call([rows[0], {"message": None}])


def test_an_ensemble_is_saved_and_loads_as_one(tmp_path, messages):
    trainer = make(tmp_path, messages, eval_strategy="epoch", save_strategy="epoch")
    trainer.evaluate_untuned()
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    best = max(trainer.members, key=lambda n: (metrics[f"eval_{n}_accuracy"], -metrics[f"eval_{n}_loss"]))
    assert trainer.best_member == best
    top = {file.name for file in tmp_path.iterdir() if file.is_file()}
    prompt = {"README.md", "adapter_config.json", "adapter_model.safetensors", "prompt_tuning.json", "results.json"}
    prompt |= {"initial_prompt.safetensors", "loss.png", "confusion_matrix.png"}
    assert top == prompt | {"ensemble.json", "losses.png"}
    assert {file.name for file in (tmp_path / "two").iterdir()} == prompt
    assert {f.name for f in (tmp_path / "checkpoint-3").iterdir() if f.is_dir()} == set(trainer.members)
    assert not (tmp_path / "checkpoint-3/ensemble.json").exists()
    known = json.loads((tmp_path / "ensemble.json").read_text())
    assert known["best"] == best and known["members"] == ["one", "two", "three"]
    assert known["metrics"] == {f"eval_{k}": metrics[f"eval_{k}"] for k in ("accuracy", "f1", "loss")}

    peft = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    assert torch.equal(peft.prompt_encoder["default"].embedding.weight, trainer.prompts[best])
    model, *_ = load_prompt(tmp_path, backbone=tiny_model("llama"), tokenizer=trainer.processing_class)
    assert model.info.metrics["eval_accuracy"] == metrics[f"eval_{best}_accuracy"]
    assert "untuned_accuracy" in model.info.untuned_metrics

    ensemble = load_ensemble(tmp_path, backbone=tiny_model("llama"), tokenizer=trainer.processing_class)
    output = trainer.predict(messages)
    np.testing.assert_allclose(ensemble.scores(messages), output.predictions, rtol=1e-4, atol=1e-4)
    with pytest.raises(PromptTuningError, match=r"\{message\} is not in the row, which has 'text'"):
        ensemble.predict([{"text": "x"}])
    records = ensemble.predict([{"message": row["message"]} for row in messages], batch_size=5)
    assert [record["prediction"] for record in records] == ["ab"[i] for i in vote(output.predictions)]
    assert list(records[0]["votes"]) == known["members"]
    assert list(records[0]["votes"].values()) == ["ab"[i] for i in output.predictions[0].argmax(1)]
    assert records[0]["scores"]["b"] == pytest.approx(output.predictions[0, :, 1].sum(), rel=1e-4)

    card = (tmp_path / "README.md").read_text()
    assert f"| accuracy | {metrics['eval_accuracy']:.4f} |" in card.split("## Ensemble")[1]
    assert f"| accuracy | {metrics[f'eval_{best}_accuracy']:.4f} |" in card.split("## Ensemble")[0]
    assert "ensemble = load_ensemble('.', backbone=backbone, tokenizer=tokenizer)" in card
    assert "](losses.png)" in card and "## Ensemble" not in (tmp_path / "two/README.md").read_text()


def test_the_best_without_evaluation_has_the_lowest_loss(tmp_path, messages):
    trainer = make(tmp_path, messages, evaluate=False)
    trainer.train()
    last = {
        n: [log[f"loss_{n}"] for log in trainer.state.log_history if f"loss_{n}" in log][-1] for n in trainer.members
    }
    assert trainer.best_member == min(last, key=last.get)
    trainer.save_model()
    assert json.loads((tmp_path / "ensemble.json").read_text())["metrics"] == {}


class TestRefusals:
    def test_members_that_would_stay_the_same(self, tmp_path, messages):
        text = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init_text="positive negative")
        backbone = tiny_model("gpt2")
        before = state_of(backbone)
        with pytest.raises(PromptTuningError, match="'a' and 'b' start from the same vectors"):
            twins = [PromptTask("a", text, seed=1), PromptTask("b", text, seed=2)]
            make(tmp_path, messages, members=twins, backbone=backbone)
        assert state_of(backbone) == before
        make(tmp_path, messages, members=[PromptTask("a", text), PromptTask("b", text, learning_rate=0.1)])

    def test_orders_that_are_the_same(self, tmp_path, messages):
        """Without rows in random order there is only one order; and in steps of all rows."""
        text = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init_text="positive negative")
        members = [PromptTask(name, text, data_seed=seed) for seed, name in enumerate("ab")]
        make(tmp_path, messages, members=members)
        for values in ({"train_sampling_strategy": "sequential"}, {"per_device_train_batch_size": len(messages)}):
            with pytest.raises(PromptTuningError, match=r"'a' and 'b' start .* in the same order, so they would stay"):
                make(tmp_path, messages, members=members, **values)

    def test_one_member(self, tmp_path, messages):
        with pytest.raises(PromptTuningError, match="has 1 member"):
            make(tmp_path, messages, members=MEMBERS[:1])

    @pytest.mark.parametrize("name", ["../up", "a/b", "default", "train", "", "x" * 65, "checkpoint-3", 7, "a.b"])
    def test_names(self, name):
        with pytest.raises(PromptTuningError, match="the name"):
            PromptTask(name, random_prompt(2))

    @pytest.mark.parametrize(
        "change",
        [
            {"format_version": 2},
            {"format_version": True},
            {"members": "one"},
            {"members": ["one"]},
            {"members": ["one", "../one"]},
            {"members": ["one", ["two"]]},
            {"members": ["one", "one"]},
            {"best": "four"},
            {"best": ["one"]},
            {"metrics": []},
            {"metrics": {"eval_accuracy": "high"}},
        ],
    )
    def test_a_damaged_description(self, change, tmp_path):
        known = {"format_version": 1, "members": ["one", "two"], "best": "one", "metrics": {"eval_accuracy": 1.0}}
        (tmp_path / "ensemble.json").write_text(json.dumps(known | change))
        with pytest.raises(
            PromptLoadError, match=r"ensemble\.json is not a prompt's (?s:.*)[^.]\. Download it again\.$"
        ):
            load_ensemble(tmp_path, backbone=tiny_model("llama"))

    def test_no_ensemble(self, tmp_path):
        with pytest.raises(PromptLoadError, match=r"has no ensemble\.json; one prompt is loaded"):
            load_ensemble(tmp_path, backbone=tiny_model("llama"))

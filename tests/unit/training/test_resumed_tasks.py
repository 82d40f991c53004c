"""What goes on from a checkpoint has to learn the same: its classes, template, label words, head and prompts."""

import json

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from hf_prompt_tuning import (
    EnsembleTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.training.resume_checks import check_states
from tests.shared.head_runs import NAMES, TEXTS, head_trainer
from tests.shared.tiny_models import tiny_model

QUIET = dict(use_cpu=True, disable_tqdm=True, report_to="none", per_device_train_batch_size=4)
RANDOM = dict(num_virtual_tokens=4, prompt_tuning_init="RANDOM")
ROWS = [{"m": text, "label": name} for text, name in zip(TEXTS, NAMES, strict=True)]
SOURCE = "Text: {m} Label:"


def numbered(names):
    """The same rows, their column a ClassLabel of names in this order."""
    features = Features({"message": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"message": TEXTS, "label": [names.index(name) for name in NAMES]}, features=features)


class TestClasses:
    @pytest.fixture
    def run(self, tmp_path):
        def make(epochs, **values):
            return head_trainer(tmp_path, "single", num_train_epochs=epochs, save_strategy="epoch", **values)

        texts = [{"message": text, "label": name} for text, name in zip(TEXTS, NAMES, strict=True)]
        make(1, rows=texts).train()
        return make

    def test_in_another_order_are_refused(self, run):
        trainer = run(2, rows=numbered(["praise", "other", "complaint"]))
        before = trainer.model.prompt.detach().clone()
        expected = "is of a run with the classes 'complaint', 'other', 'praise', and this one has 'praise', 'other', "
        with pytest.raises(PromptTuningError, match=expected):
            trainer.train(resume_from_checkpoint=True)
        assert torch.equal(trainer.model.prompt, before)

    def test_of_other_names_are_refused(self, run):
        rows = [{"message": text, "label": name.upper()} for text, name in zip(TEXTS, NAMES, strict=True)]
        with pytest.raises(PromptTuningError, match="and this one has 'COMPLAINT', 'OTHER', 'PRAISE'; resume with"):
            run(2, rows=rows).train(resume_from_checkpoint=True)

    def test_the_same_go_on_and_are_saved(self, run, tmp_path):
        trainer = run(2, rows=numbered(["complaint", "other", "praise"]))
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model(str(tmp_path / "end"))
        saved = json.loads((tmp_path / "end/prompt_tuning.json").read_text())
        assert saved["classifier"]["id2label"] == {"0": "complaint", "1": "other", "2": "praise"}
        assert saved["template"]["labels"] == ["complaint", "other", "praise"]
        assert trainer.state.global_step == 2

    def test_a_checkpoint_without_a_record_is_not_refused(self, run, tmp_path):
        folder = next(tmp_path.glob("checkpoint-*"))
        for name in ("prompt_tuning.json", "manifest.json"):
            (folder / name).unlink()
        trainer = run(2, rows=numbered(["praise", "other", "complaint"]))
        trainer.train(resume_from_checkpoint=str(folder))
        assert trainer.state.global_step == 2

    def test_a_head_that_no_longer_trains(self, run):
        with pytest.raises(PromptTuningError, match="run with train_head=True, and this one has train_head=False"):
            run(2, prompt={"train_head": False}).train(resume_from_checkpoint=True)


class TestTemplates:
    @pytest.fixture
    def run(self, tmp_path, tokenizer):
        def make(epochs, source=SOURCE, rows=ROWS, **template):
            model = get_prompt_tuning_model(tiny_model("gpt2"), PromptTuningConfig(**RANDOM), tokenizer)
            args = PromptTuningArguments(str(tmp_path), **QUIET, num_train_epochs=epochs, save_strategy="epoch")
            template = PromptTemplate(source, **{"label_column": "label"} | template)
            return PromptTuningTrainer(model, args, train_dataset=rows, processing_class=tokenizer, template=template)

        make(1).train()
        return make

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"source": "Tweet: {m} =>"}, "with source='Text: {m} Label:', and this one has source='Tweet: {m} =>'"),
            ({"separator": "\n"}, r"with separator=' ', and this one has separator='\\n'"),
            (
                {"label_words": {"complaint": "bad", "praise": "good", "other": "none"}},
                "with the label words complaint='complaint', .*, and this one has complaint='bad'",
            ),
            ({"label_column": None, "target": "{label}"}, "with target=None, and this one has target='{label}'"),
        ],
    )
    def test_another_is_refused(self, values, message, run):
        with pytest.raises(PromptTuningError, match=f"is of a run {message}.*; resume with the same, or start anew"):
            run(2, **values).train(resume_from_checkpoint=True)

    def test_words_of_other_labels_are_refused(self, run):
        swapped = {"complaint": "praise", "praise": "complaint", "other": "other"}
        with pytest.raises(PromptTuningError, match="this one has complaint='praise'"):
            run(2, label_words=swapped).train(resume_from_checkpoint=True)

    def test_what_is_learned_all_the_same(self, run, tmp_path):
        """Another column, length or spelling of the labels. The description is that of the run which goes on."""
        names = ["praise", "other", "complaint"]
        features = Features({"m": Value("string"), "kind": ClassLabel(names=names)})
        columns = {"m": TEXTS, "kind": [names.index(name) for name in NAMES]}
        rows = Dataset.from_dict(columns, features=features)
        trainer = run(2, rows=rows, label_column="kind", max_source_length=50)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 4
        trainer.save_model(str(tmp_path / "end"))
        saved = json.loads((tmp_path / "end/prompt_tuning.json").read_text())["template"]
        assert (saved["label_column"], saved["max_source_length"]) == ("kind", 50)
        assert saved["label_words"] == {"0": "praise", "1": "other", "2": "complaint"}


def test_a_checkpoint_of_several_prompts_is_refused_by_one(tmp_path, tokenizer):
    template = PromptTemplate(SOURCE, label_column="label")
    args = PromptTuningArguments(str(tmp_path), **QUIET, max_steps=1, save_strategy="steps", save_steps=1)
    options = dict(train_dataset=ROWS, processing_class=tokenizer, template=template)
    members = [PromptTask(name, PromptTuningConfig(**RANDOM), seed=seed) for seed, name in enumerate(("a", "b"))]
    ensemble = EnsembleTrainer(tiny_model("gpt2"), args, members=members, **options)
    ensemble.train()
    model = get_prompt_tuning_model(tiny_model("gpt2"), PromptTuningConfig(**RANDOM), tokenizer)
    trainer = PromptTuningTrainer(model, args, **options)
    with pytest.raises(PromptTuningError, match="holds the prompts 'a', 'b', and this run trains 'default'; resume"):
        trainer.train(resume_from_checkpoint=True)


def test_an_optimizers_state_of_more_parameters_is_not_taken(tmp_path):
    """Where no description tells it: torch would raise a ValueError of its parameter groups."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": weights[:1]}, {"params": weights[1:]}]
    torch.save(torch.optim.SGD(groups, 0.1).state_dict(), tmp_path / "optimizer.pt")
    schedule = torch.optim.lr_scheduler.LambdaLR
    for own, counts in (([{"params": weights[:1]}], "1;"), ([groups[0], {"params": weights[1:2]}], r"1 \+ 1;")):
        optimizer = torch.optim.SGD([dict(group) for group in own], 0.1)
        with pytest.raises(PromptTuningError, match=rf"trains 1 \+ 2 parameters \(by group\), and this one {counts}"):
            check_states(str(tmp_path), optimizer, schedule(optimizer, lambda step: 1.0))

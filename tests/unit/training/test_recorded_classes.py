"""A head knows its classes by their places, which its prompt records: other data, or another template, moves none."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from hf_prompt_tuning import (
    ClassTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_prompt,
)
from tests.shared.classifiers import tiny_classifier, tokenizer_with_cls
from tests.shared.head_runs import TEXT, TEXTS, head_of, head_trainer, require_same

NAMES = ["praise", "complaint"]
TEXT_LABELS = [{"message": text, "label": NAMES[i % 2]} for i, text in enumerate(TEXTS)]
FEATURES = Features({"message": Value("string"), "label": ClassLabel(names=NAMES)})
CLASS_LABELS = Dataset.from_dict({"message": TEXTS, "label": [0, 1] * 3}, features=FEATURES)


def two(name="bert"):
    """A backbone whose two labels have transformers' default names."""
    return tiny_classifier(name, "SEQ_CLS", num_labels=2)


@pytest.fixture
def saved(tmp_path):
    """The folder of a prompt whose classes are praise and complaint, in this order, and its trainer."""
    trainer = head_trainer(tmp_path / "one", "single", rows=CLASS_LABELS, eval_rows=CLASS_LABELS, backbone=two())
    trainer.train()
    trainer.save_model(str(tmp_path / "one"))
    return tmp_path / "one", trainer


class TestAFreshTemplate:
    @pytest.fixture
    def loaded(self, saved, tmp_path):
        model, tokenizer, _ = load_prompt(saved[0], backbone=two(), tokenizer=tokenizer_with_cls(), is_trainable=True)
        args = PromptTuningArguments(str(tmp_path / "two"), use_cpu=True, disable_tqdm=True, report_to="none")

        def trainer(rows, template):
            return PromptTuningTrainer(model, args, eval_dataset=rows, processing_class=tokenizer, template=template)

        return trainer

    @pytest.mark.parametrize("template", [None, TEXT, ClassTemplate("{message}", "label", labels=NAMES[::-1])])
    @pytest.mark.parametrize("rows", [TEXT_LABELS, CLASS_LABELS, TEXT_LABELS[:1]], ids=["texts", "numbers", "one row"])
    def test_takes_the_recorded_classes(self, rows, template, loaded, saved):
        trainer = loaded(rows, template)
        assert trainer.rows.tokenizer.template.labels == NAMES
        assert list(trainer.model.info.classifier["id2label"].values()) == NAMES
        assert trainer.eval_dataset["labels"][:] == [0, 1, 0, 1, 0, 1][: len(rows)]
        if len(rows) == len(TEXTS):
            assert trainer.evaluate()["eval_loss"] == pytest.approx(saved[1].evaluate()["eval_loss"], rel=1e-5)

    @pytest.mark.parametrize("labels", [None, ["down", "up"]])
    def test_of_other_classes_is_refused(self, labels, loaded):
        rows = [{"message": text, "label": ["up", "down"][i % 2]} for i, text in enumerate(TEXTS)]
        with pytest.raises(PromptTuningError, match=r"'down' .* is none of the prompt's classes 'praise', 'comp"):
            loaded(rows, ClassTemplate("{message}", "label", labels=labels))

    def test_of_another_problem_type_is_refused(self, loaded):
        rows = [{"message": text, "label": [NAMES[i % 2]]} for i, text in enumerate(TEXTS)]
        with pytest.raises(PromptTuningError, match=r"labels is multi_label_.*, and the prompt's is single_label_"):
            loaded(rows, TEXT)


class TestAPromptThatStartsFromAnother:
    def start(self, folder, rows, tmp_path, backbone=None):
        return PromptTuningTrainer(
            two() if backbone is None else backbone,
            PromptTuningArguments(str(tmp_path / "new"), use_cpu=True, disable_tqdm=True, report_to="none"),
            train_dataset=rows,
            processing_class=tokenizer_with_cls(),
            template=TEXT,
            prompt_config=PromptTuningConfig(init_prompt=str(folder)),
        )

    def test_takes_its_head_for_the_same_classes_in_its_order(self, saved, tmp_path):
        trainer = self.start(saved[0], TEXT_LABELS, tmp_path)
        require_same(head_of(trainer.model), head_of(saved[1].model))
        assert trainer.rows.tokenizer.template.labels == NAMES
        assert trainer.train_dataset["labels"][:] == [0, 1] * 3

    def test_leaves_its_head_for_others(self, saved, tmp_path, caplog):
        rows = [{"message": text, "label": ["up", "down"][i % 2]} for i, text in enumerate(TEXTS)]
        backbone = two()
        own = backbone.classifier.weight.detach().clone()
        trainer = self.start(saved[0], rows, tmp_path, backbone)
        assert torch.equal(head_of(trainer.model)["classifier.weight"], own)
        assert trainer.rows.tokenizer.template.labels == ["down", "up"]
        assert list(trainer.model.info.classifier["id2label"].values()) == ["down", "up"]
        told = "the classes 'praise', 'complaint', and the template's are 'down', 'up'"
        assert any(told in message for message in caplog.messages)

    def test_knows_the_classes_of_the_head_before_there_is_a_template(self, saved, tmp_path):
        model = get_prompt_tuning_model(two(), PromptTuningConfig(init_prompt=str(saved[0])), tokenizer_with_cls())
        assert list(model.info.classifier["id2label"].values()) == NAMES

"""Short runs of prompts with a classification head, on rows of columns."""

import pytest
import torch
from transformers import set_seed

from hf_prompt_tuning import ClassTemplate, PromptTuningArguments, PromptTuningConfig, PromptTuningTrainer, TagTemplate
from tests.shared.classifiers import tiny_classifier, tokenizer_with_cls

TEXTS = [
    "the parcel never came",
    "thank you for the quick help",
    "why is my line down again",
    "great film",
    "nobody answers",
    "a small dog and a big cat in the old town",
]
NAMES = ["complaint", "praise", "complaint", "praise", "complaint", "other"]
NUMBERS = [0.5, -100.0, 2.0, 1.25, -1.0, 0.0]
"""One of them is -100, which is a number like the others."""
SEVERAL = [["a"], ["b", "c"], [], ["a", "c"], ["a"], ["b"]]
TAGS = [["O", "B-X", "O", "O"], ["B-Y", "I-Y", "O", "O", "O", "O"], ["O"] * 6, ["O", "B-X"], ["O", "O"], ["B-Y"] * 11]
TEXT = ClassTemplate("{message}", "label")
WORDS = TagTemplate("words", "tags")
LABELS = {"single": (NAMES, 3), "numbers": (NUMBERS, 1), "several": (SEVERAL, 3)}


def rows_of(kind):
    """Six rows whose labels are of a kind."""
    if kind == "tags":
        return [{"words": text.split(), "tags": tags} for text, tags in zip(TEXTS, TAGS, strict=True)]
    return [{"message": text, "label": label} for text, label in zip(TEXTS, LABELS[kind][0], strict=True)]


def backbone_of(kind, name="bert", **changes):
    """A tiny backbone with a head for the rows of a kind."""
    task_type, count = ("TOKEN_CLS", 4) if kind == "tags" else ("SEQ_CLS", LABELS[kind][1])
    return tiny_classifier(name, task_type, num_labels=count, **changes)


def head_trainer(folder, kind, name="bert", rows=None, eval_rows=None, backbone=None, prompt=None, own=None, **values):
    """A trainer of rows of a kind, its arguments being `values`."""
    set_seed(1)
    config = dict(num_virtual_tokens=4, prompt_tuning_init="RANDOM") | (prompt or {})
    quiet = dict(use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", logging_steps=1)
    return PromptTuningTrainer(
        backbone_of(kind, name) if backbone is None else backbone,
        PromptTuningArguments(str(folder), **quiet | values),
        train_dataset=rows_of(kind) if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer_with_cls(),
        template=WORDS if kind == "tags" else TEXT,
        prompt_config=PromptTuningConfig(**config),
        **(own or {}),
    )


def trained_weights(model):
    """Copies of the weights that train, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def require_step(trainer, loss, before):
    """Require that a trainer's only step is SGD's on a loss, with a rate of 0.5, and for the head's weights 0.25."""
    loss.backward()
    expected = {}
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            rate = 0.25 if "classifier" in name.removeprefix("prompt_encoder.default.") else 0.5
            expected[name] = (weight.detach() - rate * weight.grad).clone()
    trainer.model.zero_grad()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert len(expected) > 1
    for name, weight in trained_weights(trainer.model).items():
        moved = (expected[name] - before[name]).norm()
        assert (weight - expected[name]).norm() < 1e-4 * moved, name


def head_of(model):
    """The weights of the prompt's head."""
    return model.prompt_encoder["default"].classifier.state_dict()


def require_same(here, there):
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)

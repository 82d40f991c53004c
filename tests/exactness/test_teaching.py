"""Loss and gradient of learning from a teacher equal those by hand, in every layout, at every place, of every kind."""

import pytest
import torch

from hf_prompt_tuning import PromptTuningError, PromptTuningTrainer, Teacher, get_prompt_tuning_model
from hf_prompt_tuning.layouts.base import IGNORED
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.places import place_config
from tests.shared.reference import loss_and_gradient, relative_error
from tests.shared.teaching import logits_behind, logits_of_text, loss_by_hand
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE, arguments

TEXT = "Classify if the message is a complaint or not"
ROWS = [
    {"message": "never came", "answer": "a complaint"},
    {"message": "thank you for the quick help", "answer": "no"},
    {"message": "why", "answer": "a complaint or not"},
]


def trainer_of(
    folder, name, place="start", teacher=None, tokenizer=None, template=FREE, rows=ROWS, model=None, **values
):
    torch.manual_seed(1)
    tokenizer = tokenizer if tokenizer is not None else make_tokenizer("llama")
    if model is None:
        backbone = tiny_backbone(name) if name in ARCHITECTURES else tiny_model(name)
        model = get_prompt_tuning_model(backbone, place_config(place))
    return PromptTuningTrainer(
        model=model,
        args=arguments(folder, **values),
        train_dataset=rows,
        processing_class=tokenizer,
        template=template,
        teacher=Teacher(text=TEXT) if teacher is None else teacher,
    )


def batch_of(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


def loss_of(trainer):
    """The trainer's own loss of all rows, as a number, and the prompt's gradient."""
    return loss_and_gradient(trainer.model, trainer.compute_loss(trainer.model, batch_of(trainer)))


def by_hand(trainer, teacher_logits, temperature=1.0, weight=1.0):
    rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    students = [logits_behind(trainer.model, *row) for row in rows]
    targets = [torch.tensor([i for i in labels if i != IGNORED]) for _, labels in rows]
    loss = loss_by_hand(teacher_logits, students, targets, temperature, weight)
    return loss_and_gradient(trainer.model, loss)


def rows_behind_text(trainer, texts, tokenizer):
    """[BOS | text | row] and its labels, put together here."""
    for row, text in zip(trainer.train_dataset, texts, strict=True):
        ids, labels = row["input_ids"], row["labels"]
        lead = ids[:1] if ids[0] == 1 else []
        context = tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
        yield lead + context + ids[len(lead) :], [IGNORED] * (len(lead) + len(context)) + labels[len(lead) :]


def require_equal(trainer, expected):
    loss, gradient = loss_of(trainer)
    assert loss == pytest.approx(expected[0], rel=1e-4)
    assert relative_error(gradient, expected[1]) < 1e-4


@pytest.mark.parametrize("place", ["start", "after_bos"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "bloom", "mamba", "gemma3n_text", "gemma3_text"])
def test_a_text_teaches_in_every_layout(tmp_path, name, place):
    for layout in ("auto", "packed", "cached", "padded"):
        try:
            trainer = trainer_of(
                tmp_path, name, place, layout=layout, distillation_temperature=2.0, distillation_weight=0.7
            )
            trainer.compute_loss(trainer.model, batch_of(trainer))
        except PromptTuningError:
            assert layout in ("packed", "cached")
            continue
        rows = rows_behind_text(trainer, [TEXT] * 3, trainer.processing_class)
        teachers = [logits_of_text(trainer.model, *row) for row in rows]
        require_equal(trainer, by_hand(trainer, teachers, 2.0, 0.7))

"""A prompt that is taught, and the loss by hand: teacher and student each alone, row by row, through the backbone."""

import torch
from torch import Tensor

from hf_prompt_tuning import PromptTuningTrainer, Teacher, get_prompt_tuning_model
from hf_prompt_tuning.layouts.base import IGNORED
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.places import assembled, place_config
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE, arguments

TEXT = "Classify if the message is a complaint or not"
ROWS = [
    {"message": "never came", "answer": "a complaint"},
    {"message": "thank you for the quick help", "answer": "no"},
    {"message": "why", "answer": "a complaint or not"},
]


def taught(
    folder,
    teacher=None,
    rows=ROWS,
    name="llama",
    place="start",
    model=None,
    tokenizer=None,
    template=FREE,
    eval_rows=None,
    others=None,
    **values,
):
    """A trainer of a tiny backbone's prompt, or of the model given, that TEXT teaches, or another teacher."""
    torch.manual_seed(1)
    if model is None:
        backbone = tiny_backbone(name) if name in ARCHITECTURES else tiny_model(name)
        model = get_prompt_tuning_model(backbone, place_config(place))
    return PromptTuningTrainer(
        model=model,
        args=arguments(folder, **{"predict_with_generate": False} | values),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=make_tokenizer("llama") if tokenizer is None else tokenizer,
        template=template,
        teacher=Teacher(text=TEXT) if teacher is None else teacher,
        **(others or {}),
    )


def logits_of_text(model, ids: list[int], labels: list[int]) -> Tensor:
    """What the bare backbone predicts for the labelled tokens of a row, [K, V]."""
    backbone, row = model.get_base_model(), torch.tensor(ids)
    with torch.no_grad():
        logits = backbone(input_ids=row[None], use_cache=False).logits[0]
    return logits[[t - 1 for t, label in enumerate(labels) if label != IGNORED]]


def logits_behind(model, ids: list[int], labels: list[int], name: str | None = None, vectors=None) -> Tensor:
    """What the backbone predicts for the labelled tokens of a row behind a prompt, [K, V]."""
    config = model.peft_config[name or model.active_adapter]
    head, length = list(config.head), config.num_virtual_tokens if vectors is None else len(vectors)
    skipped = len(head) if head and ids[: len(head)] == head else 0
    text, kept = torch.tensor(ids[skipped:]), labels[skipped:]
    logits = model.get_base_model()(**assembled(model, text, name, vectors), use_cache=False).logits[0]
    before = len(head) + length
    return logits[[before + t - 1 for t, label in enumerate(kept) if label != IGNORED]]


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of each position in fp64, from the definition."""
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    return (p * (p / q).log()).sum(-1)


def loss_by_hand(teachers: list[Tensor], students: list[Tensor], targets: list[Tensor], temperature, weight) -> Tensor:
    """The mean over labelled tokens, of rows of logits [K, V] each."""
    total, count = 0.0, 0
    for teacher, student, labels in zip(teachers, students, targets, strict=True):
        usual = torch.nn.functional.cross_entropy(student.double(), labels, reduction="sum")
        taught = temperature**2 * kl(teacher, student, temperature).sum()
        total, count = total + weight * taught + (1 - weight) * usual, count + len(labels)
    return total / count

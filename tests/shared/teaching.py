"""The loss of learning from a teacher by hand: teacher and student each alone, row by row, through the backbone."""

import torch
from torch import Tensor

from hf_prompt_tuning.layouts.base import IGNORED
from tests.shared.places import assembled


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

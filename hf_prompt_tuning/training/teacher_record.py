"""Record in a prompt's description what taught it, how many tokens it saves, and what that saves in time."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset

from ..hub.files import hub_id
from ..layouts.sharing import is_sharded
from ..models.batch_checks import NO_PROMPT
from ..models.soft_prompts import SoftPrompts
from .teacher import Teacher

ROWS = 1000
"""How many rows the mean number of saved tokens is of."""
TRIES = 3


def record_of(teachers: Sequence[Teacher], context: int, members: int, publish: bool) -> dict[str, Any]:
    """Return what a description says of its teachers.

    Args:
        teachers: the teachers of the run.
        context: the number of tokens of a text, or of messages; 0 for other teachers.
        members: the number of prompts of the first teacher, if it is no text.
        publish: whether the text itself is told, too.
    """
    first = teachers[0]
    if len(teachers) > 1:
        return {"kind": "several", "teachers": len(teachers)}
    if first.column is not None:
        return {"kind": "column", "column": first.column}
    if first.prompt is not None:
        named = hub_id(str(first.prompt))
        record = {"kind": "prompt" if members == 1 else "ensemble", "prompts": members}
        return record if named is None else record | {"prompt": named}
    record = {"kind": "text" if first.text is not None else "messages", "tokens": context}
    return record | ({"text": first.shared_text} if publish else {})


def tokens_saved(data: Dataset, length: int) -> float:
    """Return by how many tokens the student's rows, with its P = `length` vectors, are shorter than the teacher's."""
    rows = data.with_format(None)[:ROWS]
    pairs = zip(rows["teacher_0_input_ids"], rows["input_ids"], strict=True)
    differences = [len(theirs) - len(own) - length for theirs, own in pairs]
    return sum(differences) / len(differences)


@torch.no_grad()
def milliseconds(model: SoftPrompts, row: dict[str, Any]) -> dict[str, Any]:
    """Return how long a request takes to read behind the text and behind the prompt, the best of a few tries each.

    Neither is computed before. Return nothing for a backbone that is sharded over processes, which all had to call it.
    """
    if is_sharded(model.get_base_model()):
        return {}
    device, was_training = model.device, model.training
    calls = {
        "text_milliseconds": {"input_ids": row["teacher_0_input_ids"], "adapter_names": [NO_PROMPT]},
        "prompt_milliseconds": {"input_ids": row["input_ids"], "adapter_names": [model.active_adapter]},
    }
    model.eval()
    found: dict[str, Any] = {}
    for name, call in calls.items():
        ids = torch.tensor([call["input_ids"]], device=device)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "adapter_names": call["adapter_names"]}
        if model.config.is_encoder_decoder:
            given["labels"] = torch.tensor([row["labels"][:1] or [0]], device=device)
        found[name] = 1000 * min(_seconds(lambda given=given: model(**given), device) for _ in range(TRIES))
    model.train(was_training)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found | {"device": name}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start

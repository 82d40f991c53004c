"""Generation and ranking with a prompt that is computed once, and anew."""

import torch

from tests.shared.reference import pad, ragged_rows
from tests.shared.reference import tiny_prompt_model as random_prompt_model

OPTIONS = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
LABELS = [[11, 2], [12, 13, 2], [2]]
ROWS = ragged_rows([7, 2, 5])


def tiny_prompt_model(name="llama"):
    """Its prompt is large enough to change every token."""
    model = random_prompt_model(name, random_range=2.0).eval()
    return model


def inputs(side="left"):
    batch = pad(ROWS, side)
    batch.pop("labels")
    return batch


def generated(model):
    return model.generate(**inputs(), **OPTIONS)[:, 7:].tolist()


def ranked(model):
    with torch.no_grad():
        return model(**inputs(), candidates=LABELS).scores


def ranked_anew(model):
    """With gradients, nothing is kept."""
    return model(**inputs(), candidates=LABELS).scores.detach()

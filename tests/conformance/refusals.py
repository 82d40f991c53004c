"""All that the package may refuse: a part of the message (a regular expression), and the reason why that is right."""

import re

REFUSALS = {
    r"layout '\w+' is not exact for": "a layout that was asked for by name cannot be exact for this backbone",
    r"generates right for one alone": "transformers' own generate is wrong for more than one row of RWKV",
    r"a row's very first token has a label, and num_items_in_batch": "Trainer has counted the labels without that one",
    r"which say nothing to a language model": "labels that are numbers need words",
    r"no row of the data has a label": "words are read from the labels, and there are none",
    r"which in the ClassLabel column .* is the name of label": "a digit that is one label's name and another's number",
    r"has per-layer embeddings": "tokens are looked up in each layer, and embeddings say nothing of them",
}


def reason(message: str) -> str | None:
    """Why a refusal is right; None for one that is not on the list."""
    return next((why for pattern, why in REFUSALS.items() if re.search(pattern, message)), None)

"""All that the package may refuse: a part of the message (a regular expression), and the reason why that is right."""

import re

from tests.shared.versions import states_continue

REFUSALS = {
    # What the layout's own check finds is on no list: it would hide a fault.
    r"layout '\w+' is not exact for \w+: the model": "a layout that was asked for cannot be exact for this backbone",
    r"layout 'cached' is not exact for JambaForCausalLM: ": "Jamba starts every sequence from an empty state",
    r"not exact for \w+: activation checkpointing": "SFTTrainer turns it on, and it would fill a cache twice",
    r"the cache is static, and transformers .* cannot mask one for Llama4": "transformers' own generate fails with it",
    r"the cache is static, and GPTNeoForCausalLM reads the wrong": "transformers' own generate is wrong with it",
    r"generates right for one alone": "transformers' own generate is wrong for more than one row of RWKV",
    r"a row's very first token has a label, and num_items_in_batch": "Trainer has counted the labels without that one",
    r"which say nothing to a language model": "labels that are numbers need words",
    r"no row of the data has a label": "words are read from the labels, and there are none",
    r"which in the ClassLabel column .* is the name of label": "a digit that is one label's name and another's number",
    r"counts pads between tokens": "a hand-written loop over padded rows, where this backbone counts pads",
    r"tokens with the teacher's context and its target, and the backbone has": "a row behind its teacher is too long",
    r"attention_mask is 0 on tokens of pixel_values, and \w+ would count": "Qwen counts positions by masked pictures",
    r"has per-layer embeddings": "tokens are looked up in each layer, and embeddings say nothing of them",
}
if not states_continue("lfm2"):
    REFUSALS[r"layout 'cached' is not exact for Lfm2ForCausalLM: "] = "this transformers' LFM2 starts its states anew"

BROKEN = {
    "a short mask": r"attention_mask has shape .* the texts are",
    "a mask of three dimensions": r"attention_mask has shape .* the texts are",
    "a mask of fewer rows": r"attention_mask has shape .* the texts are",
    "short labels": r"labels has shape",
    "an id beyond the vocabulary": r"input_ids have the token id 320",
    "an id below 0": r"input_ids have the token id -1",
    "an unknown name": r"adapter_names has 'nobody'; there are",
    "more names": r"adapter_names has \d names for \d rows",
    "one name": r"adapter_names has 'nobody'; there are",
    "ids and embeddings": r"give either input_ids or inputs_embeds",
    "neither": r"give either input_ids or inputs_embeds",
    "an unknown argument": r"no_such_argument",
    "a label beyond the vocabulary": r"labels have the token id 320",
    "an empty candidate": r"candidate",
}
"""What is wrong with a call that must be refused, and a part of the message."""


def reason(message: str) -> str | None:
    """Why a refusal is right; None for one that is not on the list."""
    return next((why for pattern, why in REFUSALS.items() if re.search(pattern, message)), None)

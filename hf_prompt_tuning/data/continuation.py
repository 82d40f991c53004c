"""Tokenize a text that follows other text."""

from transformers import PreTrainedTokenizerBase

ANCHORS = ("a", ":", "\n")


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of `text` when it follows other text, without special tokens.

    Tokenizers treat the start of a text differently: GPT-2's marks a leading space on the word, Llama's always adds a
    space, and T5's drops it. So the text is tokenized after an anchor, and the anchor's tokens are removed. An anchor
    that shares a token with the text is skipped.
    """
    for anchor in ANCHORS:
        head = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        joined = tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
        if joined[: len(head)] == head:
            return joined[len(head) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]

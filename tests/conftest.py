"""Tokenizers and rows for every test: no test needs the network."""

import pytest
from transformers import PreTrainedTokenizerFast

from tests.shared.tiny_models import make_tokenizer


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {kind: make_tokenizer(kind) for kind in ("gpt2", "llama", "t5")}


@pytest.fixture
def tokenizer():
    """One of its own for each test: some change its padding side."""
    return make_tokenizer("gpt2")


@pytest.fixture
def messages() -> list[dict]:
    """Twelve rows of two labels."""
    complaints = ["never came", "third time this week", "nobody answers", "line down again", "awful", "why again"]
    others = ["thank you", "great help", "quick help yesterday", "a small dog", "day and night", "the old town"]
    pairs = [pair for both in zip(complaints, others, strict=True) for pair in zip(both, ("1", "2"), strict=True)]
    return [{"message": text, "label": label} for text, label in pairs]

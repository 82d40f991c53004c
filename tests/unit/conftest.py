"""Fixtures of the unit tests."""

from collections.abc import Iterator

import pytest

from hf_prompt_tuning.several.task import PromptTask
from tests.shared.hub_client import local_hub
from tests.shared.hub_server import HubServer
from tests.shared.several_prompts import REVIEWS, random_prompt
from tests.shared.trainers import FREE, TEMPLATE


@pytest.fixture
def hub(monkeypatch, tmp_path_factory) -> Iterator[HubServer]:
    """The Hub that this process talks to, as alice."""
    with local_hub(monkeypatch, tmp_path_factory.mktemp("cache"), token="hf_alice") as server:
        yield server


@pytest.fixture
def tasks(messages):
    """Three tasks of different sizes, prompt lengths, rates, batch sizes and label lengths."""
    reviews = [{"text": f"{word} story", "mood": "great" if word in "abcd" else "awful"} for word in "abcdefg"]
    free = [{"message": row["message"], "answer": row["message"][-9:].strip()} for row in messages[:5]]
    return [
        PromptTask("complaints", random_prompt(4), messages, messages[:6], TEMPLATE),
        PromptTask("reviews", random_prompt(7), reviews, reviews, REVIEWS, 0.1, 2, None, 2, seed=7),
        PromptTask("answers", random_prompt(2), free, free, FREE, 0.01, None, 4, 3, seed=3),
    ]

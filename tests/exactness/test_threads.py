"""Many threads on one backbone, in every entry point at once: each gets what one thread alone gets."""

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hf_prompt_tuning import PromptTuningError
from tests.shared.entry_points import FAMILIES, calls, models, no_grad
from tests.shared.reference import pad, ragged_rows

THREADS, CALLS = 20, 300


def same(got: object, expected: object) -> bool:
    if isinstance(expected, list):
        return len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same(got[key], expected[key]) for key in expected)
    if isinstance(expected, torch.Tensor):
        return got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    return got == pytest.approx(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_300_calls_from_20_threads_give_what_one_thread_gives(family):
    expected = {name: no_grad(call) for name, call in calls(family, *models(family)).items()}
    shared = list(
        calls(family, *models(family)).items()
    )  # another model, so that the first calls, and their checks, come all at once
    jobs = [shared[i % len(shared)] for i in range(CALLS)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            got = list(threads.map(lambda job: attempt(job[1]), jobs))
    finally:
        sys.setswitchinterval(before)
    wrong = [(name, found) for (name, _), found in zip(jobs, got, strict=True) if not same(found, expected[name])]
    assert not wrong, f"{len(wrong)} of {CALLS} calls, first {wrong[0]}"


def attempt(call: Callable[[], object]) -> object:
    try:
        return no_grad(call)
    except Exception as error:
        return error


def test_a_prompt_is_disabled_and_replaced_for_the_thread_that_asks():
    model, _ = models("llama")
    batch = pad(ragged_rows([7, 3, 5]), "left")
    batch.pop("labels")
    other = model.prompt_encoder["other"].embedding.weight

    def elsewhere() -> list[int]:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: [len(model.prompt), model(**batch).logits.shape[1]]).result()

    with model.disable_adapter():
        assert (len(model.prompt), elsewhere()) == (0, [5, 12])
        with model.replaced_prompt(other), model.disable_adapter():
            assert (len(model.prompt), elsewhere()) == (0, [5, 12])
        assert not model.has_active_enabled_adapter
    with model.replaced_prompt(other):
        assert (model.prompt is other, elsewhere()) == (True, [5, 12])
    assert (len(model.prompt), model.has_active_enabled_adapter) == (5, True)


def test_one_models_disabled_prompt_is_not_another_models():
    model, rival = models("llama")
    with model.disable_adapter():
        assert (len(model.prompt), len(rival.prompt), len(copy.deepcopy(model).prompt)) == (0, 4, 5)
    with pytest.raises(ZeroDivisionError), model.disable_adapter():
        raise ZeroDivisionError
    assert len(model.prompt) == 5


def test_a_disabled_prompt_is_disabled_for_rows_that_name_theirs():
    model, _ = models("llama")
    batch = pad(ragged_rows([7, 3, 5]), "left")
    batch.pop("labels")
    names = ["other", "__base__", "default"]
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(**batch, adapter_names=names).logits, model(**batch).logits)
        with pytest.raises(PromptTuningError, match="adapter_names has 'another'"):
            model(**batch, adapter_names=["another", "other", "other"])

"""Many threads on one backbone, in every entry point at once: each gets what one thread alone gets."""

import copy
import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import PreTrainedModel, pipeline

from hf_prompt_tuning import PromptTemplate, PromptTuningError
from hf_prompt_tuning.models.soft_prompts import SoftPrompts

from .conftest import make_tokenizer, tiny_model
from .helpers import pad, ragged_rows, tiny_prompt_model, with_prompts
from .test_architectures import ARCHITECTURES, tiny_backbone

FAMILIES = ["llama", "gpt2", "bloom", "mistral, sliding_window", "gemma3_text", "t5"]
THREADS, CALLS = 20, 300
OPTIONS = dict(max_new_tokens=3, do_sample=False, pad_token_id=0)
LABELS = [[11, 2], [12, 13, 2], [14, 15, 16, 2]]
CLASSES = PromptTemplate(
    source="Tweet text : {text} Label :", label_column="label", label_words={"1": "complaint", "2": "no complaint"}
)
FREE = PromptTemplate(source="summary of {text} :", target="{summary}", max_target_length=4)


def models(family: str) -> tuple[SoftPrompts, SoftPrompts]:
    """Two models on one backbone, with prompts of several lengths."""
    name, *window = family.split(", ")
    backbone = tiny_backbone(name) if name in ARCHITECTURES else tiny_model(name, **dict.fromkeys(window, 4))
    first = with_prompts(tiny_prompt_model(name, backbone=backbone), other=3).eval()
    first.prompt_info["default"].template = first.prompt_info["other"].template = CLASSES
    second = tiny_prompt_model(name, 4, seed=8, backbone=backbone).eval()
    second.info.template = FREE
    return first, second


def calls(family: str, model: SoftPrompts, rival: SoftPrompts) -> dict[str, Callable[[], object]]:
    """One call of each entry point; of the bare backbone, too."""
    backbone: PreTrainedModel = model.get_base_model()
    batch = pad(ragged_rows([7, 3, 5]), "right" if family == "t5" else "left")
    source = {key: batch[key] for key in ("input_ids", "attention_mask")}
    names = ["other", "__base__", "default"]
    tokenizer = make_tokenizer("t5" if family == "t5" else "gpt2")
    classify = pipeline("prompt-classification", model=model, tokenizer=tokenizer)
    write = pipeline("prompt-generation", model=rival, tokenizer=tokenizer)

    def alone(run: Callable[[], object]) -> object:
        with model.disable_adapter():
            found = [run()]
            with model.disable_adapter():
                found.append(run())
            return [*found, run()]

    def gradient() -> torch.Tensor:
        with torch.enable_grad():
            loss = model(**batch, only_labelled=True).loss
            return torch.cat([loss[None], torch.autograd.grad(loss, model.prompt)[0].flatten()])

    generate = functools.partial(model.generate, **source, **OPTIONS)
    rank = functools.partial(model, **source, candidates=LABELS)
    bare = {"decoder_input_ids": batch["labels"].clamp(min=0)} if family == "t5" else {}
    return {
        "logits": lambda: model(**batch).logits if family == "t5" else model(**source).logits,
        "loss": lambda: model(**batch).loss,
        "only_labelled": lambda: model(**batch, only_labelled=True).loss,
        "gradient": gradient,
        "candidates": lambda: rank().scores,
        "candidates, several prompts": lambda: rank(adapter_names=names).scores,
        "greedy": generate,
        "beams": lambda: generate(num_beams=2, num_return_sequences=2),
        "several prompts": lambda: generate(adapter_names=names),
        "no prompt": lambda: alone(generate),
        "no prompt, scores": lambda: alone(lambda: rank().scores),
        "rival": lambda: [rival.generate(**source, **OPTIONS), rival(**source, candidates=LABELS).scores],
        "rival, labels": lambda: rival(**batch, only_labelled=True).logits,
        "replaced": lambda: replaced(model, generate),
        "backbone": lambda: backbone(**source, **bare).logits,
        "backbone, tokens": lambda: backbone.generate(**source, **OPTIONS),
        "classify": lambda: classify(["the parcel never came", "thank you"], batch_size=2),
        "write": lambda: write(["a small dog", "a big cat in the old town"], batch_size=2),
    }


def replaced(model: SoftPrompts, run: Callable[[], object]) -> object:
    with model.replaced_prompt(model.prompt_encoder["other"].embedding.weight):
        return run()


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


@torch.no_grad()
def no_grad(call: Callable[[], object]) -> object:
    return call()


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
        assert (len(model.prompt), model._adapters_disabled, elsewhere()) == (0, True, [5, 12])
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

"""A call of each entry point, on two models of one backbone."""

import functools
from collections.abc import Callable

import torch
from transformers import PreTrainedModel, pipeline

from hf_prompt_tuning import LabelSearch, PromptTemplate
from hf_prompt_tuning.models.soft_prompts import SoftPrompts
from tests.shared.architectures import ARCHITECTURES, tiny_backbone
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model, with_prompts
from tests.shared.tiny_models import make_tokenizer, tiny_model

FAMILIES = ["llama", "gpt2", "bloom", "mistral, sliding_window", "gemma3_text", "t5"]
MANY = [[11, i, j, 2] for i in range(12, 22) for j in range(12, 22)]
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
        "best of many": lambda: rank(candidates=MANY, search=LabelSearch(top_k=2)).scores,
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


@torch.no_grad()
def no_grad(call: Callable[[], object]) -> object:
    return call()

"""Prompts on a backbone: how many, how long, which one each row has, and whether they are turned off."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model

NO_PROMPT = "__base__"
DISABLED = ("no", "yes", "twice", "left again")


@dataclass(frozen=True)
class Asked:
    """Which prompts a call has.

    Attributes:
        names: `adapter_names`, or None.
        disabled: one of `DISABLED`: within no `disable_adapter`, one, one within another, or the outer of two.
    """

    names: tuple[str, ...] | None
    disabled: str

    @property
    def arguments(self) -> dict[str, Any]:
        if self.names is None:
            return {}
        if len(self.names) > 1 and len(set(self.names)) == 1:
            return {"adapter_names": self.names[0]}  # one name is for all rows
        return {"adapter_names": list(self.names)}

    def of(self, row: int, active: str) -> str:
        """The name of a row's prompt."""
        if self.disabled != "no":
            return NO_PROMPT
        return active if self.names is None else self.names[row]

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """The call's surroundings."""
        if self.disabled == "no":
            yield
            return
        with model.disable_adapter():
            if self.disabled == "yes":
                yield
                return
            with model.disable_adapter():
                if self.disabled == "twice":
                    yield
            if self.disabled == "left again":
                yield


def names_of(count: int) -> list[str]:
    """The prompts' names; the first is the active one."""
    return ["default", "b", "другой"][:count]


@st.composite
def asked(draw: Any, prompts: int, rows: int) -> Asked:
    if draw(st.booleans()):
        known = [*names_of(prompts), NO_PROMPT]
        return Asked(tuple(draw(st.sampled_from(known)) for _ in range(rows)), "no")
    return Asked(None, draw(st.sampled_from(["no", "no", "no", *DISABLED])))


def vectors(backbone: PreTrainedModel, length: int, seed: int) -> Tensor:
    """[P, H], somewhat larger than token vectors, so that a prompt is not lost among them."""
    weight = backbone.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(100 + seed)
    size = max(2.0 * float(weight.float().std()), 0.05)
    return size * torch.randn(length, weight.shape[1], generator=generator)


def wrapped(backbone: PreTrainedModel, lengths: tuple[int, ...], **options: Any) -> nn.Module:
    """A prompt-tuning model with prompts of these lengths, the first one active."""
    names = names_of(len(lengths))
    configs = [PromptTuningConfig(num_virtual_tokens=n, prompt_tuning_init="RANDOM") for n in lengths]
    model = get_prompt_tuning_model(backbone, configs[0], adapter_name=names[0], **options)
    for name, config in zip(names[1:], configs[1:], strict=True):
        config.task_type = model.peft_config[names[0]].task_type
        model.add_adapter(name, config)
    for seed, (name, length) in enumerate(zip(names, lengths, strict=True)):
        set_vectors(model, name, vectors(backbone, length, seed))
    return model


def set_vectors(model: nn.Module, name: str, values: Tensor) -> None:
    with torch.no_grad():
        model.prompt_encoder[name].embedding.weight.copy_(values)


def vectors_of(model: nn.Module, name: str) -> Tensor | None:
    """A prompt's vectors as they are now; None for no prompt."""
    return None if name == NO_PROMPT else model.prompt_encoder[name].embedding.weight.detach().clone()

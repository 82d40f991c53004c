"""What a case is about: a backbone with prompts in front, and the same backbone bare."""

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from .families import CAUSAL, FAMILIES, HEADED, LANGUAGE, SEEING, fresh, pristine
from .prompts import vectors_of, wrapped


class Unequal(AssertionError):
    """The package gives something else than the bare backbone, or leaves something changed."""


@dataclass(frozen=True)
class Setting:
    """What is there before the call, as it is drawn."""

    family: str
    dtype: str
    attention: str
    layout: str
    check_layout: bool
    prompts: tuple[int, ...]
    before: str
    train_mode: bool


@st.composite
def settings(
    draw: Any, befores: list[str], families: list[str] | None = None, dtypes: tuple[str, ...] = ("float32", "bfloat16")
) -> Setting:
    family = draw(st.sampled_from(families or list(LANGUAGE)))
    if FAMILIES[family].chooses_experts:
        dtypes, befores = ("float32",), [before for before in befores if before != "half"]
    return Setting(
        family=family,
        dtype=draw(st.sampled_from(dtypes)),
        attention=draw(st.sampled_from(FAMILIES[family].attentions)),
        layout=draw(st.sampled_from(_layouts(family))),
        # Without the package's own check a layout's fault shows itself.
        check_layout=draw(st.booleans()),
        prompts=tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))),
        before=draw(st.sampled_from(befores)),
        train_mode=draw(st.booleans()),
    )


def _layouts(family: str) -> list[str]:
    if family in CAUSAL | SEEING:
        return ["auto", "packed", "cached", "padded"]
    return ["auto", "padded"] if family in HEADED else ["auto"]


class World:
    """A backbone behind prompts, and the same backbone bare.

    Attributes:
        model: the prompt-tuning model, on a backbone of its own.
        active: the name of its active prompt.
    """

    def __init__(self, setting: Setting):
        self.setting, self.family = setting, FAMILIES[setting.family]
        backbone = fresh(setting.family, setting.dtype, setting.attention)
        self.model = wrapped(backbone, setting.prompts)
        if hasattr(self.model, "use_layout"):
            self.model.use_layout(setting.layout, check=setting.check_layout)
        self.model.train(setting.train_mode)
        self.active = "default"

    @property
    def backbone(self) -> PreTrainedModel:
        return self.model.get_base_model()

    @cached_property
    def bare(self) -> PreTrainedModel:
        """The backbone as it is when it is first asked for, without anything of the package."""
        setting, now = self.setting, self.backbone.state_dict()
        bare = pristine(setting.family, setting.dtype, setting.attention)
        dtype = self.backbone.dtype
        before = bare.state_dict()
        if bare.dtype == dtype and all(torch.equal(before[name], value) for name, value in now.items()):
            return bare
        bare = copy.deepcopy(bare).to(dtype)
        bare.load_state_dict(now)
        return bare

    @cached_property
    def precise(self) -> PreTrainedModel:
        """The same in fp32."""
        return copy.deepcopy(self.bare).float()

    def changed(self) -> None:
        """Forgets what the backbone was like."""
        for name in ("bare", "precise"):
            vars(self).pop(name, None)

    def prompt(self, name: str) -> Tensor | None:
        return vectors_of(self.model, name)

    @property
    def tolerance(self) -> float:
        """How far results may be apart, as a part of the largest number: rounding, in the backbone's dtype."""
        return {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[self.backbone.dtype]

    def require_close(self, what: str, got: Any, expected: Any, slack: float = 1.0) -> None:
        """Raises Unequal where two tensors are not of one shape, or differ by more than rounding, so many times."""
        got, expected = torch.as_tensor(got).detach().float(), torch.as_tensor(expected).detach().float()
        if got.shape != expected.shape:
            raise Unequal(f"{what}: shape {list(got.shape)}, not {list(expected.shape)}")
        # Half precision overflows in the backbone itself: where the oracle has no number, neither has the package.
        finite = expected.isfinite()
        require(torch.equal(got.isfinite(), finite), f"{what}: numbers and overflows stand in other places")
        got, expected = got[finite], expected[finite]
        if not got.numel():
            return
        error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-2))
        if not error <= slack * self.tolerance:
            raise Unequal(
                f"{what}: off by {error:.1e} of the largest number, {_shown(got)} and not {_shown(expected)}"
            )


def require(holds: Any, what: str) -> None:
    """Raises Unequal where something does not hold."""
    if not holds:
        raise Unequal(what)


def _shown(numbers: Tensor) -> str:
    return str([round(number, 4) for number in numbers.flatten()[:4].tolist()])


def snapshot(model: nn.Module) -> dict[str, str]:
    """What no call may change of a backbone: the bytes of its weights, its config, its hooks and its modes."""
    digest = hashlib.sha1()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode() + str(tensor.dtype).encode() + bytes([tensor.requires_grad]))
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for name, module in model.named_modules()
    ]
    config = model.config.to_dict() | {"attention": model.config._attn_implementation}
    return {
        "weights": digest.hexdigest(),
        "hooks": str(hooks),
        "modes": str([module.training for module in model.modules()]),
        "config": json.dumps(config, default=str, sort_keys=True),
        "generation config": json.dumps(
            model.generation_config.to_dict() if model.can_generate() else {}, default=str, sort_keys=True
        ),
    }


def require_unchanged(before: dict[str, str], model: nn.Module, what: str, free: tuple[str, ...] = ()) -> None:
    """Raises Unequal where a backbone is not as its snapshot says, but for what is `free` to change."""
    now = snapshot(model)
    for name in before:
        if before[name] != now[name] and name not in free:
            at = next(i for i, pair in enumerate(zip(before[name], now[name], strict=False)) if len(set(pair)) > 1)
            was, became = (text[max(at - 40, 0) : at + 40] for text in (before[name], now[name]))
            raise Unequal(f"{what} changed the backbone's {name}: {was!r} became {became!r}")

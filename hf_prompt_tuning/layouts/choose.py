"""Which layout a backbone gets: read from its config and signature, then checked on the first batch."""

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import PromptTuningError, first_line
from .base import IGNORED, Examples, Layout, Prompts
from .cached import CachedLayout
from .packed import PackedLayout
from .padded import PaddedLayout
from .traits import has_local_layers, is_recurrent, reaches, takes

logger = logging.getLogger(__name__)

NAMES = ("packed", "cached", "padded")
"""From the fastest to the one that every model can do."""

MAX_PACKED_TOKENS = 2048
MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")


@dataclass(frozen=True)
class Verdict:
    """What one layout can do for a backbone.

    Attributes:
        layout: None where it cannot be exact.
        reason: why not.
        certain: whether config and signature prove it exact; if not, it is used only after a check.
    """

    layout: Layout | None
    reason: str = ""
    certain: bool = True


def judge(name: str, backbone: PreTrainedModel, max_packed_tokens: int | None = None) -> Verdict:
    """Whether a layout is exact for a backbone, as it stands (attention implementation, checkpointing)."""
    if name == "padded":
        return Verdict(PaddedLayout())
    return _cached(backbone) if name == "cached" else _packed(backbone, max_packed_tokens)


def _cached(backbone: PreTrainedModel) -> Verdict:
    if not takes(backbone, "past_key_values"):
        return Verdict(None, "the model has no key-value cache")
    if backbone.is_activation_checkpointing:
        return Verdict(None, "activation checkpointing computes layers again, and a cache would be filled twice")
    # Some recurrent models start every sequence from an empty state, whatever the cache holds.
    return Verdict(CachedLayout(), certain=not is_recurrent(backbone))


def _packed(backbone: PreTrainedModel, max_packed_tokens: int | None) -> Verdict:
    config = backbone.config.get_text_config()
    if not takes(backbone, "position_ids"):
        return Verdict(None, "the model takes no position_ids")
    if is_recurrent(backbone):
        return Verdict(None, "the model is recurrent: no mask keeps one example's state from the next")
    if getattr(config, "alibi", False):
        return Verdict(None, "the model's ALiBi counts columns, not positions")
    if has_local_layers(backbone):
        return Verdict(None, "the model's local attention counts columns, not positions")
    if backbone.config._attn_implementation not in MASKED_ATTENTION:
        return Verdict(None, f"{backbone.config._attn_implementation} takes no mask of our own")
    kinds = reaches(backbone)
    budget = max_packed_tokens or MAX_PACKED_TOKENS
    if (limit := getattr(config, "max_position_embeddings", None)) is not None:
        # Some models (GPT-J, CodeGen) cut their own causal mask from a buffer of that many columns.
        budget = min(budget, limit)
    # A mask for each kind of layer, but where the only kind is what every model has.
    as_dict = list(kinds) != ["full_attention"]
    return Verdict(PackedLayout(budget, kinds, as_dict))


def choose(
    name: str,
    backbone: PreTrainedModel,
    max_packed_tokens: int | None,
    check: tuple[Prompts, Examples] | None,
) -> Layout:
    """The layout of that name, or the fastest that is exact.

    Args:
        name: "auto", or one of `NAMES`.
        backbone: a causal model.
        max_packed_tokens: a packed row's token budget, default `MAX_PACKED_TOKENS`.
        check: a batch on which the choice is compared with `padded`; None to trust config and signature alone.

    Raises:
        PromptTuningError: no such layout, or one by name that is not exact for this backbone.
    """
    if name not in ("auto", *NAMES):
        raise PromptTuningError(f"layout is {name!r}; give auto, {', '.join(NAMES)}.")
    for candidate in NAMES if name == "auto" else (name,):
        verdict = judge(candidate, backbone, max_packed_tokens)
        reason = verdict.reason
        if verdict.layout is not None and candidate != "padded":
            if check is not None:
                reason = disagreement(verdict.layout, backbone, *check)
            elif not verdict.certain and name == "auto":
                reason = "it would have to be checked, and check_layout is off"
        if not reason:
            return verdict.layout
        if name != "auto":
            raise PromptTuningError(
                f"layout {name!r} is not exact for {type(backbone).__name__}: {reason}. Use layout 'auto' or 'padded'."
            )
        log = logger.info if verdict.layout is None else logger.warning
        log("The %s layout is not used for %s: %s.", candidate, type(backbone).__name__, reason)
    raise AssertionError("padded is exact for every model")


def disagreement(layout: Layout, backbone: nn.Module, prompts: Prompts, examples: Examples) -> str:
    """What differs between a layout and `padded` on two short rows of a batch; an empty string if nothing does.

    Loss and prompt gradient are compared; the prompts' own gradients are left alone. It costs less than a step.
    """
    labelled = (examples.labels != IGNORED).any(1).nonzero()[:, 0]
    rows = labelled[examples.mask[labelled].sum(1).argsort(stable=True)[:2]]
    if not len(rows):
        return ""
    prompts, examples = prompts.select(rows), examples.select(rows)
    half = examples.embeds.dtype != torch.float32 or torch.is_autocast_enabled(examples.embeds.device.type)
    tolerance = 5e-2 if half else 1e-3
    try:
        loss, gradient = _loss_and_gradient(layout, backbone, prompts, examples)
    except Exception as error:  # whatever a model's code raises here, `padded` goes on
        return f"{type(error).__name__}: {first_line(error)}"
    expected_loss, expected = _loss_and_gradient(PaddedLayout(), backbone, prompts, examples)
    for what, got, right in (("loss", loss, expected_loss), ("prompt gradient", gradient, expected)):
        error = float((got - right).abs().max() / right.abs().max().clamp(min=1e-12))
        if not error <= tolerance:
            return f"its {what} differs from the padded layout's by {error:.1e}"
    return ""


def _loss_and_gradient(
    layout: Layout, backbone: nn.Module, prompts: Prompts, examples: Examples
) -> tuple[Tensor, Tensor]:
    # A caller's inference mode would forbid gradients of what was made in it, so the embeddings are copied out of it.
    with torch.inference_mode(False), torch.enable_grad():
        examples = replace(examples, embeds=examples.embeds.detach().clone())
        vectors = tuple(v.detach().clone().requires_grad_() for v in prompts.vectors)
        found = layout.labelled_logits(backbone, Prompts(vectors, prompts.of), examples)
        loss = torch.nn.functional.cross_entropy(found.logits.float(), found.targets)
        wanted = [v for v in vectors if len(v)]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
    return loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None] or [loss.detach()[None]])

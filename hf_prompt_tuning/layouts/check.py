"""Check that a layout gives the same results as `padded`, on rows of the vocabulary's tokens, before it is used.

The batch itself may show no difference: it may have no labels, or one token a row. Some models lose their state
between two passes and still get one token a row right. The rows here have several tokens, different lengths, and all
labels.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import first_line
from .base import IGNORED, Candidates, Examples, Layout, Prompts, token_nll
from .padded import PaddedLayout
from .traits import max_positions

Embed = Callable[[Tensor], Tensor]
"""Map token ids [B, T] to embedded tokens [B, T, H]."""
Figures = dict[str, Tensor]

LENGTHS, SHORT, SOURCES, WORDS = (9, 5), (2, 2), (6, 4, 4), (1, 3, 2)
"""Lengths of the rows, of rows that leave one token after the prompt, of the sources, and of the words after them."""
TOLERANCE, THOROUGH_TOLERANCE, HALF_TOLERANCE, HALF_GRADIENT_TOLERANCE = 1e-3, 1e-5, 5e-2, 2e-1
"""Of the largest number. torch's fused attention on a CPU rounds an OPT's gradients in bf16 by 7e-2 of it."""


def disagreement(
    layout: Layout, backbone: nn.Module, embed: Embed, prompts: tuple[Tensor, ...], thorough: bool = False
) -> str:
    """Return how a layout differs from `padded`, or an empty string if it does not.

    The loss of each token and the gradient of the prompts ([P, H] each, P of 1 or more) are compared. Of prompts that
    leave the backbone no positions for the trials' rows, the first vectors are taken. The prompts' `.grad` is not
    changed. The check costs less than a training step. `thorough` also checks rows of one token, and
    words after texts: for a layout that only this check can prove exact.
    """
    embed = _same_each_time(embed)
    trials = [partial(_losses, lengths=LENGTHS)]
    if thorough:
        trials += [partial(_losses, lengths=SHORT), _scores]
    # Tensors made in a caller's inference mode take no gradients, so the prompts are copied outside it.
    with torch.inference_mode(False), torch.enable_grad():
        prompts = tuple(vectors[: _room(backbone)].detach().clone().requires_grad_() for vectors in prompts)
        for trial in trials:
            try:
                figures = trial(layout, backbone, embed, prompts)
            except Exception as error:  # whatever the model's code raises, `padded` still works
                return f"{type(error).__name__}: {first_line(error)}"
            reference = trial(PaddedLayout(), backbone, embed, prompts)
            for name, expected in reference.items():
                tolerance = _tolerance(name, embed, prompts[0].device, thorough)
                error = float((figures[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
                if not error <= tolerance:
                    return f"its {name} differs from the padded layout's by {error:.1e}"
    return ""


def _same_each_time(embed: Embed) -> Embed:
    """Return an embedding that gives the same ids the same vectors, also where a hook adds noise (NEFTune)."""
    known: dict[tuple, Tensor] = {}

    def remembered(ids: Tensor) -> Tensor:
        key = tuple(ids.shape), tuple(ids.flatten().tolist())
        if key not in known:
            known[key] = embed(ids)
        return known[key]

    return remembered


def _room(backbone: nn.Module) -> int | None:
    """Return how many vectors may stand in front of the rows of a trial; None for any number."""
    limit = max_positions(backbone)
    return None if limit is None else max(limit - max(LENGTHS), 1)


def _tolerance(name: str, embed: Embed, device: torch.device, thorough: bool) -> float:
    dtype = embed(torch.zeros(1, 1, dtype=torch.long, device=device)).dtype
    if dtype != torch.float32 or torch.is_autocast_enabled(device.type):
        return HALF_GRADIENT_TOLERANCE if name == "prompt gradient" else HALF_TOLERANCE
    return THOROUGH_TOLERANCE if thorough else TOLERANCE


def _losses(
    layout: Layout, backbone: nn.Module, embed: Embed, prompts: tuple[Tensor, ...], lengths: tuple[int, ...]
) -> Figures:
    texts = _texts(backbone, lengths, prompts[0].device)
    examples = _examples(embed, texts)
    predictions = layout.labelled_logits(backbone, _in_turn(prompts, len(texts)), examples)
    # Each token occurs in one place only, so sorting by token gives every layout's losses the same order.
    losses = token_nll(predictions.logits, predictions.targets)[predictions.targets.argsort(stable=True)]
    gradients = torch.autograd.grad(losses.sum(), prompts, allow_unused=True)
    flat = [torch.zeros(1) if gradient is None else gradient.flatten() for gradient in gradients]
    return {"loss": losses.detach(), "prompt gradient": torch.cat([gradient.to(losses.device) for gradient in flat])}


def _scores(layout: Layout, backbone: nn.Module, embed: Embed, prompts: tuple[Tensor, ...]) -> Figures:
    texts = _texts(backbone, SOURCES + WORDS, prompts[0].device)
    sources, words = texts[: len(SOURCES)], texts[len(SOURCES) :]
    candidates = Candidates(tuple(words), tuple(embed(ids[None])[0] for ids in words))
    in_turn = _in_turn(prompts, len(sources))
    with torch.no_grad():
        return {"score": layout.candidate_scores(backbone, in_turn, _examples(embed, sources), candidates)}


def _texts(backbone: nn.Module, lengths: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Return rows of the given lengths. Their token ids come from all over the vocabulary, and none occurs twice."""
    vocabulary, count = backbone.get_input_embeddings().num_embeddings, sum(lengths)
    ids = torch.arange(count, device=device) * max(vocabulary // count, 1) % vocabulary
    return list(ids.flip(0).split(list(lengths)))


def _examples(embed: Embed, texts: list[Tensor]) -> Examples:
    labels = pad_sequence(texts, batch_first=True, padding_value=IGNORED)
    return Examples(embed(labels.clamp(min=0)).detach(), labels != IGNORED, labels)


def _in_turn(prompts: tuple[Tensor, ...], rows: int) -> Prompts:
    """Assign the prompts to the rows in turn."""
    return Prompts(prompts, torch.arange(rows, device=prompts[0].device) % len(prompts))

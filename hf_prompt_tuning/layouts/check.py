"""Whether a layout gives what `padded` gives, tried on rows of the vocabulary's tokens before it is used.

The rows are not the batch's, in which there may be nothing to see: no label, or one token a row, which some models
get right that lose their state between two passes. These are of several tokens, of different lengths, all labelled.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import first_line
from .base import IGNORED, Candidates, Examples, Layout, Prompts
from .padded import PaddedLayout

Embed = Callable[[Tensor], Tensor]
"""From token ids [B, T] to what a batch has of them, [B, T, H]."""
Figures = dict[str, Tensor]

LENGTHS, SHORT, SOURCES, WORDS = (9, 5), (2, 2), (6, 4, 4), (1, 3, 2)
"""Of the rows; of rows that leave one token a row behind the prompt; of texts and of the words behind them."""
TOLERANCE, THOROUGH_TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-5, 5e-2


def disagreement(
    layout: Layout, backbone: nn.Module, embed: Embed, prompts: tuple[Tensor, ...], thorough: bool = False
) -> str:
    """What differs between a layout and `padded`; an empty string if nothing does.

    The loss of each token and the prompts' gradient are compared; the prompts' own gradients are left alone. It costs
    less than a step.

    Args:
        layout: for this backbone.
        backbone: a causal model.
        embed: the backbone's embedding.
        prompts: one or several, [P, H] each, P of 1 or more.
        thorough: for a layout that nothing else proves: also rows of one token, and words behind texts.
    """
    trials = [partial(_losses, lengths=LENGTHS)]
    if thorough:
        trials += [partial(_losses, lengths=SHORT), _scores]
    # A caller's inference mode would forbid gradients of what was made in it, so the prompts are copied out of it.
    with torch.inference_mode(False), torch.enable_grad():
        prompts = tuple(vectors.detach().clone().requires_grad_() for vectors in prompts)
        for trial in trials:
            try:
                got = trial(layout, backbone, embed, prompts)
            except Exception as error:  # whatever a model's code raises here, `padded` goes on
                return f"{type(error).__name__}: {first_line(error)}"
            right = trial(PaddedLayout(), backbone, embed, prompts)
            tolerance = _tolerance(embed, prompts[0].device, thorough)
            for what, expected in right.items():
                error = float((got[what] - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
                if not error <= tolerance:
                    return f"its {what} differs from the padded layout's by {error:.1e}"
    return ""


def _tolerance(embed: Embed, device: torch.device, thorough: bool) -> float:
    dtype = embed(torch.zeros(1, 1, dtype=torch.long, device=device)).dtype
    if dtype != torch.float32 or torch.is_autocast_enabled(device.type):
        return HALF_TOLERANCE
    return THOROUGH_TOLERANCE if thorough else TOLERANCE


def _losses(
    layout: Layout, backbone: nn.Module, embed: Embed, prompts: tuple[Tensor, ...], lengths: tuple[int, ...]
) -> Figures:
    texts = _texts(backbone, lengths, prompts[0].device)
    examples = _examples(embed, texts)
    found = layout.labelled_logits(backbone, _dealt_out(prompts, len(texts)), examples)
    losses = torch.nn.functional.cross_entropy(found.logits.float(), found.targets, reduction="none")
    # Each token stands in one place, so layouts that give them in another order are told apart from none.
    losses = losses[found.targets.argsort(stable=True)]
    gradients = torch.autograd.grad(losses.sum(), prompts, allow_unused=True)
    flat = [torch.zeros(1) if gradient is None else gradient.flatten() for gradient in gradients]
    return {"loss": losses.detach(), "prompt gradient": torch.cat([gradient.to(losses.device) for gradient in flat])}


def _scores(layout: Layout, backbone: nn.Module, embed: Embed, prompts: tuple[Tensor, ...]) -> Figures:
    texts = _texts(backbone, SOURCES + WORDS, prompts[0].device)
    sources, words = texts[: len(SOURCES)], texts[len(SOURCES) :]
    candidates = Candidates(tuple(words), tuple(embed(ids[None])[0] for ids in words))
    prompts_of = _dealt_out(prompts, len(sources))
    with torch.no_grad():
        return {"score": layout.candidate_scores(backbone, prompts_of, _examples(embed, sources), candidates)}


def _texts(backbone: nn.Module, lengths: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Rows of so many token ids, from all over the vocabulary, none of them twice."""
    vocabulary, count = backbone.get_input_embeddings().num_embeddings, sum(lengths)
    ids = torch.arange(count, device=device) * max(vocabulary // count, 1) % vocabulary
    return list(ids.flip(0).split(list(lengths)))


def _examples(embed: Embed, texts: list[Tensor]) -> Examples:
    labels = pad_sequence(texts, batch_first=True, padding_value=IGNORED)
    return Examples(embed(labels.clamp(min=0)).detach(), labels != IGNORED, labels)


def _dealt_out(prompts: tuple[Tensor, ...], rows: int) -> Prompts:
    """The prompts in turn, one for each row."""
    return Prompts(prompts, torch.arange(rows, device=prompts[0].device) % len(prompts))

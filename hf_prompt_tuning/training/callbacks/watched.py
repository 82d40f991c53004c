"""Get the prompt-tuning model out of a Trainer's wrappers, its prompt vectors, and the mean norm of its vocabulary."""

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import TrainerCallback

from ...errors import PromptTuningError
from ...layouts.sharing import whole
from ...models.soft_prompts import SoftPrompts

SAMPLED_WORDS = 4096


def watched(model: nn.Module, callback: TrainerCallback) -> SoftPrompts:
    """Return a Trainer's model without its wrappers. Raise PromptTuningError if it holds no soft prompt."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    if not isinstance(model, SoftPrompts):
        raise PromptTuningError(
            f"{type(callback).__name__} is used with a {type(model).__name__}; it watches a soft prompt. "
            "Give the Trainer a model from get_prompt_tuning_model."
        )
    return model


def prompt_vectors(model: SoftPrompts, name: str | None = None) -> Tensor:
    """Return a copy of a prompt's vectors, [P, H]; default: the active prompt.

    With ZeRO-3, every process must call this.
    """
    with model.whole_prompt(name):
        return model.prompt_encoder[model.active_adapter if name is None else name].embedding.weight.detach().clone()


def mean_word_norm(embed: nn.Embedding) -> float:
    """Return the mean norm of the vocabulary's vectors as the backbone uses them; of a sample if there are many."""
    ids = torch.linspace(0, embed.num_embeddings - 1, min(embed.num_embeddings, SAMPLED_WORDS))
    with whole(embed):
        return embed.forward(ids.long().to(embed.weight.device)).float().norm(dim=1).mean().item()

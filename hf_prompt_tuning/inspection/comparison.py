"""Compare the prompts of several tasks, and rank them as starts for one another (SPoT, Vu et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import PromptTuningError
from ..models.vocabulary import cosine_matrix


@dataclass
class PromptComparison:
    """The similarity of G prompts of one backbone, taken as embeddings of their tasks.

    All matrices are [G, G], in the order of `names`.

    Attributes:
        names: names of the prompts.
        mean_cosine: cosine of the prompts' mean vectors.
        pairwise_cosine: mean cosine over all pairs of a vector of the one prompt and a vector of the other. A prompt's
            value with itself is below 1, unless all its vectors have the same direction.
        transfer: for each prompt, by name, the other prompts, most similar first (by `mean_cosine`). SPoT starts a
            task's prompt from the prompt of the most similar task.
    """

    names: list[str]
    mean_cosine: list[list[float]]
    pairwise_cosine: list[list[float]]
    transfer: dict[str, list[str]]


def compare_vectors(prompts: Mapping[str, Tensor]) -> PromptComparison:
    """Compare the prompts of several tasks on one backbone, name -> [P, H]; P may differ.

    Raise PromptTuningError for different widths: such prompts belong to different backbones.
    """
    names = list(prompts)
    if len({vectors.shape[1] for vectors in prompts.values()}) > 1:
        widths = ", ".join(f"{name}: {vectors.shape[1]}" for name, vectors in prompts.items())
        raise PromptTuningError(f"the prompts have different widths ({widths}); compare prompts of one backbone.")
    means = [vectors.float().mean(0, keepdim=True) for vectors in prompts.values()]
    mean_cosine = [[float(cosine_matrix(a, b)) for b in means] for a in means]
    pairwise = [[float(cosine_matrix(a, b).mean()) for b in prompts.values()] for a in prompts.values()]
    transfer = {}
    for i, name in enumerate(names):
        others = [j for j in range(len(names)) if j != i]
        transfer[name] = [names[j] for j in sorted(others, key=lambda j: -mean_cosine[i][j])]
    return PromptComparison(names, mean_cosine, pairwise, transfer)

"""Compare a prompt's vectors with the vocabulary: nearest words, norms and cosines."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..layouts.sharing import whole

CHUNK = 16384
SPARE = 8
"""How many more candidates than asked for are kept. They are found by products, whose rounding may swap close
candidates, and sorted exactly afterwards.
"""


class NearestTokens(NamedTuple):
    """Hold the k tokens nearest to each of P vectors, nearest first.

    Attributes:
        ids: [P, k] long.
        cosines: [P, k] fp32.
        distances: [P, k] fp32, Euclidean.
    """

    ids: Tensor
    cosines: Tensor
    distances: Tensor


def vocabulary_size(embed: nn.Embedding, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens have both a vector and a text. Embedding matrices are often padded with unused rows."""
    return min(embed.num_embeddings, len(tokenizer))


def nearest_words(
    vectors: Tensor, embed: nn.Embedding, tokenizer: PreTrainedTokenizerBase, how_many: int = 3
) -> list[list[list]]:
    """Return the tokens whose embeddings have the highest cosine with each vector (Lester et al. 2021, section 7).

    For vectors [P, H], return P lists of `how_many` [text, cosine], nearest first.
    """
    nearest = nearest_tokens(vectors, embed, vocabulary_size(embed, tokenizer), how_many)
    return [
        [[tokenizer.decode([i]), round(cosine, 4)] for i, cosine in zip(ids, cosines, strict=True)]
        for ids, cosines in zip(nearest.ids.tolist(), nearest.cosines.tolist(), strict=True)
    ]


@torch.no_grad()
def nearest_tokens(
    vectors: Tensor, embed: nn.Embedding, size: int, how_many: int, by_distance: bool = False
) -> NearestTokens:
    """Return the tokens with the highest cosine with each vector of [P, H], or with the smallest Euclidean distance.

    The output of the embedding module is compared, because the model sees that; only the first `size` tokens.
    """
    vectors = vectors.detach().float()
    directions = nn.functional.normalize(vectors, dim=1)
    best = torch.empty(len(vectors), 0, device=vectors.device)
    ids = torch.empty(len(vectors), 0, dtype=torch.long, device=vectors.device)
    with whole(embed):
        for start in range(0, size, CHUNK):
            chunk = torch.arange(start, min(start + CHUNK, size), device=vectors.device)
            rows = embed.forward(chunk).float()
            if by_distance:  # minus the squared distance, without the square of the vector, which all tokens share
                scores = 2 * vectors @ rows.T - rows.square().sum(1)
            else:
                scores = directions @ nn.functional.normalize(rows, dim=1).T
            best = torch.cat([best, scores], dim=1)
            ids = torch.cat([ids, chunk.expand(len(vectors), -1)], dim=1)
            best, order = best.topk(min(how_many + SPARE, best.shape[1]), dim=1)
            ids = ids.gather(1, order)
        rows = embed.forward(ids).float()
        cosines = nn.functional.cosine_similarity(rows, vectors[:, None], dim=2)
        distances = (rows - vectors[:, None]).norm(dim=2)
    order = (distances if by_distance else -cosines).argsort(dim=1, stable=True)[:, :how_many]
    return NearestTokens(*(x.gather(1, order) for x in (ids, cosines, distances)))


@torch.no_grad()
def vocabulary_norms(embed: nn.Embedding, size: int) -> Tensor:
    """Return the norms of the first `size` tokens' embeddings, [size] fp32, on the CPU, in ascending order."""
    with whole(embed):
        ids = torch.arange(size, device=embed.weight.device)
        norms = [embed.forward(chunk).float().norm(dim=1) for chunk in ids.split(CHUNK)]
    return torch.cat(norms).cpu().sort().values


def percentiles(values: Tensor, among: Tensor) -> Tensor:
    """Return the share of `among` (ascending) that is less than each of `values`, in percent."""
    return 100 * torch.searchsorted(among, values.contiguous()).float() / len(among)


def cosine_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of every vector of [P, H] with every vector of [P', H]: [P, P']."""
    return nn.functional.normalize(first.float(), dim=1) @ nn.functional.normalize(second.float(), dim=1).T

"""What was learned: the vocabulary's words that a prompt's vectors are nearest to."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .sharding import whole

CHUNK = 16384


def nearest_words(
    vectors: Tensor, embed: nn.Embedding, tokenizer: PreTrainedTokenizerBase, how_many: int = 3
) -> list[list[list]]:
    """The tokens whose embeddings have the highest cosine with each vector (Lester et al. 2021, section 7).

    Args:
        vectors: [P, H].
        embed: the backbone's input embedding module.
        tokenizer: gives the tokens' texts.
        how_many: words for each position.

    Returns:
        P lists of [text, cosine], nearest first.
    """
    directions = nn.functional.normalize(vectors.float(), dim=1)
    best = torch.empty(len(vectors), 0, device=vectors.device)
    ids = torch.empty(len(vectors), 0, dtype=torch.long, device=vectors.device)
    # A vocabulary may have more rows than the tokenizer has tokens.
    size = min(embed.num_embeddings, len(tokenizer))
    with whole(embed):
        for start in range(0, size, CHUNK):
            chunk = torch.arange(start, min(start + CHUNK, size), device=vectors.device)
            cosines = directions @ nn.functional.normalize(embed.forward(chunk).float(), dim=1).T
            best = torch.cat([best, cosines], dim=1)
            ids = torch.cat([ids, chunk.expand(len(vectors), -1)], dim=1)
            best, order = best.topk(min(how_many, best.shape[1]), dim=1)
            ids = ids.gather(1, order)
    texts = [[tokenizer.decode([i]) for i in row] for row in ids.tolist()]
    return [
        [[text, round(cosine, 4)] for text, cosine in zip(words, row, strict=True)]
        for words, row in zip(texts, best.tolist(), strict=True)
    ]

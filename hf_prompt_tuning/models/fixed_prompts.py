"""Prompts that a model holds beside its adapters: they do not train, and are not saved with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True)
class FixedPrompt:
    """A prompt of fixed tokens, of fixed vectors, or of both: `[tokens | vectors]`.

    Rows of a call may begin with the tokens or not, as with the head of any prompt.

    Attributes:
        head_ids: [h] long, the tokens; none for a prompt of vectors at the start.
        vectors: [P, H] fp32; none for a text.
    """

    head_ids: Tensor
    vectors: Tensor

    def __len__(self) -> int:
        return len(self.head_ids) + len(self.vectors)

    @classmethod
    def of_text(cls, token_ids: list[int], width: int) -> "FixedPrompt":
        """Return the prompt that is a text of these tokens, for a backbone whose embeddings are H = `width` wide."""
        return cls(torch.tensor(token_ids, dtype=torch.long), torch.zeros(0, width))


class FixedPromptsMixin:
    """The part of `SoftPrompts` that holds fixed prompts by name. A row names one in `adapter_names`."""

    _fixed_prompts: Mapping[str, FixedPrompt] = MappingProxyType({})

    def fixed_vectors(self, name: str) -> Tensor:
        """Return the vectors of a fixed prompt without its tokens, [P, H] fp32."""
        return self._fixed_prompts[name].vectors

    def set_fixed_prompt(self, name: str, prompt: FixedPrompt | None) -> None:
        """Hold a prompt under a name, in place of one with that name. None removes it."""
        # A new mapping each time, because other threads read the present one.
        others = {key: value for key, value in self._fixed_prompts.items() if key != name}
        self._fixed_prompts = others if prompt is None else others | {name: prompt}

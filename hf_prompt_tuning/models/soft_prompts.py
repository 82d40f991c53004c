"""Give each row of a batch its prompt: the code that both model classes share."""

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.template import PromptTemplate
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts import Candidates, Examples, LabelledLogits, Prompts
from ..layouts.base import IGNORED, token_nll
from ..layouts.traits import has_per_layer_inputs, max_positions, per_layer_inputs, steady_positions, token_scale
from ..prompts.info import PromptInfo
from ..sharding import embedded, embedding_device
from ..stand_ins import ByContext
from .batch_checks import check_candidates, check_tensor
from .held_prompts import HeldPrompts
from .untrainable import untrainable

logger = logging.getLogger(__name__)

NO_PROMPT = "__base__"
"""PEFT's name for a row without an adapter."""

_DISABLED = ByContext("disable_adapter", False)
_REPLACED: ByContext[Tensor | None] = ByContext("replaced_prompt", None)


class SoftPrompts(HeldPrompts):
    """Base of both model classes: makes prompts, freezes the backbone, and prepares prompts and batches for a layout.

    A prompt is a PEFT adapter. Several prompts on one backbone are several adapters, and the active one is used.
    """

    _warned_of_pads = _warned_of_positions = False

    @property
    def prompt(self) -> Tensor:
        """Return the active prompt's vectors, [P, H] in fp32; [0, H] within `disable_adapter()`."""
        if self._adapters_disabled:
            return self._no_vectors()
        if (replaced := _REPLACED.of(self)) is not None:
            return replaced
        if not self.prompt_info:
            raise PromptTuningError(
                "the model has no prompt; add one with add_adapter or load_adapter, and make it the active one with "
                "set_adapter."
            )
        return self.prompt_encoder[self.active_adapter].embedding.weight

    def _no_vectors(self) -> Tensor:
        """Return [0, H], the vectors of a row without a prompt."""
        return torch.zeros(0, self.word_embeddings.embedding_dim, device=embedding_device(self.word_embeddings))

    def replaced_prompt(self, vectors: Tensor) -> AbstractContextManager[None]:
        """Use `vectors` ([P', H], any P') in place of the active prompt within this context, in this thread only."""
        return _REPLACED.set_to(vectors, self)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Run the backbone without any prompt within this context, even for rows that name a prompt.

        It holds only for the thread (or the asyncio task) that enters it. Other threads keep their prompts, including
        a thread that is started within the context.
        """
        return _DISABLED.set_to(True, self)

    @property
    def _adapters_disabled(self) -> bool:
        return _DISABLED.of(self)

    @_adapters_disabled.setter
    def _adapters_disabled(self, disabled: bool) -> None:
        # PEFT's constructor sets False, the default here. PEFT's other methods that set it are overridden by ours.
        if disabled:
            raise AttributeError("use disable_adapter(), which leaves other threads their prompts")

    @property
    def info(self) -> PromptInfo:
        """Return the active prompt's description (template, metrics, …), which is saved with it."""
        return self.prompt_info[self.active_adapter]

    def room(self, name: str | None = None) -> int | None:
        """Return how many text tokens a row has positions for behind a prompt (in an encoder-decoder, in the encoder).

        Args:
            name: the prompt's name; default the active one.

        Returns:
            None if the backbone has no limit.
        """
        limit = max_positions(self.base_model)
        config = self.peft_config[self.active_adapter if name is None else name]
        return None if limit is None else limit - config.num_virtual_tokens

    def row_encoder(
        self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate | None = None
    ) -> PromptTokenizer:
        """Return what turns rows into token ids for this backbone.

        Args:
            tokenizer: the backbone's tokenizer.
            template: turns a row into text; default: the active prompt's template, which must be set.
        """
        template = self.info.template if template is None else template
        return PromptTokenizer(template, tokenizer, self.config.is_encoder_decoder)

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Make the named prompts trainable, or not."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.prompt_encoder[name].requires_grad_(requires_grad)

    def _prompts(self, batch: int, adapter_names: str | Sequence[str] | None) -> Prompts:
        """Return the prompts of `batch` rows: the active one, or the named ones (`"__base__"`: none, as in PEFT)."""
        if adapter_names is None:
            name = NO_PROMPT if self._adapters_disabled else self.active_adapter
            vectors = self.prompt
            none = torch.zeros(batch, dtype=torch.long, device=vectors.device)
            return Prompts((self._as_tokens(vectors),), none, (name,))
        if isinstance(adapter_names, str):
            adapter_names = [adapter_names] * batch
        if len(adapter_names) != batch:
            raise PromptTuningError(f"adapter_names has {len(adapter_names)} names for {batch} rows; give one a row.")
        distinct = list(dict.fromkeys(adapter_names))
        if unknown := [name for name in distinct if name not in self.prompt_encoder and name != NO_PROMPT]:
            raise PromptTuningError(
                f"adapter_names has {unknown[0]!r}; there are {', '.join(map(repr, self.prompt_encoder))} "
                f"and {NO_PROMPT!r} for no prompt."
            )
        if self._adapters_disabled:
            return self._prompts(batch, None)
        vectors = [
            self._no_vectors() if name == NO_PROMPT else self.prompt_encoder[name].embedding.weight
            for name in distinct
        ]
        of = torch.tensor([distinct.index(name) for name in adapter_names], device=vectors[0].device)
        return Prompts(tuple(map(self._as_tokens, vectors)), of, tuple(distinct))

    def _inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        mask: Tensor | None,
        labels: Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> tuple[Prompts, Examples]:
        """Convert a caller's batch that passed `check_texts` to the form that layouts take."""
        if getattr(self, "_is_replica", False):
            raise PromptTuningError(
                "the model runs in nn.DataParallel, which puts outputs of its copies together by their first "
                "dimension, and ours are not all by rows. Start a process for each GPU, with accelerate launch or "
                "torchrun."
            )
        if mask is None and input_ids is not None:
            self._warn_of_pads(input_ids)
        embeds = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        if inputs_embeds is not None and has_per_layer_inputs(self.base_model):
            raise PromptTuningError(
                f"inputs_embeds are given, and {type(self.base_model).__name__} has per-layer embeddings, which are "
                "looked up by token; give input_ids."
            )
        prompts, examples = self._prompts(len(embeds), adapter_names), Examples.align(embeds, mask, labels)
        self._warn_of_changing_positions(prompts, examples)
        if labels is not None and not all(map(len, prompts.vectors)):
            # Without a prompt, no token stands before the first token to predict it.
            alone = examples.labels.clone()
            alone[prompts.lengths() == 0, 0] = IGNORED
            examples = dataclasses.replace(examples, labels=alone)
        return prompts, examples

    def _candidates(self, token_ids: Sequence[Sequence[int]]) -> Candidates:
        check_candidates(token_ids)
        ids = tuple(torch.as_tensor(words, device=embedding_device(self.word_embeddings)) for words in token_ids)
        return Candidates(ids, tuple(self._embed(words[None], "a candidate has")[0] for words in ids))

    def _embed(self, input_ids: Tensor, what: str = "input_ids have") -> Tensor:
        """Embed token ids, [B, T, H]. If the backbone has per-layer vectors, append them in the last dimension."""
        check_tensor(input_ids, self.word_embeddings.num_embeddings, what)
        embeds = embedded(self.word_embeddings, input_ids)
        if (scale := token_scale(self.base_model)) != 1.0:
            embeds = embeds * scale
        if not has_per_layer_inputs(self.base_model):
            return embeds
        return torch.cat([embeds, per_layer_inputs(self.base_model, input_ids).to(embeds.dtype)], dim=-1)

    def _as_tokens(self, vectors: Tensor) -> Tensor:
        """Give a prompt the same form as `_embed`: a virtual token gets the per-layer vectors of the pad token."""
        if not has_per_layer_inputs(self.base_model):
            return vectors
        pad = self.base_model.config.get_text_config().pad_token_id or 0
        ids = torch.full((1, len(vectors)), pad, device=vectors.device)
        return torch.cat([vectors, per_layer_inputs(self.base_model, ids)[0].to(vectors.dtype)], dim=-1)

    def _warn_of_pads(self, input_ids: Tensor) -> None:
        """Warn once, as transformers does, if rows without a mask look padded. Their pads are read as text."""
        pad = getattr(self.base_model.config.get_text_config(), "pad_token_id", None)
        if (
            not self._warned_of_pads
            and pad is not None
            and bool((input_ids[:, [-1, 0][: input_ids.shape[1]]] == pad).any())
        ):
            self._warned_of_pads = True
            logger.warning(
                "attention_mask is not given, and rows begin or end with the pad token, which is read as text. Give "
                "the tokenizer's attention_mask."
            )

    def _warn_of_changing_positions(self, prompts: Prompts, examples: Examples) -> None:
        """Warn once if a row is so long that the backbone's RoPE depends on the longest row of a batch."""
        limit = steady_positions(self.base_model)
        if limit is None or self._warned_of_positions:
            return
        longest = int((prompts.lengths() + examples.mask.sum(1)).max())
        if longest > limit:
            self._warned_of_positions = True
            logger.warning(
                "A row has %d tokens with its prompt, and beyond %d the rotary positions of %s change with a batch's "
                "longest row: a row's loss then depends on what else is in it. Shorten rows, or use batches of one.",
                longest,
                limit,
                type(self.base_model).__name__,
            )

    def _loss(
        self, predictions: LabelledLogits, num_items_in_batch: Tensor | int | None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Return the mean loss of the labelled tokens, or their summed loss divided by `num_items_in_batch`.

        Trainer gives `num_items_in_batch` with gradient accumulation.
        """
        check_tensor(predictions.targets, predictions.logits.shape[-1], "labels have")
        total = token_nll(predictions.logits, predictions.targets, label_smoothing).sum()
        if num_items_in_batch is None:
            num_items_in_batch = len(predictions.targets)
        # If nothing is labelled, on this process or on any, the loss is 0, not 0/0.
        loss = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        if self.training and torch.is_grad_enabled() and not loss.requires_grad and not self._adapters_disabled:
            return untrainable(loss, self.active_adapter)
        return loss

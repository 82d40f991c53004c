"""Give each row of a batch its prompt: the code that both model classes share."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.chat_tokenization import RowTemplate, row_tokenizer, with_own_chat_template
from ..data.heads import needs_system_turn
from ..data.processors import tokenizer_in
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts import Candidates, Examples, LabelledLogits, Prompts
from ..layouts.base import IGNORED, asks_for_router_scores, token_nll
from ..layouts.sharing import ByContext, embedded, embedding_device, is_sharded, whole
from ..layouts.traits import has_per_layer_inputs, max_positions, per_layer_inputs, steady_positions, token_scale
from .batch_checks import (
    NO_PROMPT,
    Targets,
    Texts,
    check_adapter_names,
    check_candidates,
    check_rooms,
    check_tensor,
    check_texts,
)
from .call_arguments import MEDIA, TOKEN_TYPES, CallArguments
from .fixed_prompts import FixedPromptsMixin
from .heads import RowHeads, row_heads
from .held_prompts import HeldPrompts
from .outputs import LabelledOutput, RankingOutput
from .pictures import check_sees, merges, with_pictures
from .untrainable import untrainable

logger = logging.getLogger(__name__)


_DISABLED = ByContext("disable_adapter", False)
_REPLACED: ByContext[Tensor | None] = ByContext("replaced_prompt", None)


class SoftPrompts(FixedPromptsMixin, HeldPrompts):
    """Base of both model classes: holds prompts, freezes the backbone, and prepares prompts and batches for a layout.

    A prompt is a PEFT adapter. Several prompts on one backbone are several adapters, and the active one is used.
    """

    _warned_of_pads = _warned_of_positions = _warned_of_doubled = _warned_of_routers = False

    @property
    def prompt(self) -> Tensor:
        """Return the active prompt's trained vectors, [P, H] in fp32; [0, H] within `disable_adapter()`.

        The fixed vectors of a head in front of them are not among them.
        """
        if self._adapters_disabled:
            return self._no_vectors()
        if (replaced := _REPLACED.of(self)) is not None:
            return replaced
        if not self.peft_config:
            raise PromptTuningError(
                "the model has no prompt; add one with add_adapter or load_adapter, and activate it with set_adapter."
            )
        return self.prompt_encoder[self.active_adapter].embedding.weight

    def _no_vectors(self) -> Tensor:
        """Return [0, H], the vectors of a row without a prompt."""
        return torch.zeros(0, self.word_embeddings.embedding_dim, device=embedding_device(self.word_embeddings))

    def room(self, name: str | None = None) -> int | None:
        """Return how many text tokens a row has positions for behind a prompt (in an encoder-decoder, in the encoder).

        Tokens of the prompt's head, with which a row may begin, do not count. `name` is the prompt's, default the
        active one. Return None if the backbone has no limit.
        """
        limit = max_positions(self.base_model)
        if limit is None or name == NO_PROMPT:
            return limit
        if name in self._fixed_prompts:
            return limit - len(self._fixed_prompts[name])
        config = self.peft_config[self.active_adapter if name is None else name]
        return limit - config.num_virtual_tokens - len(config.head)

    def row_encoder(
        self, tokenizer: PreTrainedTokenizerBase, template: RowTemplate | None = None, name: str | None = None
    ) -> PromptTokenizer:
        """Return what turns rows into token ids for a prompt of this model.

        The template turns a row into text; default the prompt's, which must be set. `name` is the prompt's, default
        the active one. In place of the tokenizer, a backbone's processor also reads pictures.

        Raise PromptTuningError if the prompt stands in the system turn, and the chat template writes another head than
        the prompt's; or for a processor, if the backbone's pictures are not put among texts exactly.
        """
        check_sees(self.base_model, tokenizer)
        name = self.active_adapter if name is None else name
        config = self.peft_config[name]
        template = self.prompt_info[name].template if template is None else template
        template = with_own_chat_template(template, tokenizer)
        always_system = needs_system_turn(config.prompt_position, template.chat, tokenizer_in(tokenizer), config.head)
        encoder = row_tokenizer(template, tokenizer, self.config.is_encoder_decoder, always_system)
        if encoder.pictures is not None and (known := self.prompt_info[name].data.get("picture_columns")):
            encoder.pictures.know(str(known).split(", "))
        return encoder

    def puts_pictures_in(self, names: Sequence[str]) -> bool:
        """Tell whether the arguments of these names are pictures and token types that every kind of call takes."""
        return merges(self.base_model) and all(MEDIA.search(name) or name in TOKEN_TYPES for name in names)

    def whole_prompt(self, name: str | None = None) -> AbstractContextManager[None]:
        """Gather a prompt's vectors within this context. ZeRO-3 shards them; every process must enter it.

        `name` is the prompt's, default the active one.
        """
        return whole(self.prompt_encoder[self.active_adapter if name is None else name].embedding)

    def replaced_prompt(self, vectors: Tensor) -> AbstractContextManager[None]:
        """Use `vectors` ([P', H], any P') in place of the active prompt within this context, in this thread only."""
        return _REPLACED.set_to(vectors, self)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Run the backbone without any prompt within this context, even for rows that name a prompt.

        It holds only for the thread (or the asyncio task) that enters it. Other threads keep their prompts, including
        a thread that is started within the context.
        """
        return _DISABLED.set_to(True, self)

    def enable_adapter(self) -> AbstractContextManager[None]:
        """Use prompts again within this context, which stands within `disable_adapter()`."""
        return _DISABLED.set_to(False, self)

    @property
    def _adapters_disabled(self) -> bool:
        return _DISABLED.of(self)

    @_adapters_disabled.setter
    def _adapters_disabled(self, disabled: bool) -> None:
        # PEFT's constructor sets False, the default here. PEFT's other methods that set it are overridden by ours.
        if disabled:
            raise AttributeError("use disable_adapter(), which leaves other threads their prompts")

    def _prompts(self, batch: int, adapter_names: str | Sequence[str] | None) -> Prompts:
        """Return the prompts of `batch` rows: the active one, or the named ones (`"__base__"`: none, as in PEFT)."""
        if isinstance(adapter_names, str):
            adapter_names = [adapter_names] * batch
        if adapter_names is not None:
            check_adapter_names(adapter_names, batch, (*self.prompt_encoder, *self._fixed_prompts))
        if adapter_names is None or self._adapters_disabled:
            names = [NO_PROMPT if self._adapters_disabled else self.active_adapter]
            vectors = [self._with_head(names[0], self.prompt)]
            of_row = torch.zeros(batch, dtype=torch.long, device=self.prompt.device)
        else:
            names = list(dict.fromkeys(adapter_names))
            vectors = [self._with_head(name, self._vectors_of(name)) for name in names]
            of_row = torch.tensor([names.index(name) for name in adapter_names], device=vectors[0].device)
        return Prompts(tuple(vectors), of_row, tuple(names))

    def _vectors_of(self, name: str) -> Tensor:
        """Return the vectors of a prompt without its head, [P, H]; [0, H] for no prompt."""
        if name == NO_PROMPT:
            return self._no_vectors()
        if name in self._fixed_prompts:
            return self._fixed_prompts[name].vectors.to(embedding_device(self.word_embeddings))
        return self.prompt_encoder[name].embedding.weight

    def _with_head(self, name: str, vectors: Tensor) -> Tensor:
        """Return a prompt's vectors as the backbone takes them, with the embeddings of its head's tokens in front."""
        vectors = as_tokens(self.base_model, vectors)
        head_ids = self._head_ids(name)
        if not len(head_ids):
            return vectors
        return torch.cat([embed(self.base_model, head_ids[None])[0].to(vectors.dtype), vectors])

    def _head_ids(self, name: str) -> Tensor:
        """Return the token ids of a prompt's head, [h] long; none for no prompt."""
        if name == NO_PROMPT:
            return torch.zeros(0, dtype=torch.long, device=embedding_device(self.word_embeddings))
        if name in self._fixed_prompts:
            return self._fixed_prompts[name].head_ids.to(embedding_device(self.word_embeddings))
        return self.prompt_encoder[name].head_ids

    def _heads(self, prompts: Prompts, texts: Texts) -> RowHeads | None:
        """Return the heads with which the rows of a call begin; None if no prompt of these rows has a head."""
        heads = [self._head_ids(name) for name in prompts.names]
        if not any(map(len, heads)):
            return None
        embeds = None
        if texts.inputs_embeds is not None:
            embeds = [vectors[: len(ids)] for vectors, ids in zip(prompts.vectors, heads, strict=True)]
        found = row_heads(prompts, heads, embeds, texts)
        if found.doubled and not self._warned_of_doubled:
            self._warned_of_doubled = True
            logger.warning(
                "A row begins with what its prompt stands behind, and then with its first token once more (a second "
                "BOS: a tokenizer and a chat template each write one). The second is read as text. Tokenize with "
                "add_special_tokens=False what has BOS already."
            )
        return found

    def count_head_tokens(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, adapter_names: Sequence[str] | None = None
    ) -> Tensor:
        """Return how many tokens of each row are those of its prompt's head, which take no room behind it: [B] long.

        Arguments and errors are those of `forward`.
        """
        texts = Texts(input_ids, attention_mask, None, adapter_names)
        heads = self._heads(self._prompts(len(input_ids), adapter_names), texts)
        return torch.zeros_like(input_ids[:, 0]) if heads is None else heads.taken.sum(1)

    def _examples(
        self, prompts: Prompts, texts: Texts, labels: Tensor | None = None, given: CallArguments | None = None
    ) -> Examples:
        """Convert texts that passed `check_texts`, without heads, to the form that layouts take.

        `given` is what the call gives beside them; pictures are put among the texts.
        """
        if getattr(self, "_is_replica", False):
            raise PromptTuningError(
                "the model runs in nn.DataParallel, which puts outputs of its copies together by their first "
                "dimension, and ours are not all by rows. Start a process for each GPU, with accelerate launch or "
                "torchrun."
            )
        if not self._warned_of_pads and texts.look_padded(self.base_model):
            self._warned_of_pads = True
            logger.warning(
                "attention_mask is not given, and rows begin or end with the pad token, which is read as text. Give "
                "the tokenizer's attention_mask."
            )
        embeds = self._embedded(texts, {} if given is None else given.media)
        beside = None if given is None else given.beside
        examples = Examples.align(embeds, texts.attention_mask, labels, beside)
        check_rooms(self.base_model, prompts, examples)
        self._warn_of_changing_positions(prompts, examples)
        return examples if labels is None else unlabel_first(prompts, examples)

    def _warn_of_changing_positions(self, prompts: Prompts, examples: Examples) -> None:
        """Warn once if a row is so long that the backbone's RoPE depends on the longest row of a batch."""
        limit = steady_positions(self.base_model)
        if limit is None or self._warned_of_positions:
            return
        longest = int((prompts.lengths() + examples.mask.sum(1)).max())
        if longest > limit:
            self._warned_of_positions = True
            logger.warning(
                f"A row has {longest} tokens with its prompt, and beyond {limit} the rotary positions of "
                f"{type(self.base_model).__name__} change with a batch's longest row: a row's loss then depends on "
                "what else is in it. Shorten rows, or use batches of one."
            )

    def _embedded(self, texts: Texts, media: Mapping[str, Any] | None = None) -> Tensor:
        """Return the embedded texts, with their pictures if there are `media`, [B, T, H]."""
        if media:
            words = self.word_embeddings.num_embeddings
            check_tensor(texts.input_ids, words, "input_ids have")
            return with_pictures(self.base_model, texts.input_ids, media)
        if texts.inputs_embeds is None:
            return embed(self.base_model, texts.input_ids)
        if has_per_layer_inputs(self.base_model):
            raise PromptTuningError(
                f"inputs_embeds are given, and {type(self.base_model).__name__} has per-layer embeddings, which are "
                "looked up by token; give input_ids."
            )
        return texts.inputs_embeds

    def _candidates(self, token_ids: Sequence[Sequence[int]]) -> Candidates:
        check_candidates(token_ids)
        sizes = [len(words) for words in token_ids]
        flat = torch.cat([torch.as_tensor(words) for words in token_ids]).long()
        flat = flat.to(embedding_device(self.word_embeddings))
        embeds = embed(self.base_model, flat[None], "a candidate has")[0]
        return Candidates(flat.split(sizes), embeds.split(sizes))

    def _loss(self, predictions: LabelledLogits, targets: Targets) -> Tensor:
        """Return the mean loss of the labelled tokens, or their summed loss divided by `num_items_in_batch`.

        Its backward pass raises an error if no prompt is trainable.
        """
        check_tensor(predictions.targets, predictions.logits.shape[-1], "labels have")
        if targets.distillation is not None:
            total = targets.distillation.total(predictions, targets.label_smoothing)
        else:
            total = token_nll(predictions.logits, predictions.targets, targets.label_smoothing).sum()
        return self._mean(total, len(predictions.targets), targets)

    def _labelled_output(self, predictions: LabelledLogits, loss: Tensor) -> LabelledOutput:
        """Return the predictions of labelled tokens with their loss. Warn once if the routers' is left out of it."""
        if asks_for_router_scores(self.base_model) and not self._warned_of_routers:
            self._warned_of_routers = True
            logger.warning(
                "config.output_router_logits is True, and the loss of labelled tokens alone (only_labelled, with "
                "which PromptTuningTrainer trains) leaves the routers' balance loss out. A prompt does not train the "
                "routers. forward without only_labelled adds it."
            )
        return LabelledOutput(loss=loss, **vars(predictions))

    def _ranked(self, scores: Tensor, nodes: Tensor | None, targets: Targets) -> RankingOutput:
        """Return the scores of candidates, [B, L], with the loss of learning them from a teacher if there is one.

        `nodes` [B] are those that a search computed; None without a search.
        """
        if targets.distillation is None:
            return RankingOutput(scores=scores, nodes=nodes)
        total = targets.distillation.total(scores)
        return RankingOutput(scores=scores, loss=self._mean(total, len(scores), targets))

    def _mean(self, total: Tensor, count: int, targets: Targets) -> Tensor:
        items = count if targets.num_items_in_batch is None else targets.num_items_in_batch
        # If nothing is labelled, on this process or on any, the loss is 0, not 0/0.
        return self._told_if_untrainable(total / torch.as_tensor(items, device=total.device).clamp(min=1))

    def _told_if_untrainable(self, loss: Tensor) -> Tensor:
        """Return a loss whose backward pass raises an error if no prompt is trainable."""
        if self.training and torch.is_grad_enabled() and not loss.requires_grad and not self._adapters_disabled:
            return untrainable(loss, self.active_adapter)
        return loss

    def _prepare_generation(self, texts: Texts, options: dict[str, Any]) -> None:
        """Check the texts of a call of `generate`, and complete its other options."""
        if options.get("generation_config") is None and "generation_config" in vars(self):
            # A config set on this model applies, and not the backbone's, which other models may share.
            options["generation_config"] = vars(self)["generation_config"]
        options.setdefault("synced_gpus", is_sharded(self.base_model))
        check_texts(self.base_model, texts, texts.attention_mask)


def embed(backbone: PreTrainedModel, input_ids: Tensor, what: str = "input_ids have") -> Tensor:
    """Embed token ids, [B, T, H]. If the backbone has per-layer vectors, append them in the last dimension.

    Raise PromptTuningError if an id is not in the vocabulary. The message starts with `what`.
    """
    words = backbone.get_input_embeddings()
    check_tensor(input_ids, words.num_embeddings, what)
    embeds = embedded(words, input_ids)
    if (scale := token_scale(backbone)) != 1.0:
        embeds = embeds * scale
    if not has_per_layer_inputs(backbone):
        return embeds
    return torch.cat([embeds, per_layer_inputs(backbone, input_ids).to(embeds.dtype)], dim=-1)


def as_tokens(backbone: PreTrainedModel, vectors: Tensor) -> Tensor:
    """Give a prompt the same form as `embed`: a virtual token gets the per-layer vectors of the pad token."""
    if not has_per_layer_inputs(backbone):
        return vectors
    pad = backbone.config.get_text_config().pad_token_id or 0
    ids = torch.full((1, len(vectors)), pad, device=vectors.device)
    return torch.cat([vectors, per_layer_inputs(backbone, ids)[0].to(vectors.dtype)], dim=-1)


def unlabel_first(prompts: Prompts, examples: Examples) -> Examples:
    """Remove the first token's label in rows without a prompt: no token stands before it to predict it."""
    if all(map(len, prompts.vectors)):
        return examples
    labels = examples.labels.clone()
    labels[prompts.lengths() == 0, :1] = IGNORED
    return replace(examples, labels=labels)

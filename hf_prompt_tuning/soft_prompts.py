"""What the two model classes share: prompts are made, the backbone is frozen, a batch gets its prompts."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PromptEmbedding
from peft import PromptTuningConfig as PeftPromptTuningConfig
from torch import Tensor, nn

from .backbone import (
    forget_gguf,
    has_per_layer_inputs,
    hub_id,
    keep_differentiable,
    per_layer_inputs,
    quantization,
    steady_positions,
    token_scale,
    turn_off_dropout,
)
from .backbone_files import commit_of
from .batch_checks import check_candidates
from .config import PromptTuningConfig
from .contexts import ByContext
from .errors import PromptTuningError
from .fingerprint import embedding_hash, fingerprint
from .foreign_trainers import REFERENCE, add_reference
from .initialization import can_be_made_again, initial_prompt
from .layouts import Candidates, Examples, LabelledLogits, Prompts
from .layouts.base import IGNORED
from .prompt_info import PromptInfo
from .saved_prompts import SavedPrompts
from .sharding import embedded, embedding_device
from .vocabulary import check_tensor

logger = logging.getLogger(__name__)

NO_PROMPT = "__base__"
"""PEFT's name for a row without an adapter."""

_DISABLED = ByContext("disable_adapter", False)
_REPLACED: ByContext[Tensor | None] = ByContext("replaced_prompt", None)


class PromptVectors(PromptEmbedding):
    """A prompt's vectors, which stay in fp32 whatever the model around them is cast to.

    `model.half()`, and a Trainer's `--bf16_full_eval`, cast every parameter in place. Half of a prompt's bits would be
    lost by that, and the next save would write what is left; its backbone loses nothing that is not on disk.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PromptVectors":
        def move_only(vectors: Tensor) -> Tensor:
            moved = fn(vectors)
            return moved if moved.dtype == vectors.dtype else vectors.to(moved.device)

        return super()._apply(move_only, recurse)


class SoftPrompts(SavedPrompts):
    """What both model classes share: making prompts, freezing the backbone, and laying both before a layout.

    A prompt is a PEFT adapter; several prompts on one backbone are several adapters, and the active one is used.
    """

    task_type: str
    _warned_of_pads = _warned_of_positions = False
    _fingerprint: dict[str, Any] | None = None
    _asked_for_commit = False
    _backbone_commit: str | None = None

    def add_adapter(self, adapter_name: str, peft_config: PeftPromptTuningConfig, *args: Any, **kwargs: Any) -> None:
        """Adds a prompt, initialised as its config says. Not made active (see PEFT's `set_adapter`).

        Raises:
            PromptTuningError: the name is taken, the config is no soft prompt's, or its initialisation cannot be done.
        """
        if adapter_name in self.peft_config:
            raise PromptTuningError(
                f"there is a prompt {adapter_name!r} already; give another name, or call "
                f"delete_adapter({adapter_name!r}) first."
            )
        if adapter_name == REFERENCE and peft_config is self.peft_config.get("default"):
            return add_reference(self, peft_config)
        config = PromptTuningConfig.from_peft(peft_config)
        # Filled in here because PEFT guesses them: it takes the hidden size for the embeddings' width (wrong for a
        # projected OPT), and gives up where it finds no number of heads (MPT, xglm, mamba), which no prompt needs.
        backbone_config = self.base_model.config.get_text_config()
        config.token_dim = self.base_model.get_input_embeddings().embedding_dim
        config.num_layers = getattr(backbone_config, "num_hidden_layers", None) or 1
        config.num_attention_heads = getattr(backbone_config, "num_attention_heads", None) or 1
        # One prompt, in the encoder; PEFT's default for encoder-decoders makes a second half that nothing trains.
        config.num_transformer_submodules = 1
        # A folder of this machine says nothing to anyone else: the backbone is named by its Hub id, or not at all.
        config.base_model_name_or_path = hub_id(config.base_model_name_or_path or self.base_model.name_or_path)
        if config.revision is None and config.base_model_name_or_path == hub_id(self.base_model.name_or_path):
            config.revision = self._commit()
        super().add_adapter(adapter_name, config, *args, **kwargs)

    def _commit(self) -> str | None:
        """The backbone's commit, as far as it can be told."""
        if not self._asked_for_commit:
            self._asked_for_commit, self._backbone_commit = True, commit_of(self.base_model)
            name = hub_id(self.base_model.name_or_path)
            if name is not None and self._backbone_commit is None:
                logger.warning(
                    "At which commit the backbone %s was loaded cannot be told, so prompts do not name it, and are "
                    "loaded with the newest. Give the commit to PromptTuningConfig as revision=….",
                    name,
                )
        return self._backbone_commit

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        # PEFT calls this from `add_adapter`. Its own version guesses the embedding from the parameters' shapes and
        # initialises in its own three ways.
        config = self.peft_config[adapter_name]
        for parameter in self.base_model.parameters():
            parameter.requires_grad = False
        quantized = quantization(self.base_model)
        forget_gguf(self.base_model)
        keep_differentiable(self.base_model)
        if not config.backbone_dropout:
            turn_off_dropout(self.base_model)
        if not hasattr(self, "prompt_encoder"):
            self.prompt_encoder = nn.ModuleDict()
            self.prompt_tokens = {}
            self.prompt_info: dict[str, PromptInfo] = {}
            self.prompt_starts: dict[str, Tensor | None] = {}
        self.word_embeddings = self.base_model.get_input_embeddings()
        if self._fingerprint is None:
            # Other methods than GGUF, which is dequantized on loading, leave the embedding as it is.
            self._fingerprint = fingerprint(self.base_model, quantized if quantized == "gguf" else None)
        if config.inference_mode:
            vectors = torch.zeros(config.num_virtual_tokens, config.token_dim)
        else:
            vectors = initial_prompt(config, self.word_embeddings, token_scale(self.base_model))
        vectors = vectors.to(embedding_device(self.word_embeddings), torch.float32)
        encoder = PromptVectors(PeftPromptTuningConfig(**config.to_dict() | {"prompt_tuning_init": "RANDOM"}), None)
        encoder.embedding.weight = nn.Parameter(vectors, requires_grad=not config.inference_mode)
        self.prompt_encoder[adapter_name] = encoder
        self.prompt_tokens[adapter_name] = torch.arange(config.num_virtual_tokens)
        start = None if config.inference_mode else vectors.detach().cpu().clone()
        self.prompt_starts[adapter_name] = start
        initialization = config.initialization()
        if start is not None and not can_be_made_again(initialization):
            initialization["hash"] = embedding_hash(start)
        self.prompt_info[adapter_name] = PromptInfo(
            initialization=initialization,
            backbone=self._fingerprint
            | {
                "name_or_path": config.base_model_name_or_path,
                "revision": config.revision,
            },
        )

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes a prompt."""
        super().delete_adapter(adapter_name)
        del self.prompt_info[adapter_name], self.prompt_starts[adapter_name]

    @property
    def prompt(self) -> Tensor:
        """The active prompt's vectors, [P, H] in fp32; [0, H] within `disable_adapter()`."""
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
        """[0, H], a row's prompt that has none."""
        return torch.zeros(0, self.word_embeddings.embedding_dim, device=embedding_device(self.word_embeddings))

    def replaced_prompt(self, vectors: Tensor) -> AbstractContextManager[None]:
        """Within this context `vectors` ([P', H], any P') stand for the active prompt, in this thread alone."""
        return _REPLACED.set_to(vectors, self)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Within this context the backbone stands alone, with no prompt in front, whatever prompts rows are given.

        It holds for the thread (or the asyncio task) that enters it: others go on behind their prompts, one that is
        started within it too.
        """
        return _DISABLED.set_to(True, self)

    @property
    def _adapters_disabled(self) -> bool:
        return _DISABLED.of(self)

    @_adapters_disabled.setter
    def _adapters_disabled(self, disabled: bool) -> None:
        # PEFT's constructor says what holds anyway. Its other methods that say so are ours.
        if disabled:
            raise AttributeError("use disable_adapter(), which leaves other threads their prompts")

    @property
    def info(self) -> PromptInfo:
        """What the active prompt says of itself (template, metrics, …); saved with it."""
        return self.prompt_info[self.active_adapter]

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Lets the named prompts train, or not."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.prompt_encoder[name].requires_grad_(requires_grad)

    def _prompts(self, batch: int, adapter_names: Sequence[str] | None) -> Prompts:
        """The prompts of `batch` rows: the active one, or those of their names (`"__base__"` is none, as in PEFT)."""
        if adapter_names is None:
            name = NO_PROMPT if self._adapters_disabled else self.active_adapter
            vectors = self.prompt
            none = torch.zeros(batch, dtype=torch.long, device=vectors.device)
            return Prompts((self._as_tokens(vectors),), none, (name,))
        if isinstance(adapter_names, str):
            raise PromptTuningError(f"adapter_names is {adapter_names!r}; give a list, with a name for each row.")
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
        """A caller's batch, which `check_texts` has seen, as the layouts take it."""
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
            # Without a prompt nothing stands before the first token to predict it.
            alone = examples.labels.clone()
            alone[prompts.lengths() == 0, 0] = IGNORED
            examples = dataclasses.replace(examples, labels=alone)
        return prompts, examples

    def _candidates(self, token_ids: Sequence[Sequence[int]]) -> Candidates:
        check_candidates(token_ids)
        ids = tuple(torch.as_tensor(words, device=embedding_device(self.word_embeddings)) for words in token_ids)
        return Candidates(ids, tuple(self._embed(words[None], "a candidate has")[0] for words in ids))

    def _embed(self, input_ids: Tensor, what: str = "input_ids have") -> Tensor:
        """[B, T, H], with the per-layer vectors of the tokens behind it where the backbone has such."""
        check_tensor(input_ids, self.word_embeddings.num_embeddings, what)
        embeds = embedded(self.word_embeddings, input_ids)
        if (scale := token_scale(self.base_model)) != 1.0:
            embeds = embeds * scale
        if not has_per_layer_inputs(self.base_model):
            return embeds
        return torch.cat([embeds, per_layer_inputs(self.base_model, input_ids).to(embeds.dtype)], dim=-1)

    def _as_tokens(self, vectors: Tensor) -> Tensor:
        """A prompt as `_embed` gives text: a virtual token has the per-layer vectors of the pad token."""
        if not has_per_layer_inputs(self.base_model):
            return vectors
        pad = self.base_model.config.get_text_config().pad_token_id or 0
        ids = torch.full((1, len(vectors)), pad, device=vectors.device)
        return torch.cat([vectors, per_layer_inputs(self.base_model, ids)[0].to(vectors.dtype)], dim=-1)

    def _warn_of_pads(self, input_ids: Tensor) -> None:
        """Once, as transformers does, when rows without a mask look padded: they are read as they stand."""
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
        """Once, when rows are so long that the backbone's RoPE changes with the longest row of a batch."""
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
        """The mean over labelled tokens; with `num_items_in_batch` (gradient accumulation), their sum over that."""
        check_tensor(predictions.targets, predictions.logits.shape[-1], "labels have")
        total = nn.functional.cross_entropy(
            predictions.logits.float(), predictions.targets, reduction="sum", label_smoothing=label_smoothing
        )
        if num_items_in_batch is None:
            num_items_in_batch = len(predictions.targets)
        # Nothing is labelled on this process (or on any): the loss is 0, not 0/0.
        return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)

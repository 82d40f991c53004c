"""Put a soft prompt in front of a backbone with a classification head, which reads the text and not the prompt."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft import PromptTuningConfig as PeftPromptTuningConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ..data.backbone_classes import for_backbone
from ..data.head_template import HeadTemplate
from ..data.head_tokenization import HeadTokenizer, head_tokenizer
from ..errors import PromptMismatchError, PromptTuningError
from ..layouts import Prompts
from ..layouts.base import IGNORED, token_inputs
from ..layouts.padded import padded_rows
from ..layouts.sharing import calls_its_stand_in, is_sharded
from ..layouts.traits import learned_positions
from ..prompts.files import SavedPrompt
from . import classifiers
from .backbone import turn_off_dropout
from .batch_checks import NO_PROMPT, Texts, check_texts, check_unpacked
from .call_arguments import OF_FORWARD, TOKEN_TYPES, arguments_in_rows
from .head_reading import read
from .heads import RowHeads
from .initialization import saved_start
from .outputs import check_no_attentions
from .soft_prompts import SoftPrompts
from .text_columns import TextColumns
from .untrainable import untrainable


class ClassificationPrompts(SoftPrompts):
    """Base of the model classes with a classification head.

    Each prompt holds a copy of the backbone's head in fp32, which trains and is saved with it. The backbone and its
    head stay as they are.
    """

    def add_adapter(self, adapter_name: str, peft_config: PeftPromptTuningConfig, *args: Any, **kwargs: Any) -> None:
        """Add a prompt with a copy of the backbone's head; see `HeldPrompts.add_adapter`.

        Raise PromptTuningError also for a position other than "start", "after_bos" and "auto", or modules to save
        that are no part of the head.
        """
        if getattr(peft_config, "prompt_position", None) == "system":
            raise PromptTuningError(
                "prompt_position is system, and a classification head reads rows of tokens, not chats; use start, or "
                "after_bos."
            )
        given, parts = getattr(peft_config, "modules_to_save", None), classifiers.head_parts(self.base_model)
        # PEFT's own classes name all heads that they know of.
        if others := [name for name in given or () if name not in (*parts, "classifier", "score")]:
            raise PromptTuningError(
                f"modules_to_save has {others[0]!r}, and a prompt saves its vectors and its head "
                f"({', '.join(parts)}) without being told; leave it out."
            )
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        super()._setup_prompt_encoder(adapter_name)
        config, prompt = self.peft_config[adapter_name], self.prompt_encoder[adapter_name]
        head = classifiers.copied_head(self.base_model)
        saved = None if config.inference_mode else saved_start(config)
        if saved is not None:
            classifiers.start_head(head, saved, self.base_model)
        if not config.backbone_dropout:
            turn_off_dropout(head)
        prompt.classifier, config.classifier_modules = head, tuple(head)
        config.modules_to_save = None  # PEFT, which reads it next, would put a copy of the head into the backbone
        prompt.info.classifier = classifiers.description(self.base_model, config.train_head)
        self.set_requires_grad(adapter_name, not config.inference_mode)

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Make the named prompts trainable with their heads, or not. With `train_head=False` a head stays frozen."""
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            trains = requires_grad and self.peft_config[name].train_head
            self.prompt_encoder[name].classifier.requires_grad_(trains)

    def _check_saved(self, saved: SavedPrompt, ignore_mismatch: bool) -> None:
        super()._check_saved(saved, ignore_mismatch)
        if saved.config.task_type not in (None, self.task_type):
            raise PromptMismatchError(
                f"{saved.source} is a prompt of task type {saved.config.task_type}, and this model is for "
                f"{self.task_type}; load it with load_prompt."
            )
        classifiers.check_labels_match(saved, self.base_model, ignore_mismatch)

    def row_encoder(
        self, tokenizer: PreTrainedTokenizerBase, template: HeadTemplate | None = None, name: str | None = None
    ) -> HeadTokenizer:
        """Return what turns rows into token ids and labels, with a template, default that of the prompt `name`.

        Raise PromptTuningError if there is none, or it is for language models.
        """
        template = self.prompt_info[name or self.active_adapter].template if template is None else template
        if not isinstance(template, HeadTemplate):
            found = "missing" if template is None else f"a {type(template).__name__}"
            raise PromptTuningError(
                f"{type(self).__name__} has a classification head, and its template is {found}; rankings and "
                "pipelines of this package are for language models. Give a ClassTemplate or a TagTemplate, or rows of "
                "input_ids (tokenizer(texts))."
            )
        return head_tokenizer(for_backbone(template, self.base_model.config), tokenizer)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        adapter_names: str | Sequence[str] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the output of the backbone's class, whose head reads the text behind the prompt.

        Args:
            input_ids: [B, T] long.
            attention_mask: [B, T], zero on pads, which may be at either side.
            inputs_embeds: [B, T, H], in place of `input_ids`.
            labels: of rows, [B] long, or [B, L] or [B] floats by the backbone's `problem_type`; of tokens, [B, T]
                long, -100 where there is none. Labels of pads are not counted.
            adapter_names: the prompt of all rows, "__base__" for none (and the backbone's own head); default the
                active one.
            num_items_in_batch: divide the summed loss by this (Trainer's gradient accumulation), not by the number of
                labels.
            **kwargs: `token_type_ids` [B, T] (the prompt gets 0), `output_hidden_states` (those of the text, [B, T, H]
                each), `output_attentions` (of rows padded at the right, prompt included), `return_dict`.

        Returns:
            An output with `logits` of [B, L] (of rows) or [B, T, L] (of tokens), in fp32, and `loss` with labels.

        Raises:
            PromptTuningError: an argument is invalid, or cannot be adapted to rows with a prompt.
        """
        texts = Texts(input_ids, attention_mask, inputs_embeds, adapter_names)
        return_dict = kwargs.pop("return_dict", None)
        self._check_call(texts, kwargs)
        prompts = self._prompts(texts.shape[0], adapter_names)
        name = self._only_prompt(prompts)
        device = (input_ids if inputs_embeds is None else inputs_embeds).device
        mask = torch.ones(texts.shape, device=device) if attention_mask is None else attention_mask
        heads = self._checked_heads(prompts, texts, kwargs)
        tokens = TextColumns.of(prompts, mask.bool(), heads)
        labels = None if labels is None else self._checked_labels(labels, tokens.mask)
        rows = self._rows(prompts, texts, heads, kwargs)
        head = None if name == NO_PROMPT else self.prompt_encoder[name].classifier
        outputs = read(self.base_model, head, rows, tokens, self._read_by_head(tokens), labels)
        if labels is not None:
            outputs.loss = self._scaled(outputs, labels, num_items_in_batch)
        return outputs.to_tuple() if return_dict is False else outputs

    @abstractmethod
    def _read_by_head(self, tokens: TextColumns) -> TextColumns:
        """Return the caller's columns in the order in which the head reads them."""

    @abstractmethod
    def _checked_labels(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the labels as the loss takes them. `mask` [B, T] is True on real tokens."""

    def _check_call(self, texts: Texts, arguments: dict[str, Any]) -> None:
        """Raise PromptTuningError for a call that cannot be made exactly. Remove arguments that change nothing."""
        backbone = self.base_model
        check_unpacked(arguments)
        check_texts(backbone, texts, texts.attention_mask)
        if texts.attention_mask is not None and bool((texts.attention_mask == 0).all(1).any()):
            raise PromptTuningError("a row holds only pads, so that there is nothing to read; leave the row out.")
        others = {name: arguments.pop(name) for name in OF_FORWARD if name in arguments}
        if given := [name for name, value in others.items() if value is not None and value is not False]:
            raise PromptTuningError(f"{given[0]} is given, which is for language models; leave it out.")
        if arguments.pop("use_cache", None):
            raise PromptTuningError("use_cache is given, and a head's output is not continued; leave it out.")
        if arguments.pop("position_ids", None) is not None:
            raise PromptTuningError("position_ids are given, and they are counted behind a prompt; leave them out.")
        if is_sharded(backbone):
            raise PromptTuningError(
                "the backbone's weights are spread over processes (FSDP2, ZeRO-3), which a classification head does "
                "not support; train with one process, or with several that each hold the backbone (DDP)."
            )
        if not calls_its_stand_in(backbone):
            raise PromptTuningError(
                f"the {type(backbone).__name__} is compiled, or its forward was replaced, and would use its own "
                "head; give the backbone as it was loaded."
            )

    def _only_prompt(self, prompts: Prompts) -> str:
        """Return the name of the prompt of all rows. Raise PromptTuningError for several, or one without a head."""
        names = prompts.names
        if len(names) > 1:
            raise PromptTuningError(
                f"adapter_names has {names[0]!r} and {names[1]!r}, and each prompt has a head of its own; give rows "
                "of one prompt in a call."
            )
        if names[0] != NO_PROMPT and names[0] not in self.prompt_encoder:
            raise PromptTuningError(f"the prompt {names[0]!r} has no classification head; give another.")
        return names[0]

    def _checked_heads(self, prompts: Prompts, texts: Texts, arguments: Mapping[str, Any]) -> RowHeads | None:
        """Return the tokens before the prompt with which rows begin. Raise PromptTuningError if a row does not."""
        heads = self._heads(prompts, texts)
        if heads is None:
            return None
        if bool((heads.given != heads.lengths).any()):
            raise PromptTuningError(
                f"the prompt stands behind the tokens {self._head_ids(prompts.names[0]).tolist()}, and row "
                f"{int((heads.given != heads.lengths).nonzero()[0])} does not begin with them; give the tokenizer's "
                "rows with their special tokens."
            )
        for name in TOKEN_TYPES:
            if (
                (types := arguments.get(name)) is not None
                and types.shape == texts.shape
                and bool(types[heads.taken].any())
            ):
                raise PromptTuningError(
                    f"{name} is not 0 on a row's first token, behind which the prompt stands; give 0 there."
                )
        return heads

    def _rows(
        self, prompts: Prompts, texts: Texts, heads: RowHeads | None, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the base model's arguments: rows `[head | prompt | text | pads]` and what else the caller gave."""
        backbone, input_ids = self.base_model, texts.input_ids
        if heads is not None:
            texts, arguments = heads.off(texts), heads.arguments_off(backbone, arguments)
        examples = self._examples(prompts, texts)
        arguments = arguments_in_rows(backbone, arguments, input_ids, prompts, examples)
        if heads is not None or examples.order is not None:
            check_no_attentions(arguments.get("output_attentions"), backbone.config)
        embeds, mask = padded_rows(prompts, examples)
        limit = learned_positions(backbone)
        if limit is not None and embeds.shape[1] > limit:
            raise PromptTuningError(
                f"a row has {embeds.shape[1]} tokens with its prompt, and {type(backbone).__name__} has positions for "
                f"{limit}; shorten texts to {limit - int(prompts.lengths().max())} tokens."
            )
        return token_inputs(backbone, embeds) | {"attention_mask": mask, "return_dict": True} | arguments

    def _scaled(self, outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Return the loss, which is the mean over the labels, or their sum divided by `num_items_in_batch`."""
        # A float of -100 is a number to learn, not a label that is left out.
        is_given = torch.ones_like(labels) if labels.is_floating_point() else labels != IGNORED
        count, loss = is_given.sum(), outputs.loss
        if not int(count):
            loss = outputs.logits.sum() * 0.0
        elif num_items_in_batch is not None:
            loss = loss * (count / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1))
        if self.training and torch.is_grad_enabled() and not loss.requires_grad and not self._adapters_disabled:
            return untrainable(loss, self.active_adapter)
        return loss


class HeadOutsideBackbone:
    """Makes a prompt as `PeftModel` does. PEFT's classes for heads would wrap the head in the backbone itself."""

    def __init__(self, *args: Any, **kwargs: Any):
        PeftModel.__init__(self, *args, **kwargs)

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Add a prompt, without its head."""
        PeftModel.add_adapter(self, *args, **kwargs)

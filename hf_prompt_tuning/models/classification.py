"""Put a soft prompt in front of a backbone with a classification head, which reads the text and not the prompt."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ..data.backbone_classes import for_backbone
from ..data.head_template import HeadTemplate
from ..data.head_tokenization import HeadTokenizer, head_tokenizer
from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..layouts.traits import token_types
from ..prompts.files import SavedPrompt
from .batch_checks import Texts
from .classifiers import tell_of_names
from .head_reading import read
from .own_heads import OwnHeads
from .text_columns import TextColumns


class ClassificationPrompts(OwnHeads):
    """Base of the model classes with a classification head, of texts or of tokens."""

    def row_encoder(
        self, tokenizer: PreTrainedTokenizerBase, template: HeadTemplate | None = None, name: str | None = None
    ) -> HeadTokenizer:
        """Return what turns rows into token ids and labels, with a template, default that of the prompt `name`.

        Raise PromptTuningError if there is none, or it is for language models.
        """
        info = self.prompt_info[name or self.active_adapter]
        template = info.template if template is None else template
        if not isinstance(template, HeadTemplate):
            found = "missing" if template is None else f"a {type(template).__name__}"
            raise PromptTuningError(
                f"{type(self).__name__} has a classification head, and its template is {found}; rankings and "
                "pipelines of this package are for language models. Give a ClassTemplate or a TagTemplate, or rows of "
                "input_ids (tokenizer(texts))."
            )
        backbone = self.base_model
        template = for_backbone(template, backbone.config, info.classifier)
        return head_tokenizer(template, tokenizer, token_types(backbone))

    def _check_saved(self, saved: SavedPrompt, ignore_mismatch: bool) -> None:
        super()._check_saved(saved, ignore_mismatch)
        tell_of_names(saved, self.base_model)

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
        call = self._prepared(texts, kwargs)
        labels = None if labels is None else self._checked_labels(labels, call.tokens.mask)
        in_order = self._read_by_head(call.tokens)
        ends = None if call.decoded is None else call.decoded.ends(self.base_model)
        outputs = read(self.base_model, self._head(call.name), call, in_order, labels, ends)
        if labels is not None:
            outputs.loss = self._scaled(outputs, labels, num_items_in_batch)
        return outputs.to_tuple() if return_dict is False else outputs

    @abstractmethod
    def _read_by_head(self, tokens: TextColumns) -> TextColumns:
        """Return the caller's columns in the order in which the head reads them."""

    @abstractmethod
    def _checked_labels(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the labels as the loss takes them. `mask` [B, T] is True on real tokens."""

    def _scaled(self, outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Return the loss, which is the mean over the labels, or their sum divided by `num_items_in_batch`."""
        # A float of -100 is a number to learn, not a label that is left out.
        is_given = torch.ones_like(labels) if labels.is_floating_point() else labels != IGNORED
        count, loss = is_given.sum(), outputs.loss
        if not int(count):
            loss = outputs.logits.sum() * 0.0
        elif num_items_in_batch is not None:
            loss = loss * (count / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1))
        return self._told_if_untrainable(loss)

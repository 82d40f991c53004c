"""An encoder-decoder language model behind a soft prompt: forward and generate."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModelForSeq2SeqLM
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from .errors import PromptTuningError
from .layouts import Examples, LabelledLogits, Prompts
from .layouts.base import IGNORED, predictions_at
from .layouts.padded import as_padded, is_moved, padded_rows
from .outputs import LabelledOutput, RankingOutput, came_back, check_has_place, targets_came_back
from .sharding import is_sharded
from .soft_prompts import SoftPrompts
from .vocabulary import check_ids, check_tensor


def decoder_inputs(backbone: Any, labels: Tensor) -> Tensor:
    """What a decoder reads where it is to predict `labels`, [B, T'] each: one token to the right, behind its start."""
    bare = (labels == IGNORED).all(1)
    if bare.any():
        # A row without a label predicts nothing, and some backbones (mBART) look for its last token.
        labels = labels.clone()
        labels[bare, 0] = backbone.config.eos_token_id or 0
    if hasattr(backbone, "prepare_decoder_input_ids_from_labels"):
        return backbone.prepare_decoder_input_ids_from_labels(labels=labels)
    # M2M100, NLLB-MoE and Blenderbot shift labels in `forward` alone.
    start = labels.new_full((len(labels), 1), backbone.config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, backbone.config.pad_token_id or 0)


def _take_encoded(kwargs: dict[str, Any], prompts: Prompts, sources: Examples) -> None:
    """Brings `encoder_outputs` from the caller's columns, in which `forward` gives them, into those of padded rows.

    Raises:
        PromptTuningError: they were computed without the prompt, or of other rows.
    """
    if (given := kwargs.get("encoder_outputs")) is None:
        return
    batch, length = sources.mask.shape
    shape = [batch, max(map(len, prompts.vectors)) + length]
    if list(given[0].shape[:2]) != shape:
        raise PromptTuningError(
            f"encoder_outputs are of shape {list(given[0].shape)}, and rows with their prompt of {shape}; give what "
            "this model's forward gave as encoder_last_hidden_state, or leave them out."
        )
    kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=as_padded(given[0], prompts, sources))


class PromptTuningModelForSeq2SeqLM(SoftPrompts, PeftModelForSeq2SeqLM):
    """An encoder-decoder language model with a soft prompt in front of the encoder's input (as in the paper's T5)."""

    task_type = "SEQ_2_SEQ_LM"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        only_labelled: bool = False,
        candidates: Sequence[Sequence[int]] | None = None,
        adapter_names: Sequence[str] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """The backbone's output; as in `PromptTuningModelForCausalLM`, with `labels` [B, T'] for the decoder."""
        prompts, sources = self._inputs(input_ids, inputs_embeds, attention_mask, adapter_names=adapter_names)
        embeds, mask = padded_rows(prompts, sources)
        if candidates is not None:
            for words in candidates:
                check_ids(words, self.word_embeddings.num_embeddings, "a candidate has")
            return RankingOutput(scores=self._rank(embeds, mask, candidates))
        _take_encoded(kwargs, prompts, sources)
        order = None
        if labels is not None:
            check_tensor(labels[labels != IGNORED], self.word_embeddings.num_embeddings, "labels have")
            # A collator may have padded them at the left, which would shift the decoder's positions.
            started = (labels != IGNORED).cumsum(1) > 0
            targets = Examples.align(labels.unsqueeze(-1), started, labels)
            labels, order = targets.labels, targets.order
        if only_labelled:
            found = self._labelled_logits(labels, inputs_embeds=embeds, attention_mask=mask, use_cache=False, **kwargs)
            loss = self._loss(found, num_items_in_batch, label_smoothing)
            return LabelledOutput(loss=loss, logits=found.logits, targets=found.targets, rows=found.rows)
        return_dict = kwargs.pop("return_dict", None)
        if order is not None or is_moved(prompts, sources):
            check_has_place(kwargs.get("output_attentions"), self.base_model.config)
        outputs = self.base_model(inputs_embeds=embeds, attention_mask=mask, labels=labels, return_dict=True, **kwargs)
        if labels is not None:
            rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
            found = LabelledLogits(outputs.logits[rows, columns], labels[rows, columns], rows)
            outputs.loss = self._loss(found, num_items_in_batch, label_smoothing)
        for name, value in outputs.items():
            if name.startswith("encoder_"):
                outputs[name] = came_back(value, prompts, sources)
            elif order is not None and name in ("logits", "decoder_hidden_states"):
                outputs[name] = targets_came_back(value, order)
        return outputs.to_tuple() if return_dict is False else outputs

    def _labelled_logits(self, labels: Tensor, **inputs: Any) -> LabelledLogits:
        """The decoder's predictions of `labels` [B, T'], [K, V]."""
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        decoder_input_ids = decoder_inputs(self.base_model, labels)
        outputs = predictions_at(self.base_model, rows, columns, decoder_input_ids=decoder_input_ids, **inputs)
        return LabelledLogits(outputs.logits[0], labels[rows, columns], rows)

    def _rank(self, embeds: Tensor, mask: Tensor, candidates: Sequence[Sequence[int]]) -> Tensor:
        """[B, L] fp32: the encoder once, then the decoder for each candidate."""
        if is_sharded(self.base_model):
            # Its encoder alone would find no weights: they are gathered when the whole model is called.
            source = {"inputs_embeds": embeds}
        else:
            encoder = self.base_model.get_encoder()
            source = {"encoder_outputs": encoder(inputs_embeds=embeds, attention_mask=mask, return_dict=True)}
        scores = []
        for words in candidates:
            labels = torch.tensor(words, device=embeds.device).expand(len(embeds), -1)
            found = self._labelled_logits(labels, **source, attention_mask=mask, use_cache=False)
            scores.append(found.log_likelihood(len(embeds)))
        return torch.stack(scores, dim=1)

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates the target; arguments and result as in transformers' `generate`.

        Args:
            input_ids: [B, T] long, the encoder's (also as the first positional argument, or `inputs`).
            attention_mask: [B, T]; pads may stand at either side.
            inputs_embeds: [B, T, H] in place of `input_ids`.
            adapter_names: a prompt for each row, "__base__" for none; default the active one.
        """
        if input_ids is None and inputs_embeds is None:
            input_ids = kwargs.pop("inputs", None)
        prompts, sources = self._inputs(input_ids, inputs_embeds, attention_mask, adapter_names=adapter_names)
        embeds, mask = padded_rows(prompts, sources)
        _take_encoded(kwargs, prompts, sources)
        kwargs.setdefault("use_cache", True)
        kwargs.setdefault("synced_gpus", is_sharded(self.base_model))
        return self.base_model.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)

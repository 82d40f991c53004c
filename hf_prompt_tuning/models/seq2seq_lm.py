"""Put a soft prompt in front of an encoder-decoder language model: forward and generate."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModelForSeq2SeqLM
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from ..compat.transformers import as_cache, cache_in, with_cache_renamed
from ..errors import PromptTuningError
from ..layouts import Examples, LabelledLogits, Prompts
from ..layouts.base import IGNORED, predicted_at_once, predictions_at
from ..layouts.label_search import LabelSearch
from ..layouts.padded import as_padded, is_moved, padded_rows
from ..layouts.sharing import is_sharded
from .batch_checks import (
    Targets,
    Texts,
    check_labels,
    check_left_out,
    check_one_goal,
    check_room,
    check_search,
    check_stands_behind_something,
    check_targets,
    check_texts,
)
from .call_arguments import DECODER, decoder_arguments
from .continuing import CacheContent, encoder_decoder_cache, mark
from .distillation import LabelDistillation, TokenDistillation
from .generation_options import drafting_option, from_inputs, generation_config, model_arguments, with_encoder_ids
from .heads import RowHeads
from .outputs import check_no_attentions, in_label_columns, outputs_in_caller_columns, routing_loss
from .soft_prompts import SoftPrompts

DECODER_INPUTS = {"decoder_input_ids", "decoder_inputs_embeds"}


def decoder_inputs(backbone: Any, labels: Tensor) -> Tensor:
    """Return the decoder's input that predicts `labels`, [B, T'] each: shifted right by one, after the start token."""
    bare = (labels == IGNORED).all(1)
    if bare.any():
        # A row without a label predicts nothing, but some backbones (mBART) look for its last token.
        labels = labels.clone()
        # A config may name several ends (T5Gemma's).
        labels[bare, 0] = torch.as_tensor(backbone.config.eos_token_id or 0).flatten()[0].to(labels)
    if hasattr(backbone, "prepare_decoder_input_ids_from_labels"):
        return backbone.prepare_decoder_input_ids_from_labels(labels=labels)
    # M2M100, NLLB-MoE and Blenderbot shift labels only in `forward`.
    start = labels.new_full((len(labels), 1), backbone.config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, backbone.config.pad_token_id or 0)


def _move_encoder_outputs(kwargs: dict[str, Any], prompts: Prompts, sources: Examples, heads: RowHeads | None) -> None:
    """Move `encoder_outputs` from the caller's columns, in which `forward` returns them, to those of padded rows.

    Raise PromptTuningError if they were computed without the prompt, or of other rows.
    """
    if (given := kwargs.get("encoder_outputs")) is None:
        return
    if not isinstance(given, tuple | list | ModelOutput) or not len(given) or not isinstance(given[0], Tensor):
        raise PromptTuningError(
            f"encoder_outputs is a {type(given).__name__}; give a BaseModelOutput with the last_hidden_state that "
            "this model's forward gave, or leave it out."
        )
    batch, length = sources.mask.shape
    shape = [batch, max(map(len, prompts.vectors)) + length]
    if heads is not None:
        shape[1] = heads.widths[1] + heads.columns
    if list(given[0].shape[:2]) != shape:
        raise PromptTuningError(
            f"encoder_outputs are of shape {list(given[0].shape)}, and rows with their prompt of {shape}; give what "
            "this model's forward gave as encoder_last_hidden_state, or leave them out."
        )
    states = given[0] if heads is None else heads.moved_back(given[0])
    kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=as_padded(states, prompts, sources))


def _check_decoder_has_input(targets: Targets, given: dict[str, Any]) -> None:
    """Raise PromptTuningError if there is nothing for the decoder to predict, or to predict it from."""
    check_targets(targets)
    if targets.labels is None and not given.keys() & DECODER_INPUTS:
        raise PromptTuningError(
            "neither labels nor decoder_input_ids are given, behind which an encoder-decoder predicts; give one."
        )


class PromptTuningModelForSeq2SeqLM(SoftPrompts, PeftModelForSeq2SeqLM):
    """Encoder-decoder language model with a soft prompt in front of the encoder's input (as in the paper's T5)."""

    task_type = "SEQ_2_SEQ_LM"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        only_labelled: bool = False,
        candidates: Sequence[Sequence[int]] | None = None,
        adapter_names: str | Sequence[str] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        label_smoothing: float = 0.0,
        distillation: TokenDistillation | LabelDistillation | None = None,
        search: LabelSearch | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the backbone's output, as in `PromptTuningModelForCausalLM`. The `labels` [B, T'] are the decoder's.

        A `search` leaves out no candidate.

        Labels that begin with -100 are moved to the decoder's first positions, and the outputs are moved back. With
        the caller's own `decoder_input_ids` or `decoder_inputs_embeds`, labels are not moved.
        """
        texts = Texts(input_ids, attention_mask, inputs_embeds, adapter_names)
        scoring = num_items_in_batch, label_smoothing
        targets = Targets(labels, only_labelled, candidates, *scoring, distillation=distillation, search=search)
        return self._run(texts, targets, kwargs)

    def _run(self, texts: Texts, targets: Targets, arguments: dict[str, Any]) -> ModelOutput | tuple:
        """Check a call of `forward`, give its rows their prompts, and compute what it asks for."""
        backbone = self.base_model
        check_one_goal(targets)
        check_texts(backbone, texts, texts.attention_mask)
        labels = check_labels(backbone, targets.labels, None, texts.shape[0])
        prompts = self._prompts(texts.shape[0], texts.adapter_names)
        if (heads := self._heads(prompts, texts)) is not None:
            texts = heads.off(texts)
        sources = self._examples(prompts, texts)
        given = decoder_arguments(backbone, with_cache_renamed(backbone, arguments), labels, texts.shape[0])
        embeds, mask = padded_rows(prompts, sources)
        check_room(backbone, mask.shape[1], int(prompts.lengths().max()))
        check_stands_behind_something(prompts, sources)
        given |= as_cache(backbone, encoder_decoder_cache(cache_in(given), prompts, mask))
        if targets.candidates is not None:
            check_left_out(given)
            candidates = self._candidates(targets.candidates)
            check_search(targets, len(mask), len(candidates.ids))
            return self._ranked(self._rank(embeds, mask, candidates.ids), None, targets)
        if targets.only_labelled:
            check_left_out(given, allowed=DECODER)
        _check_decoder_has_input(targets, given)
        _move_encoder_outputs(given, prompts, sources, heads)
        labels, given, order = _to_the_start(labels, given)
        given |= {"inputs_embeds": embeds, "attention_mask": mask}
        if targets.only_labelled:
            predictions = self._labelled_logits(labels, use_cache=False, **given)
            return self._labelled_output(predictions, self._loss(predictions, targets))
        return self._outputs(prompts, sources, labels, order, targets, heads, **given)

    def _outputs(
        self,
        prompts: Prompts,
        sources: Examples,
        labels: Tensor | None,
        order: Tensor | None,
        targets: Targets,
        heads: RowHeads | None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the backbone's outputs, with our loss of `labels`, which were moved as `order` says."""
        backbone, mask = self.base_model, kwargs["attention_mask"].bool()
        if labels is not None and not kwargs.keys() & DECODER_INPUTS and bool((labels == IGNORED).all(1).any()):
            # Not left to the backbone: mBART looks for the last token of a row that has none.
            kwargs["decoder_input_ids"] = decoder_inputs(backbone, labels)
        if order is not None or is_moved(prompts, sources):
            check_no_attentions(kwargs.get("output_attentions"), backbone.config)
        outputs = backbone(labels=labels, return_dict=True, **kwargs)
        if labels is not None:
            rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
            predictions = LabelledLogits(outputs.logits[rows, columns], labels[rows, columns], rows)
            outputs.loss = self._loss(predictions, targets) + routing_loss(outputs, backbone.config)
        for name, value in outputs.items():
            if name.startswith("encoder_"):
                outputs[name] = _encoded(value, prompts, sources, heads, name)
            elif order is not None and name in ("logits", "decoder_hidden_states"):
                outputs[name] = in_label_columns(value, order)
        mark(cache_in(outputs), CacheContent.behind(prompts, mask))
        return outputs.to_tuple() if return_dict is False else outputs

    def _labelled_logits(self, labels: Tensor, **inputs: Any) -> LabelledLogits:
        """Return the decoder's predictions of `labels` [B, T'], [K, V]."""
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        if not inputs.keys() & DECODER_INPUTS:
            inputs["decoder_input_ids"] = decoder_inputs(self.base_model, labels)
        outputs = predictions_at(self.base_model, rows, columns, **inputs)
        return LabelledLogits(outputs.logits[0], labels[rows, columns], rows)

    def _rank(self, embeds: Tensor, mask: Tensor, candidates: Sequence[Tensor]) -> Tensor:
        """Return the scores, [B, L] fp32. The encoder runs once, then the decoder for each candidate.

        A pass of the decoder holds `MAX_LOGITS` logits at most, or those of a candidate in one row.
        """
        backbone, most = self.base_model, len(embeds)
        if is_sharded(backbone):
            # The encoder alone would find no weights: they are gathered only when the whole model is called, as often
            # by every process.
            source = {"inputs_embeds": embeds}
        else:
            encoded = backbone.get_encoder()(inputs_embeds=embeds, attention_mask=mask, return_dict=True)
            source, limit = {"encoder_outputs": encoded}, predicted_at_once(backbone)
            most = max(limit // max(map(len, candidates)), 1)
        scores = []
        for words in candidates:
            parts = []
            for start in range(0, len(embeds), most):
                rows = slice(start, start + most)
                if most < len(embeds):
                    source = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded.last_hidden_state[rows])}
                labels = words.to(embeds.device).expand(len(mask[rows]), -1)
                predictions = self._labelled_logits(labels, **source, attention_mask=mask[rows], use_cache=False)
                parts.append(predictions.log_likelihood(len(labels)))
            scores.append(torch.cat(parts))
        return torch.stack(scores, dim=1)

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        adapter_names: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate the target. Arguments and result are those of transformers' `generate`.

        Args:
            input_ids: [B, T] long, the encoder's (also as the first positional argument, or `inputs`).
            attention_mask: [B, T]; pads may be at either side.
            inputs_embeds: [B, T, H], in place of `input_ids`.
            adapter_names: the prompt of all rows or of each row, "__base__" for none; default the active one.
        """
        backbone = self.base_model
        texts = Texts(from_inputs(input_ids, kwargs), attention_mask, inputs_embeds, adapter_names)
        kwargs = with_cache_renamed(backbone, kwargs)
        self._prepare_generation(texts, kwargs)
        prompts = self._prompts(texts.shape[0], texts.adapter_names)
        if (heads := self._heads(prompts, texts)) is not None:
            texts = heads.off(texts)
        sources = self._examples(prompts, texts)
        given, options = model_arguments(backbone, kwargs)
        given = decoder_arguments(backbone, given, None, len(sources.mask))
        embeds, mask = padded_rows(prompts, sources)
        check_room(backbone, mask.shape[1], int(prompts.lengths().max()))
        check_stands_behind_something(prompts, sources)
        options |= as_cache(backbone, encoder_decoder_cache(cache_in(options), prompts, mask))
        _move_encoder_outputs(given, prompts, sources, heads)
        config = generation_config(backbone, options)
        if (option := drafting_option(config, options)) not in ("", "prompt_lookup_num_tokens"):
            raise PromptTuningError(
                f"{option} is given, whose drafts read the encoder's token ids, and a prompt is none; leave it out, "
                "or give prompt_lookup_num_tokens."
            )
        if config.return_dict_in_generate and is_moved(prompts, sources):
            check_no_attentions(config.output_attentions, backbone.config)
        if texts.input_ids is not None:
            options = with_encoder_ids(options, config, texts.input_ids, sources.caller_mask())
        options.setdefault("use_cache", True)
        result = backbone.generate(inputs_embeds=embeds, attention_mask=mask, **given, **options)
        if not isinstance(result, Tensor) and result.get("encoder_hidden_states") is not None:
            result.encoder_hidden_states = _encoded(result.encoder_hidden_states, prompts, sources, heads)
        return result


def _encoded(value: Any, prompts: Prompts, sources: Examples, heads: RowHeads | None, name: str = "") -> Any:
    """Move an encoder's output to the caller's columns. Attentions stay those of the rows that the encoder sees."""
    value = outputs_in_caller_columns(value, prompts, sources)
    return value if heads is None or name.endswith("attentions") else heads.restored(value)


def _to_the_start(labels: Tensor | None, given: dict[str, Any]) -> tuple[Tensor | None, dict[str, Any], Tensor | None]:
    """Move labels and their mask to the decoder's first positions. Return also the columns' order, None if unchanged.

    A collator may have padded labels at the left, which would shift the decoder's positions.
    """
    if labels is None or given.keys() & DECODER_INPUTS:
        return labels, given, None
    started = (labels != IGNORED).cumsum(1) > 0
    moved = Examples.align(labels.unsqueeze(-1), started, labels)
    if moved.order is None:
        return labels, given, None
    if (mask := given.get("decoder_attention_mask")) is not None:
        given = given | {"decoder_attention_mask": mask.gather(1, moved.order)}
    return moved.labels, given, moved.order

"""Put a soft prompt in front of a causal language model: forward and generate."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from peft import PeftModelForCausalLM
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from ..errors import PromptTuningError
from ..layouts import Candidates, Examples, LabelledLogits, Layout, PackedLayout, Prompts, check_layout_name, choose
from ..layouts.base import IGNORED, token_inputs
from ..layouts.check import disagreement
from ..layouts.choose import judge
from ..layouts.padded import is_moved, labels_where_predicted, padded_rows, predicting_columns
from ..layouts.traits import state_of_choice, takes
from ..sharding import in_step, is_sharded
from .batch_checks import check_labels, check_positions, check_texts, check_unpacked
from .call_arguments import MEDIA, fitted, kept, told_of
from .continuing import Behind, check_alone, checked, columns_in, inputs_behind, mark
from .generation import generate
from .generation_options import from_inputs, inferred_mask
from .labels import agreed_labels, check_fused, from_shifted, fused_as_it_came
from .outputs import LabelledOutput, RankingOutput, came_back, check_has_place, routing_loss
from .prompt_cache import ComputedPrompts, can_be_continued
from .soft_prompts import SoftPrompts


class PromptTuningModelForCausalLM(SoftPrompts, PeftModelForCausalLM):
    """Causal language model with a soft prompt in front.

    Make it with `get_prompt_tuning_model` or `from_pretrained`. It behaves like a `peft.PeftModelForCausalLM`, except
    that results do not depend on where a batch is padded.
    """

    task_type = "CAUSAL_LM"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.use_layout()
        self._computed = ComputedPrompts()

    def use_layout(self, name: str = "auto", max_packed_tokens: int | None = None, check: bool = True) -> None:
        """Set the layout that computes labelled tokens and candidates. It changes the cost, never the result.

        Args:
            name: "auto" (the default: the fastest exact layout for this backbone), "packed", "cached" or "padded".
            max_packed_tokens: a packed row's token budget.
            check: compare the layout with "padded" on two rows before the first batch. A backbone whose config and
                signature prove nothing (a recurrent one) is always checked.
        """
        check_layout_name(name)
        self._layout_request = (name, max_packed_tokens, check)
        self._chosen_layouts: dict[tuple, Layout] = {}

    def _layout(self, prompts: Prompts) -> Layout:
        chosen = self._chosen_layouts  # read first, because `use_layout` in another thread writes it last
        name, max_packed_tokens, check_all = self._layout_request
        backbone = self.base_model
        state = state_of_choice(backbone)
        if state not in chosen:
            # With dropout every pass differs, so no comparison is possible. Processes that share a sharded backbone
            # might get different results, or might have nothing to compare on.
            dropout = backbone.training and self.active_peft_config.backbone_dropout
            check = None
            if not dropout and not is_sharded(backbone):
                # Without a prompt (`disable_adapter`), words take its place: later batches use this choice, too.
                words = torch.arange(4, device=prompts.of_row.device)
                vectors = tuple(filter(len, prompts.vectors))[:2] or (self._embed(words[None])[0],)
                check = partial(disagreement, backbone=backbone, embed=self._embed, prompts=vectors)
            chosen[state] = choose(name, backbone, max_packed_tokens, check, check_all)
        return chosen[state]

    def _with_computed(self, prompts: Prompts, examples: Examples) -> Prompts:
        """Add what was computed of the prompts before. Return the prompts unchanged with gradients or dropout."""
        backbone = self.base_model
        dropout = backbone.training and any(config.backbone_dropout for config in self.peft_config.values())
        if torch.is_grad_enabled() or dropout or not can_be_continued(backbone):
            return prompts
        return self._computed.added_to(prompts, examples.embeds.dtype, backbone)

    def forget_computed_prompts(self) -> None:
        """Compute all prompts again. Call it after a change in the backbone that the next call would not detect."""
        self._computed.forget()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a prompt."""
        super().delete_adapter(adapter_name)
        self._computed.forget(adapter_name)

    def _in_step(self, prompts: Prompts, examples: Examples) -> AbstractContextManager[list[Tensor]]:
        vectors = prompts.vectors[0]
        some = vectors if len(vectors) else vectors.new_zeros(1, vectors.shape[1])
        return in_step(self.base_model, token_inputs(self.base_model, some[None].to(examples.embeds.dtype)))

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
        shift_labels: Tensor | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the backbone's output with the prompt in front.

        Args:
            input_ids: [B, T] long.
            attention_mask: [B, T], zero on pads, which may be anywhere.
            inputs_embeds: [B, T, H], in place of `input_ids`.
            labels: [B, T] long, -100 where nothing is predicted. The first token's label counts too.
            only_labelled: return a `LabelledOutput` of the K labelled tokens, computed in the fastest layout, in place
                of PEFT's logits [B, P+T, V]. Our trainer uses it.
            candidates: L sequences of token ids. Return a `RankingOutput` with their scores for each row.
            adapter_names: the prompt of all rows or of each row, "__base__" for none; default the active one. If the
                prompts' lengths differ, P is the longest one's, and each row's prompt ends at column P-1. So the texts
                line up, and the columns before a shorter prompt hold no meaningful values.
            num_items_in_batch: divide the summed loss by this (Trainer's gradient accumulation), not by K.
            label_smoothing: as in `torch.nn.functional.cross_entropy`.
            shift_labels: in place of `labels`, each label in the column that predicts it: [B, T], or [B, T+1] with the
                first token's label.
            fused_lm_head: return, in place of logits, the label scores that TRL has added to the backbone: [B, T-1] in
                the columns of `labels[:, 1:]`, or as wide as `shift_labels`.
            **kwargs: passed to the backbone. With `only_labelled` or `candidates` they raise an error. Token types get
                0 for the prompt. `logits_to_keep` selects columns of [B, P+T, V]. A `past_key_values` that this method
                has filled holds the prompt: give only the new tokens, with an `attention_mask` of all of the text's
                columns, and get the logits of the new tokens.

        Raises:
            PromptTuningError: neither or both of ids and embeddings are given; the mask is not [B, T]; positions are
                not the default ones; rows are packed; names are unknown; attentions are asked for with pads at the
                left; without `only_labelled`, labels are given that `num_items_in_batch` does not count; or the
                backbone does not take an argument, or the argument cannot be adapted to rows with a prompt.
        """
        check_unpacked(kwargs)
        backbone, texts = self.base_model, input_ids if inputs_embeds is None else inputs_embeds
        if (cache := kwargs.get("past_key_values")) is not None and columns_in(cache):
            asked = {"labels": labels, "shift_labels": shift_labels, "candidates": candidates}
            check_alone(kwargs | asked | {"only_labelled": only_labelled, "fused_lm_head": fused_lm_head})
            check_texts(backbone, input_ids, inputs_embeds, None)
            return self._behind_a_cache(input_ids, inputs_embeds, attention_mask, adapter_names, **kwargs)
        check_texts(backbone, input_ids, inputs_embeds, attention_mask)
        if only_labelled and labels is None and shift_labels is None:
            raise PromptTuningError("only_labelled is given without labels; give labels, or leave it out.")
        if fused_lm_head:
            check_fused(shift_labels if labels is None else labels, label_smoothing, only_labelled, candidates)
        if shift_labels is not None:
            labels = from_shifted(check_labels(backbone, shift_labels, None, len(texts)), texts.shape[1])
        else:
            labels = check_labels(backbone, labels, texts.shape[:2], len(texts))
            if labels is not None and len(self.prompt) and not only_labelled:
                counted = num_items_in_batch is not None
                labels = agreed_labels(labels, attention_mask, backbone, counted, fused_lm_head)
        prompts, examples = self._inputs(input_ids, inputs_embeds, attention_mask, labels, adapter_names)
        check_positions(backbone, kwargs, texts.shape[:2], attention_mask)
        if only_labelled or candidates is not None:
            if given := [name for name, value in kwargs.items() if value is not None]:
                raise PromptTuningError(f"{given[0]} is given with only_labelled or candidates; leave it out.")
            if candidates is not None:
                words = self._candidates(candidates)
                with self._in_step(prompts, examples):
                    return RankingOutput(scores=self._rank(prompts, examples, words))
            layout = self._layout(prompts)
            if layout.name != "padded":
                prompts = self._with_computed(prompts, examples)
            with self._in_step(prompts, examples) as zeros:
                found = layout.labelled_logits(self.base_model, prompts, examples)
            loss = self._loss(found, num_items_in_batch, label_smoothing) + sum(zeros)
            return LabelledOutput(loss=loss, logits=found.logits, targets=found.targets, rows=found.rows)
        arguments = fitted(backbone, kwargs, input_ids, prompts, examples)
        if fused_lm_head:
            arguments["num_items_in_batch"] = num_items_in_batch
            shifted = None if shift_labels is None else shift_labels.shape[1]
            return self._fused_outputs(prompts, examples, shifted, **arguments)
        return self._outputs(prompts, examples, num_items_in_batch, label_smoothing, **arguments)

    def _fused_outputs(
        self, prompts: Prompts, examples: Examples, shifted: int | None, return_dict: bool | None = None, **kwargs: Any
    ) -> ModelOutput | tuple:
        """Return the label scores that TRL has added to the backbone in place of logits."""
        embeds, mask = padded_rows(prompts, examples)
        scored = {"attention_mask": mask, "shift_labels": labels_where_predicted(prompts, examples)} | kwargs
        with told_of(self.base_model, kwargs):
            outputs = self.base_model(**token_inputs(self.base_model, embeds), **scored, fused_lm_head=True)
        result = fused_as_it_came(outputs, prompts, examples, shifted)
        return result.to_tuple() if return_dict is False else result

    def _outputs(
        self,
        prompts: Prompts,
        examples: Examples,
        num_items_in_batch: Tensor | int | None,
        label_smoothing: float,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the backbone's outputs in PEFT's shapes, with our loss."""
        embeds, mask = padded_rows(prompts, examples)
        inputs = token_inputs(self.base_model, embeds) | {"attention_mask": mask, "return_dict": True} | kwargs
        if moved := is_moved(prompts, examples):
            check_has_place(inputs.get("output_attentions"), self.base_model.config)
        early = isinstance(logits_to_keep, int) and examples.labels is None and bool(mask.all())
        if early and takes(self.base_model, "logits_to_keep"):
            # The backbone then computes only these logits.
            inputs["logits_to_keep"], logits_to_keep = logits_to_keep, 0
        with told_of(self.base_model, kwargs):
            outputs = self.base_model(**inputs)
        values: dict[str, Any] = {}
        if examples.labels is not None:
            rows, columns = predicting_columns(prompts, examples.labels)
            targets = examples.labels[examples.labels != IGNORED]
            found = LabelledLogits(outputs.logits[rows, columns], targets, rows)
            values["loss"] = self._loss(found, num_items_in_batch, label_smoothing) + routing_loss(
                outputs, self.config
            )
        for name, value in outputs.items():
            values.setdefault(name, came_back(value, prompts, examples) if moved else value)
        # Select from the caller's columns. They differ from the backbone's if pads are at the left.
        values["logits"] = kept(values["logits"], logits_to_keep)
        if not any(MEDIA.search(name) for name in kwargs):
            behind = Behind(prompts.row_names(), mask.bool(), max(map(len, prompts.vectors)))
            mark(values.get("past_key_values"), behind)
        result = type(outputs)(**values)
        return result.to_tuple() if return_dict is False else result

    def _behind_a_cache(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        adapter_names: str | Sequence[str] | None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the backbone's output for tokens after `past_key_values`: [B, T, V] of the new tokens only."""
        embeds = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        prompts, cache = self._prompts(len(embeds), adapter_names), kwargs["past_key_values"]
        behind = checked(cache, prompts.row_names())
        new = embeds.shape[1]
        inputs, after = inputs_behind(self.base_model, behind, prompts.lengths(), new, attention_mask, position_ids)
        outputs = self.base_model(**token_inputs(self.base_model, embeds), **inputs, **kwargs)
        mark(cache, after)
        return outputs

    def _rank(self, prompts: Prompts, sources: Examples, candidates: Candidates) -> Tensor:
        layout = self._layout(prompts)
        if layout.name != "padded":
            prompts = self._with_computed(prompts, sources)
        return layout.candidate_scores(self.base_model, prompts, sources, candidates)

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        adapter_names: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate after the prompt, which is computed once and kept. Arguments and result are those of transformers.

        Args:
            input_ids: [B, T] long (also as the first positional argument, or `inputs`). As in PEFT, the result starts
                with it. Lengths (`max_length`) count it, but not the prompt.
            attention_mask: [B, T]; pads may be at either side. Without a mask, pads are recognized by their token id,
                as in transformers.
            inputs_embeds: [B, T, H], in place of `input_ids`. The result is then only the new tokens, and the prompt
                is computed again with them.
            adapter_names: the prompt of all rows or of each row, "__base__" for none; default the active one.

        Raises:
            PromptTuningError: names are unknown, `max_length` leaves no room for a new token, or drafts
                (`assistant_model`, …) are asked for with a backbone that cannot continue from a computed prompt.
        """
        input_ids = from_inputs(input_ids, kwargs)
        if kwargs.get("generation_config") is None and "generation_config" in vars(self):
            # A config set on this model applies, and not the backbone's, which other models may share.
            kwargs["generation_config"] = vars(self)["generation_config"]
        kwargs.setdefault("synced_gpus", is_sharded(self.base_model))
        check_texts(self.base_model, input_ids, inputs_embeds, attention_mask)
        texts = input_ids if inputs_embeds is None else inputs_embeds
        if attention_mask is None and input_ids is not None:
            attention_mask = inferred_mask(self.base_model, kwargs, input_ids)
        check_positions(self.base_model, kwargs, texts.shape[:2], attention_mask)
        with torch.no_grad():
            prompts, examples = self._inputs(input_ids, inputs_embeds, attention_mask, adapter_names=adapter_names)
            layout = self._layout_for_texts()
            return generate(self.base_model, prompts, examples, input_ids, kwargs, self._with_computed, layout)

    def _layout_for_texts(self) -> PackedLayout | None:
        """Return the packed layout if it is exact for this backbone, `use_layout` allows it, and no check failed."""
        name, max_packed_tokens, _ = self._layout_request
        found = [layout.name for layout in list(self._chosen_layouts.values())]
        if name not in ("auto", "packed") or any(layout != "packed" for layout in found):
            return None
        layout = judge("packed", self.base_model, max_packed_tokens).layout
        return layout if isinstance(layout, PackedLayout) else None

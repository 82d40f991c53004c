"""Put a soft prompt in front of a causal language model: forward and generate."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft import PeftModelForCausalLM
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from ..compat.transformers import cache_in, with_cache_renamed
from ..layouts import Candidates, Examples, LabelledLogits, Layout, PackedLayout, Prompts, choose
from ..layouts.base import IGNORED, token_inputs
from ..layouts.check import disagreement
from ..layouts.choose import check_layout_name, check_row_budget, make_layout, why_inexact
from ..layouts.computed import ComputedPrompts, can_be_continued
from ..layouts.label_search import LabelSearch, searched_scores
from ..layouts.padded import is_moved, labels_where_predicted, predicting_columns, row_inputs
from ..layouts.sharing import in_step, is_sharded
from ..layouts.traits import state_of_choice, takes, without_router_scores
from . import batch_checks, continuing
from .batch_checks import Targets, Texts
from .call_arguments import (
    MEDIA,
    TEXT_ALONE,
    CallArguments,
    check_taken,
    explained_media_errors,
    given_beside,
    selected_columns,
)
from .distillation import LabelDistillation, TokenDistillation
from .generation import generate
from .generation_options import from_inputs, inferred_mask, model_arguments
from .heads import RowHeads
from .labels import check_fused_head, check_no_head_labels, fused_in_caller_columns, labels_for_trainers
from .outputs import LabelledOutput, check_no_attentions, outputs_in_caller_columns, routing_loss
from .soft_prompts import SoftPrompts, embed


class PromptTuningModelForCausalLM(SoftPrompts, PeftModelForCausalLM):
    """Causal language model with a soft prompt in front.

    Make it with `get_prompt_tuning_model` or `from_pretrained`. It behaves like a `peft.PeftModelForCausalLM`, except
    that results do not depend on where a batch is padded.

    - Prompts of different lengths in a batch: P is the longest one's length, and each row's prompt ends at column P-1.
      So the texts line up, and the columns before a shorter prompt hold no meaningful values.
    - Arguments for the backbone: token types get 0 for the prompt, and `logits_to_keep` selects columns of
      [B, P+T, V]. A `past_key_values` that `forward` has filled holds the prompt: give only the new tokens, with an
      `attention_mask` of all of the text's columns, and get the logits of the new tokens.
    - `forward` refuses a mask that is not [B, T], positions other than the default ones, packed rows, attentions of
      rows that are padded at the left, and (without `only_labelled`) labels that `num_items_in_batch` does not count.
    """

    task_type = "CAUSAL_LM"
    _layout_request: tuple[str, int | None, bool] = ("auto", None, True)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._chosen_layouts: dict[tuple, Layout] = {}
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
        check_row_budget(max_packed_tokens)
        self._layout_request, self._chosen_layouts = (name, max_packed_tokens, check), {}

    @property
    def chosen_layouts(self) -> list[str]:
        """Names of the layouts of the calls since `use_layout`: one for each state of the backbone."""
        return [layout.name for layout in list(self._chosen_layouts.values())]

    def _layout(self, prompts: Prompts) -> Layout:
        chosen = self._chosen_layouts  # read first, because `use_layout` in another thread writes it last
        name, max_packed_tokens, check_all = self._layout_request
        state = state_of_choice(backbone := self.base_model)
        if state not in chosen:
            # With dropout every pass differs, so no comparison is possible. Processes that share a sharded backbone
            # might get different results, or might have nothing to compare on.
            check, dropout = None, backbone.training and self.active_peft_config.backbone_dropout
            if not dropout and not is_sharded(backbone):
                # Without a prompt (`disable_adapter`), words take its place: later batches use this choice, too. They
                # stand in the middle of the vocabulary: among the first may be the pad token, whose vector is zero
                # and has no gradient in Gemma 3n.
                words = self.word_embeddings.num_embeddings // 2 + torch.arange(4, device=prompts.of_row.device)
                vectors = tuple(filter(len, prompts.vectors))[:2] or (embed(backbone, words[None])[0],)
                check = partial(disagreement, backbone=backbone, embed=partial(embed, backbone), prompts=vectors)
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
        tokens = vectors if len(vectors) else vectors.new_zeros(1, vectors.shape[1])
        return in_step(self.base_model, token_inputs(self.base_model, tokens[None].to(examples.embeds.dtype)))

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
        distillation: TokenDistillation | LabelDistillation | None = None,
        search: LabelSearch | None = None,
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
            adapter_names: the prompt of all rows or of each row, "__base__" for none; default the active one.
            num_items_in_batch: divide the summed loss by this (Trainer's gradient accumulation), not by K.
            label_smoothing: as in `torch.nn.functional.cross_entropy`.
            shift_labels: in place of `labels`, each in the column that predicts it: [B, T], or [B, T+1] with the
                first token's label.
            fused_lm_head: return, in place of logits, the label scores that TRL has added to the backbone: [B, T-1] in
                the columns of `labels[:, 1:]`, or as wide as `shift_labels`.
            distillation: what a teacher predicts for the same labelled tokens (with `only_labelled`) or candidates.
                The loss is then that of learning from it.
            search: which of the candidates' scores are needed. Of many candidates, others may be left out. With
                gradients, all are computed.
            **kwargs: passed to the backbone. With `only_labelled` or `candidates` they raise an error.

        Raises:
            PromptTuningError: an argument is invalid, or cannot be adapted to rows with a prompt.
        """
        scoring = num_items_in_batch, label_smoothing, shift_labels, fused_lm_head
        options = {"distillation": distillation, "search": search}
        targets = Targets(labels, only_labelled, candidates, *scoring, **options)
        return self._run(Texts(input_ids, attention_mask, inputs_embeds, adapter_names), targets, kwargs)

    def _run(self, texts: Texts, targets: Targets, arguments: dict[str, Any]) -> ModelOutput | tuple:
        """Check a call of `forward`, give its rows their prompts, and compute what it asks for."""
        batch_checks.check_unpacked(arguments)
        batch_checks.check_one_goal(targets)
        if arguments and continuing.columns_in(cache_in(arguments := with_cache_renamed(self.base_model, arguments))):
            continuing.check_only_new_tokens(arguments | vars(targets))
            batch_checks.check_texts(self.base_model, texts, None)
            return self._behind_a_cache(texts, **arguments)
        batch_checks.check_texts(self.base_model, texts, texts.attention_mask)
        batch_checks.check_targets(targets)
        labels = batch_checks.check_labels(self.base_model, targets.labels, texts.shape, texts.shape[0])
        batch_checks.check_positions(self.base_model, arguments, texts.shape, texts.attention_mask)
        prompts = self._prompts(texts.shape[0], texts.adapter_names)
        heads = self._heads(prompts, texts)
        behind_head = (torch.zeros_like(prompts.of_row) if heads is None else heads.given) > 0
        if not targets.only_labelled or targets.shift_labels is not None or targets.fused_lm_head:
            has_prompt = len(self.prompt) > 0
            labels = labels_for_trainers(self.base_model, labels, texts, targets, has_prompt, behind_head)
        if heads is not None:
            labels, of_heads = heads.labels_off(labels)
            targets = replace(targets, labels_of_heads=check_no_head_labels(of_heads, targets))
            texts, arguments = heads.off(texts), heads.arguments_off(self.base_model, arguments)
        labelled_alone = targets.only_labelled or targets.candidates is not None
        given = given_beside(self.base_model, texts, arguments, labelled_alone) if arguments else TEXT_ALONE
        examples = self._examples(prompts, texts, labels, given)
        if targets.candidates is not None:
            batch_checks.check_stands_behind_something(prompts, examples)
            candidates = self._candidates(targets.candidates)
            batch_checks.check_search(targets, len(examples.mask), len(candidates.ids))
            return self._ranked(*self._rank(prompts, examples, candidates, targets.search), targets)
        if targets.only_labelled:
            return self._labelled(prompts, examples, targets)
        if targets.fused_lm_head:
            return self._fused_outputs(prompts, examples, targets, heads, **given.others)
        return self._outputs(prompts, examples, targets, heads, given, **given.others)

    def _labelled(self, prompts: Prompts, examples: Examples, targets: Targets) -> LabelledOutput:
        """Return loss and predictions of the labelled tokens, computed in the fastest layout."""
        layout, prompts = self._layout_and_prompts(prompts, examples)
        with self._in_step(prompts, examples) as zeros:
            predictions = layout.labelled_logits(self.base_model, prompts, examples)
        return self._labelled_output(predictions, self._loss(predictions, targets) + sum(zeros))

    def _rank(
        self, prompts: Prompts, sources: Examples, candidates: Candidates, search: LabelSearch | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the log-likelihood of each candidate after each source, [B, L], computed in the fastest layout.

        The second value is how many nodes a search computed, [B] long; None without a search.
        """
        backbone, candidates = self.base_model, candidates.of_dtype(sources.embeds.dtype)
        with self._in_step(prompts, sources) as zeros:
            layout, prompts = self._layout_and_prompts(prompts, sources)
            if search is not None and not torch.is_grad_enabled() and layout.searches(backbone):
                return searched_scores(layout, backbone, prompts, sources, candidates, search)
            scores = layout.candidate_scores(backbone, prompts, sources, candidates)
        return scores + sum(zeros), None

    def _layout_and_prompts(self, prompts: Prompts, examples: Examples) -> tuple[Layout, Prompts]:
        """Return the layout, and the prompts with what was computed of them before, if the layout uses it."""
        layout = make_layout("padded", self.base_model) if examples.beside else self._layout(prompts)
        return layout, prompts if layout.name == "padded" else self._with_computed(prompts, examples)

    def _fused_outputs(
        self,
        prompts: Prompts,
        examples: Examples,
        targets: Targets,
        heads: RowHeads | None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the label scores that TRL has added to the backbone in place of logits."""
        inputs = row_inputs(self.base_model, prompts, examples) | kwargs
        shifted = labels_where_predicted(prompts, examples)
        if targets.labels_of_heads is not None:
            shifted[:, : targets.labels_of_heads.shape[1] - 1] = targets.labels_of_heads[:, 1:]
        inputs |= {"shift_labels": shifted, "fused_lm_head": True}
        with explained_media_errors(self.base_model, kwargs):
            outputs = self.base_model(**inputs, num_items_in_batch=targets.num_items_in_batch)
        check_fused_head(self.base_model, outputs)
        result = fused_in_caller_columns(outputs, prompts, examples, targets, heads)
        return result.to_tuple() if return_dict is False else result

    def _outputs(
        self,
        prompts: Prompts,
        examples: Examples,
        targets: Targets,
        heads: RowHeads | None,
        given: CallArguments,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the backbone's outputs in PEFT's shapes, with our loss."""
        inputs = row_inputs(self.base_model, prompts, examples) | {"return_dict": True} | kwargs
        mask = inputs["attention_mask"]
        continuing.check_holds(cache_in(kwargs), mask.shape[1])
        if moved := is_moved(prompts, examples):
            check_no_attentions(inputs.get("output_attentions"), self.base_model.config)
        early = isinstance(logits_to_keep, int) and examples.labels is None and bool(mask.all())
        if early and heads is not None and logits_to_keep:
            early = heads.keeps_last(logits_to_keep)
        if early and takes(self.base_model, "logits_to_keep"):
            # The backbone then computes only these logits.
            inputs["logits_to_keep"], logits_to_keep = logits_to_keep, 0
        with explained_media_errors(self.base_model, kwargs):
            outputs = self.base_model(**inputs)
        values: dict[str, Any] = {}
        if examples.labels is not None:
            rows, columns = predicting_columns(prompts, examples.labels)
            token_ids = examples.labels[examples.labels != IGNORED]
            if (of_heads := targets.labels_of_heads) is not None:
                more, places = (of_heads != IGNORED).nonzero(as_tuple=True)
                rows, columns = torch.cat([rows, more]), torch.cat([columns, places - 1])
                token_ids = torch.cat([token_ids, of_heads[more, places]])
            predictions = LabelledLogits(outputs.logits[rows, columns], token_ids, rows)
            values["loss"] = self._loss(predictions, targets) + routing_loss(outputs, self.config)
        for name, value in outputs.items():
            value = outputs_in_caller_columns(value, prompts, examples) if moved else value
            keeps = heads is None or name in ("loss", "attentions")
            values.setdefault(name, value if keeps else heads.restored(value))
        # Select from the caller's columns. They differ from the backbone's if pads are at the left.
        values["logits"] = selected_columns(values["logits"], logits_to_keep)
        if not given.media and not any(MEDIA.search(name) for name in kwargs):
            continuing.mark(cache_in(values), continuing.CacheContent.behind(prompts, mask))
            if heads is not None:
                heads.mark(cache_in(values), heads.text_columns)
        result = type(outputs)(**values)
        return result.to_tuple() if return_dict is False else result

    def _behind_a_cache(self, texts: Texts, position_ids: Tensor | None = None, **kwargs: Any) -> ModelOutput | tuple:
        """Return the backbone's output for tokens after `past_key_values`: [B, T, V] of the new tokens only."""
        batch, new = texts.shape
        prompts, cache = self._prompts(batch, texts.adapter_names), cache_in(kwargs)
        content, embeds = continuing.content_of(cache, prompts.row_names()), self._embedded(texts)
        check_taken(self.base_model, kwargs)
        given = texts.attention_mask, position_ids
        inputs, after = continuing.continued_inputs(self.base_model, content, prompts.lengths(), new, *given)
        continuing.check_holds(cache, after.mask.shape[1])
        inputs |= token_inputs(self.base_model, embeds) | without_router_scores(self.base_model, kwargs)
        outputs = self.base_model(**inputs, **kwargs)
        continuing.mark(cache, after)
        return outputs

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
        texts = Texts(from_inputs(input_ids, kwargs), attention_mask, inputs_embeds, adapter_names)
        kwargs = with_cache_renamed(self.base_model, kwargs)
        self._prepare_generation(texts, kwargs)
        if texts.attention_mask is None and texts.input_ids is not None:
            texts = replace(texts, attention_mask=inferred_mask(self.base_model, kwargs, texts.input_ids))
        batch_checks.check_positions(self.base_model, kwargs, texts.shape, texts.attention_mask)
        with torch.no_grad():
            prompts = self._prompts(texts.shape[0], texts.adapter_names)
            if (heads := self._heads(prompts, texts)) is not None:
                texts, kwargs = heads.off(texts), heads.streamed(heads.arguments_off(self.base_model, kwargs))
            arguments, options = model_arguments(self.base_model, kwargs)
            given = given_beside(self.base_model, texts, arguments) if arguments else TEXT_ALONE
            examples = self._examples(prompts, texts, given=given)
            batch_checks.check_stands_behind_something(prompts, examples)
            ways = self._with_computed, self._packed_layout
            return generate(self.base_model, prompts, examples, texts.input_ids, given, options, *ways, heads)

    def _packed_layout(self) -> PackedLayout | None:
        """Return the packed layout if it is exact for this backbone, `use_layout` allows it, and no check failed.

        Generation gives it positions.
        """
        name, max_packed_tokens, _ = self._layout_request
        allowed = name in ("auto", "packed") and all(layout == "packed" for layout in self.chosen_layouts)
        if not allowed or why_inexact("packed", self.base_model) or not takes(self.base_model, "position_ids"):
            return None
        return make_layout("packed", self.base_model, max_packed_tokens)

"""Put a soft prompt in front of a backbone that finds answers in texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModelForQuestionAnswering
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ..data.answer_collator import IN_CONTEXT, DataCollatorForAnswers
from ..data.answer_template import AnswerTemplate
from ..data.answer_windows import AnswerTokenizer
from ..errors import PromptTuningError
from ..layouts.traits import token_types
from .answer_spans import Answer, answers_of_rows, best_spans
from .answers import answer_loss, checked_answers
from .batch_checks import Texts
from .classifiers import QUESTION_ANS
from .head_reading import read
from .own_heads import HeadOutsideBackbone, OwnHeads


class PromptTuningModelForQuestionAnswering(OwnHeads, HeadOutsideBackbone, PeftModelForQuestionAnswering):
    """Model that finds where an answer begins and ends in a text, with a soft prompt in front of the text.

    Logits are those of the text's tokens, [B, T] in the caller's columns, without columns of the prompt. A pad has the
    lowest number there is, so that no answer begins or ends on it, and a row's loss does not depend on the batch that
    it is in. The prompt holds its own copy of the head in fp32, which trains with it; `train_head=False` leaves it as
    it is.
    """

    task_type = QUESTION_ANS

    def row_encoder(
        self, tokenizer: PreTrainedTokenizerBase, template: AnswerTemplate | None = None, name: str | None = None
    ) -> AnswerTokenizer:
        """Return what turns questions and contexts into windows, with a template, default that of the prompt `name`.

        A prompt without a template has the default one. Raise PromptTuningError if it is for another task, its
        windows do not fit behind the prompt, or the tokenizer is a slow one.
        """
        name = name or self.active_adapter
        template = self.prompt_info[name].template if template is None else template
        template = AnswerTemplate() if template is None else template
        if not isinstance(template, AnswerTemplate):
            raise PromptTuningError(
                f"template is a {type(template).__name__}, and the backbone's head finds answers; give an "
                "AnswerTemplate."
            )
        room, backbone = self.room(name), self.base_model
        room = None if room is None else room + len(self.peft_config[name].head)  # with which each row begins
        # A tokenizer may write types that a backbone has no embeddings of.
        with_types = token_types(backbone) > 1
        return AnswerTokenizer(template.behind_prompt(room), tokenizer, with_types)

    @torch.no_grad()
    def answer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str | Sequence[str],
        context: str | Sequence[str],
        template: AnswerTemplate | None = None,
        batch_size: int = 8,
    ) -> Answer | list[Answer]:
        """Find the answer to a question in a text, or to each of several questions in its own text.

        Args:
            tokenizer: the backbone's, a fast one.
            question, context: two texts, or two lists (or columns of a dataset) of as many texts.
            template: default that of the active prompt.
            batch_size: how many windows are read at once, 1 or more.

        Returns:
            An `Answer` of `text`, `start` and `score`, or a list of them in the order of the questions.

        Raises:
            PromptTuningError: question and context are neither two texts nor lists of as many, or as `row_encoder`.
        """
        one = isinstance(question, str) and isinstance(context, str)
        questions, contexts = ([question], [context]) if one else (question, context)
        _check_asked(questions, contexts, batch_size)
        encoder, collate = self.row_encoder(tokenizer, template), DataCollatorForAnswers(tokenizer)
        columns, windows = encoder.template.source_columns, []
        for number, texts in enumerate(zip(questions, contexts, strict=True)):
            try:
                windows += encoder.encode(dict(zip(columns, texts, strict=True)), False, number=number)
            except PromptTuningError as error:
                raise PromptTuningError(f"question {number + 1}: {error}") from error
        if not windows:
            return []
        found = []
        for i in range(0, len(windows), batch_size):
            batch = {name: values.to(self.device) for name, values in collate(windows[i : i + batch_size]).items()}
            in_context, _ = batch.pop(IN_CONTEXT), batch.pop("labels")
            outputs = self(**batch)
            logits, mask = (outputs.start_logits, outputs.end_logits), batch["attention_mask"]
            found.append(best_spans(*logits, in_context, mask, encoder.template.longest_answer))
        spans, scores = (np.concatenate([part.cpu() for part in parts]) for parts in zip(*found, strict=True))
        answers = answers_of_rows(windows, spans, scores, encoder.template.no_answers)
        return answers[0] if one else answers

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        adapter_names: str | Sequence[str] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the output of the backbone's class, whose head reads the text behind the prompt.

        Args:
            input_ids: [B, T] long.
            attention_mask: [B, T], zero on pads, which may be at either side.
            inputs_embeds: [B, T, H], in place of `input_ids`.
            start_positions: [B] long, the column in which each row's answer begins, without the prompt. As in
                transformers, a row whose answer is beyond its end (T or more) is left out.
            end_positions: the same of the column in which it ends.
            adapter_names: the prompt of all rows, "__base__" for none (and the backbone's own head); default the
                active one.
            num_items_in_batch: divide the summed loss by this, not by the number of answers.
            **kwargs: `token_type_ids` [B, T] (the prompt gets 0), `output_hidden_states` (those of the text, [B, T, H]
                each), `output_attentions` (of rows padded at the right, prompt included), `return_dict`.

        Returns:
            An output with `start_logits` and `end_logits`, [B, T] in fp32, and with both positions `loss`, the mean of
            the two.

        Raises:
            PromptTuningError: an argument is invalid, or cannot be adapted to rows with a prompt; a position is that
                of a pad, or is given without the other.
        """
        texts = Texts(input_ids, attention_mask, inputs_embeds, adapter_names)
        return_dict = kwargs.pop("return_dict", None)
        call = self._prepared(texts, kwargs)
        positions = checked_answers(start_positions, end_positions, call.tokens.mask)
        outputs = read(self.base_model, self._head(call.name), call, call.tokens)
        for name in ("start_logits", "end_logits"):
            logits = outputs[name]
            outputs[name] = logits.masked_fill(~call.tokens.mask, torch.finfo(logits.dtype).min)
        if positions is not None:
            logits = outputs.start_logits, outputs.end_logits
            losses = [answer_loss(*pair, num_items_in_batch) for pair in zip(logits, positions, strict=True)]
            outputs = type(outputs)(loss=self._told_if_untrainable(sum(losses) / 2), **outputs)
        return outputs.to_tuple() if return_dict is False else outputs


def _check_asked(questions: Any, contexts: Any, batch_size: Any) -> None:
    """Raise PromptTuningError if there are no two lists of as many texts, or a batch of no windows."""
    if not all(isinstance(texts, Sequence) and not isinstance(texts, str) for texts in (questions, contexts)):
        raise PromptTuningError(
            f"question is a {type(questions).__name__}, and context a {type(contexts).__name__}; give two texts, or "
            "two lists of texts."
        )
    if len(questions) != len(contexts):
        raise PromptTuningError(
            f"there are {len(questions)} questions and {len(contexts)} contexts; give each question its context."
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise PromptTuningError(f"batch_size is {batch_size!r:.80}; give 1 or more windows.")

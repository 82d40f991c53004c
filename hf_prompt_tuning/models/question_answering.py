"""Put a soft prompt in front of a backbone that finds answers in texts."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModelForQuestionAnswering
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

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

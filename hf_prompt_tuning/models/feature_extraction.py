"""Put a soft prompt in front of a base model, which has no head, for embeddings of texts and tokens."""

import logging
from collections.abc import Sequence
from typing import Any

from peft import PeftModelForFeatureExtraction
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from ..prompts.files import SavedPrompt
from ..prompts.info import PromptInfo
from .base_models import FEATURES
from .batch_checks import Texts
from .classifiers import is_other_pooler, pooler_sample
from .head_reading import hidden_states
from .text_rows import TextRows

logger = logging.getLogger(__name__)


class PromptTuningModelForFeatureExtraction(TextRows, PeftModelForFeatureExtraction):
    """Model that gives hidden states of a text, with a soft prompt in front of the text.

    They are those of the text's tokens, [B, T, H] in the caller's columns, without columns of the prompt. The states
    of pads are 0. A pooler reads the text's first token, as without a prompt.
    """

    task_type = FEATURES
    _other_poolers: frozenset[str] = frozenset()
    """The prompts that were trained behind another pooler than the backbone's."""

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        super()._setup_prompt_encoder(adapter_name)
        self._other_poolers -= {adapter_name}
        self._describe_pooler(self.prompt_encoder[adapter_name].info)

    def _describe_pooler(self, info: PromptInfo) -> PromptInfo:
        if (pooler := pooler_sample(self.base_model)) is not None:
            info.backbone["pooler"] = pooler
        return info

    def _undescribed(self, adapter_name: str) -> PromptInfo:
        return self._describe_pooler(super()._undescribed(adapter_name))

    def _fill(self, saved: SavedPrompt, adapter_name: str, is_trainable: bool, is_new: bool) -> None:
        super()._fill(saved, adapter_name, is_trainable, is_new)
        self._other_poolers -= {adapter_name}
        if is_other_pooler(saved.backbone.get("pooler"), self.base_model):
            self._other_poolers |= {adapter_name}
            logger.warning(
                "The backbone's pooler has other weights than the one that %s was trained behind, so that "
                "pooler_output is None; last_hidden_state does not depend on it. If the backbone's files lack the "
                "pooler, transformers draws it anew in each load: save the backbone once, and load that folder.",
                saved.source,
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        adapter_names: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """Return the output of the backbone, of the text's tokens alone.

        Args:
            input_ids: [B, T] long.
            attention_mask: [B, T], zero on pads, which may be at either side.
            inputs_embeds: [B, T, H], in place of `input_ids`.
            adapter_names: the prompt of all rows, "__base__" for none; default the active one.
            **kwargs: `token_type_ids` [B, T] (the prompt gets 0), `output_hidden_states` (those of the text, [B, T, H]
                each), `output_attentions` (of rows padded at the right, prompt included), `return_dict`.

        Returns:
            An output with `last_hidden_state` [B, T, H], and where the backbone has a pooler, `pooler_output` [B, H],
            in the backbone's dtype. It is None if the prompt was trained behind another pooler.

        Raises:
            PromptTuningError: an argument is invalid, or cannot be adapted to rows with a prompt.
        """
        texts = Texts(input_ids, attention_mask, inputs_embeds, adapter_names)
        return_dict = kwargs.pop("return_dict", None)
        call = self._prepared(texts, kwargs)
        outputs = hidden_states(self.base_model, call, call.tokens)
        if call.name in self._other_poolers:
            outputs = type(outputs)(**{name: value for name, value in outputs.items() if name != "pooler_output"})
        outputs.last_hidden_state = outputs.last_hidden_state.masked_fill(~call.tokens.mask[..., None], 0)
        return outputs.to_tuple() if return_dict is False else outputs

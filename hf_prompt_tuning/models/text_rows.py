"""Prepare the rows of a call whose output is that of the text's tokens alone: heads, and features of base models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from peft import PromptTuningConfig as PeftPromptTuningConfig

from ..errors import PromptMismatchError, PromptTuningError
from ..layouts import Prompts
from ..layouts.base import token_inputs
from ..layouts.packed_texts import PackedTexts
from ..layouts.padded import padded_rows
from ..layouts.sharing import is_sharded
from ..prompts.files import SavedPrompt
from .batch_checks import NO_PROMPT, Texts, check_room, check_texts, check_unpacked
from .call_arguments import OF_FORWARD, TOKEN_TYPES, arguments_in_rows
from .decoded_texts import DecodedTexts, decoded_texts, reads_decoder
from .heads import RowHeads
from .outputs import check_no_attentions
from .soft_prompts import SoftPrompts
from .text_columns import TextColumns
from .text_layouts import TextLayouts


@dataclass(frozen=True)
class TextCall:
    """A call that passed all checks.

    Attributes:
        name: the prompt of all rows.
        rows: the arguments of the base model, for rows with the prompt.
        tokens: the columns of the texts' tokens in the hidden states of these rows.
        decoded: the texts as a decoder reads them; None without one.
        packed: where the tokens of the rows stand in packed rows; None if they stay padded.
    """

    name: str
    rows: dict[str, Any]
    tokens: TextColumns
    decoded: DecodedTexts | None = None
    packed: PackedTexts | None = None


class TextRows(TextLayouts, SoftPrompts):
    """Base of the model classes that give what a backbone without a language model's head gives of the text."""

    def add_adapter(self, adapter_name: str, peft_config: PeftPromptTuningConfig, *args: Any, **kwargs: Any) -> None:
        """Add a prompt; see `HeldPrompts.add_adapter`.

        Raise PromptTuningError also for a position other than "start", "after_bos" and "auto".
        """
        if getattr(peft_config, "prompt_position", None) == "system":
            raise PromptTuningError(
                "prompt_position is system, and this model reads rows of tokens, not chats; use start, or after_bos."
            )
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)

    def _check_saved(self, saved: SavedPrompt, ignore_mismatch: bool) -> None:
        super()._check_saved(saved, ignore_mismatch)
        if saved.config.task_type not in (None, self.task_type):
            raise PromptMismatchError(
                f"{saved.source} is a prompt of task type {saved.config.task_type}, and this model is for "
                f"{self.task_type}; load it with load_prompt."
            )

    def row_encoder(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise PromptTuningError: the model reads rows of token ids."""
        raise PromptTuningError(
            f"{type(self).__name__} reads rows of token ids, and templates, rankings and pipelines of this package "
            "are for language models. Give the model rows of input_ids (tokenizer(texts)), and train it with "
            "transformers' Trainer; or load the backbone with AutoModelForCausalLM."
        )

    def _prepared(self, texts: Texts, arguments: dict[str, Any]) -> TextCall:
        """Return a call that can be made exactly. Raise PromptTuningError for another one."""
        self._check_call(texts, arguments)
        prompts = self._prompts(texts.shape[0], texts.adapter_names)
        name = self._only_prompt(prompts)
        device = (texts.input_ids if texts.inputs_embeds is None else texts.inputs_embeds).device
        mask = torch.ones(texts.shape, device=device) if texts.attention_mask is None else texts.attention_mask
        heads = self._checked_heads(prompts, texts, arguments)
        if not reads_decoder(self.base_model):
            rows, tokens = self._rows(prompts, texts, heads, arguments), TextColumns.of(prompts, mask.bool(), heads)
            return TextCall(name, rows, tokens, packed=self._packed_texts(rows))
        decoded = decoded_texts(self.base_model, texts, mask.bool(), arguments)
        rows = self._rows(prompts, texts, heads, arguments) | decoded.inputs(self.base_model)
        return TextCall(name, rows, decoded.tokens, decoded)

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
            raise PromptTuningError("use_cache is given, and this model's output is not continued; leave it out.")
        if arguments.pop("position_ids", None) is not None:
            raise PromptTuningError("position_ids are given, and they are counted behind a prompt; leave them out.")
        if is_sharded(backbone):
            raise PromptTuningError(
                "the backbone's weights are spread over processes (FSDP2, ZeRO-3), which works with language models "
                "alone; train with one process, or with several that each hold the backbone (DDP)."
            )

    def _only_prompt(self, prompts: Prompts) -> str:
        """Return the name of the prompt of all rows. Raise PromptTuningError for several, or one that is not there."""
        names = prompts.names
        if len(names) > 1:
            raise PromptTuningError(
                f"adapter_names has {names[0]!r} and {names[1]!r}, and this model reads rows of one prompt in a call; "
                "give those of each by themselves."
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
        check_room(backbone, embeds.shape[1], int(prompts.lengths().max()))
        return token_inputs(backbone, embeds) | {"attention_mask": mask, "return_dict": True} | arguments

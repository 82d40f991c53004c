"""A teacher in a run: how it reads rows, and which prompt each of its rows stands behind."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.chat_tokenization import RowTemplate, row_tokenizer
from ..data.collator import DataCollatorForPromptTuning
from ..data.heads import needs_system_turn
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..models.batch_checks import NO_PROMPT
from ..models.fixed_prompts import FixedPrompt
from ..models.soft_prompts import SoftPrompts
from .arguments import PromptTuningArguments
from .setup import parts
from .teacher import TaughtPrompt
from .teacher_rows import TeacherRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Voice:
    """A teacher in a run.

    Attributes:
        number: its place among the run's teachers.
        rows: writes rows as it reads them.
        names: its prompts, as rows name them; none of a text, whose prompt is what its rows begin with.
        context: the prompt of a text, which rows behind it begin with; None before the data is known.
    """

    number: int
    rows: TeacherRows
    names: tuple[str, ...] = ()
    context: FixedPrompt | None = None

    @property
    def name(self) -> str:
        """The name of the text's prompt."""
        return f"__teacher_{self.number}__"

    def names_of_rows(self, batch: dict[str, Tensor]) -> list[list[str]]:
        """Return the prompts of a batch's rows, for each call that the teacher makes."""
        size = len(batch["input_ids"])
        if self.names:
            return [[name] * size for name in self.names]
        if self.context is None:
            return [[NO_PROMPT] * size]
        return [[self.name if begins else NO_PROMPT for begins in _begin(batch, self.context.head_ids).tolist()]]


def _begin(batch: dict[str, Tensor], head: Tensor) -> Tensor:
    """Tell which rows begin with the tokens of a head, [B] bool, wherever their pads are."""
    real = batch["attention_mask"].bool()
    place = real.long().cumsum(1) - 1
    expected = head.to(place.device)[place.clamp(0, len(head) - 1)]
    same = (batch["input_ids"] == expected) | ~real | (place >= len(head))
    return same.all(1) & (real.sum(1) > len(head))


def own_encoder(
    prompts: Sequence[TaughtPrompt],
    model: SoftPrompts,
    tokenizer: PreTrainedTokenizerBase | None,
    encoder: PromptTokenizer,
) -> PromptTokenizer | None:
    """Return what turns rows into token ids for prompts that teach; None if they read what the student reads."""
    template = encoder.template
    for prompt in prompts:
        if prompt.template is not None and parts(prompt.template) != parts(template):
            logger.warning(
                "The teacher was trained with the template %r, and reads the rows of this run, with %r.",
                prompt.template.source,
                template.source,
            )
    config = model.peft_config[model.active_adapter]
    placed = next((prompt for prompt in prompts if prompt.position == "system"), prompts[0])
    head = placed.fixed.head_ids.tolist()
    always = needs_system_turn(placed.position, template.chat, tokenizer, head or None)
    if always == needs_system_turn(config.prompt_position, template.chat, tokenizer, config.head):
        return None
    return row_tokenizer(template, tokenizer, model.config.is_encoder_decoder, always)


def check_run(args: Any, template: RowTemplate | None, collator: Any) -> None:
    """Raise PromptTuningError for arguments of a teacher that do not suit the template, or know nothing of teachers.

    The caller's collator must know them, too.
    """
    if not isinstance(args, PromptTuningArguments):
        raise PromptTuningError(
            f"a teacher is given with {type(args).__name__}, which do not say how to learn from it; give "
            "PromptTuningArguments."
        )
    if collator is not None and not isinstance(collator, DataCollatorForPromptTuning):
        raise PromptTuningError(
            f"data_collator is a {type(collator).__name__}, and a teacher's rows are batched by "
            "DataCollatorForPromptTuning; give one, or leave it out."
        )
    ranks = template is not None and template.is_classification
    if args.distill_over == "labels" and not ranks:
        raise PromptTuningError(
            "distill_over is 'labels', and the template has none; give a template with label_words, or leave it out."
        )
    if args.teacher_writes is not None and (template is None or ranks):
        raise PromptTuningError(
            f"teacher_writes is {args.teacher_writes}, and {'labels' if ranks else 'rows of token ids'} need no "
            f"answers; {'give distill_over=labels' if ranks else 'give a template'}, or leave it out."
        )


def check_dropout(model: SoftPrompts) -> None:
    """Raise PromptTuningError if the backbone keeps its dropout in training."""
    if model.peft_config[model.active_adapter].backbone_dropout:
        raise PromptTuningError(
            "backbone_dropout is on, and the teacher is the same backbone, whose predictions it would change from "
            "call to call; leave it off."
        )

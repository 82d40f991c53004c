"""Run the teachers of a prompt: the same frozen backbone, behind other tokens or vectors, without a gradient.

What all rows of a teacher begin with (BOS, its text, what a chat template writes around it) is a fixed prompt of the
model. So it is computed once for a whole run, as any prompt that does not train.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.chat_tokenization import RowTemplate, row_tokenizer
from ..data.collator import DataCollatorForPromptTuning
from ..data.encoding import from_list, vocabulary_of
from ..data.heads import needs_system_turn
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.base import LabelledLogits
from ..layouts.traits import max_positions
from ..models.batch_checks import NO_PROMPT
from ..models.distillation import TokenDistillation, in_row_order, mean_distribution
from ..models.fixed_prompts import FixedPrompt
from ..models.soft_prompts import SoftPrompts
from .arguments import PromptTuningArguments
from .setup import parts
from .teacher import TaughtPrompt, Teacher, checked_teachers, prompts_of
from .teacher_rows import TeacherRows, shared_start

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


class Teaching:
    """The teachers of a run.

    Args:
        teacher: a `Teacher`, or a list of them, whose mean distribution is taught.
        model: the model with the prompt that is taught.
        args: the run's arguments.
        tokenizer: the backbone's.
        template: turns the rows into text; None if they are token ids.

    Raises:
        PromptTuningError: a teacher does not suit the model or the rows, or an argument is invalid.
    """

    def __init__(
        self,
        teacher: Teacher | Sequence[Teacher],
        model: SoftPrompts,
        args: PromptTuningArguments,
        tokenizer: PreTrainedTokenizerBase | None,
        template: RowTemplate | None,
    ):
        encoder = None if template is None else model.row_encoder(tokenizer, template)
        config = model.peft_config[model.active_adapter]
        if config.backbone_dropout:
            raise PromptTuningError(
                "backbone_dropout is on, and the teacher is the same backbone, whose predictions it would change from "
                "call to call; leave it off."
            )
        self.teachers, self.args = checked_teachers(teacher), args
        self._limit = max_positions(model.get_base_model())
        self._vocabulary = vocabulary_of(model)
        self._fixed: dict[str, FixedPrompt] = {}
        self._voices = [
            self._voice(number, each, model, tokenizer, encoder) for number, each in enumerate(self.teachers)
        ]
        self._told = False

    def _voice(
        self,
        number: int,
        teacher: Teacher,
        model: SoftPrompts,
        tokenizer: PreTrainedTokenizerBase | None,
        encoder: PromptTokenizer | None,
    ) -> Voice:
        is_encoder_decoder = model.config.is_encoder_decoder
        if teacher.is_context:
            return Voice(number, TeacherRows(teacher, encoder, None, tokenizer, is_encoder_decoder))
        prompts = prompts_of(teacher, model)
        names = tuple(f"__teacher_{number}_{member}__" for member in range(len(prompts)))
        self._fixed |= {name: prompt.fixed for name, prompt in zip(names, prompts, strict=True)}
        own = None if encoder is None else own_encoder(prompts, model, tokenizer, encoder)
        return Voice(number, TeacherRows(teacher, encoder, own, tokenizer, is_encoder_decoder), names)

    @property
    def columns(self) -> list[str]:
        """The columns that a row has for its teachers."""
        return [f"teacher_{voice.number}_{name}" for voice in self._voices for name in ("input_ids", "labels")]

    def added_to(self, encoded: Any, raw: Any, name: str) -> Any:
        """Return encoded rows, or a dict of such, with the columns of the teachers. See `TeacherRows.added_to`."""
        if encoded is None:
            return None
        if isinstance(encoded, dict):
            return {key: self.added_to(rows, raw[key], key) for key, rows in encoded.items()}
        raw = from_list(raw, name) if isinstance(raw, list) else raw
        for voice in self._voices:
            encoded = voice.rows.added_to(encoded, raw, name, voice.number, self._limit, self._vocabulary)
        return encoded

    def find_contexts(self, *data: Any) -> None:
        """Find what the rows of each teacher of text begin with, in the first of these data sets that is one."""
        rows = next((each for each in data if isinstance(each, Dataset)), None)
        if rows is None:
            return
        for place, voice in enumerate(self._voices):
            start = shared_start(rows, f"teacher_{voice.number}_input_ids") if not voice.names else []
            if start:
                context = FixedPrompt.of_text(start, 0)
                self._voices[place] = replace(voice, context=context)
                self._fixed[voice.name] = context

    def attach(self, model: SoftPrompts) -> None:
        """Let a model hold the teachers' prompts."""
        width = model.word_embeddings.embedding_dim
        for name, prompt in self._fixed.items():
            vectors = prompt.vectors if len(prompt.vectors) else torch.zeros(0, width)
            model.set_fixed_prompt(name, replace(prompt, vectors=vectors))

    @torch.no_grad()
    def predictions(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> LabelledLogits:
        """Return what the teachers predict for the labelled tokens of a batch, in the order of `in_row_order`.

        `batches` are the rows as each teacher reads them. Of several teachers, and of several prompts of one, the
        logits are those of their mean distribution.
        """
        model, found = extract_model_from_parallel(model), []
        for voice, batch in zip(self._voices, batches, strict=True):
            for names in voice.names_of_rows(batch):
                output = model(**batch, only_labelled=True, adapter_names=names)
                found.append(in_row_order(LabelledLogits(output.logits, output.targets, output.rows)))
        return replace(found[0], logits=mean_distribution([each.logits for each in found]))

    def lesson(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> TokenDistillation:
        """Return what the loss of a batch's labelled tokens reads of the teachers."""
        predictions = self.predictions(model, batches)
        logits, ids, k = predictions.logits, None, self.args.teacher_top_k
        if k is not None and k < logits.shape[1]:
            top = logits.topk(k, dim=1)
            self._tell_of_rest(logits, top.values)
            logits, ids = top.values, top.indices
        values = self.args.distillation_temperature, self.args.distillation_weight
        return TokenDistillation(logits, predictions.targets, ids, *values)

    def _tell_of_rest(self, logits: Tensor, kept: Tensor) -> None:
        """Log once how much of the teacher's probability is outside its k most likely tokens."""
        if self._told or not len(logits):
            return
        self._told = True
        rest = 1 - (kept.float().logsumexp(-1) - logits.float().logsumexp(-1)).exp().mean()
        logger.warning(
            "teacher_top_k is %d, outside of which the teacher has %.2g of its probability in the first batch; the "
            "student learns nothing of it.",
            self.args.teacher_top_k,
            float(rest),
        )


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


def teaching_of(
    teacher: Any, model: SoftPrompts, args: Any, tokenizer: Any, template: RowTemplate | None, collator: Any
) -> Teaching | None:
    """Return the teachers of a run; None without a teacher.

    Raises:
        PromptTuningError: as `Teaching`; or the arguments or the caller's collator know nothing of teachers.
    """
    if teacher is None:
        return None
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
    return Teaching(teacher, model, args, tokenizer, template)

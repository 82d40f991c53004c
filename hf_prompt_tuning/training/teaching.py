"""Run the teachers of a prompt: the same frozen backbone, behind other tokens or vectors, without a gradient.

What all rows of a teacher begin with (BOS, its text, what a chat template writes around it) is a fixed prompt of the
model. So it is computed once for a whole run, as any prompt that does not train.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.chat_tokenization import RowTemplate
from ..data.collator import TAUGHT_ROWS
from ..data.encoded_rows import has_transform
from ..data.encoding import from_list, vocabulary_of
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.base import IGNORED, LabelledLogits
from ..layouts.traits import max_positions, token_scale
from ..models.distillation import LabelDistillation, TokenDistillation, in_row_order, mean_distribution
from ..models.fixed_prompts import FixedPrompt
from ..models.initialization import embedded_ids, repeated_or_cut
from ..models.scoring import rank_labels, sources
from ..models.soft_prompts import SoftPrompts
from .arguments import PromptTuningArguments
from .teacher import Teacher, checked_teachers, prompts_of
from .teacher_answers import Writer, with_answers, without_target
from .teacher_record import milliseconds, record_of, tokens_saved
from .teacher_rows import TeacherRows, shared_start
from .token_rows import RowEncoder
from .voices import Voice, check_dropout, check_run, own_encoder

logger = logging.getLogger(__name__)


class Teaching:
    """The teachers of a run.

    Args:
        teacher: a `Teacher`, or a list of them, whose mean distribution is taught.
        model: the model with the prompt that is taught.
        args: the run's arguments.
        tokenizer: the backbone's.
        template: turns the rows into text; None if they are token ids.
        collator: the caller's, if any.

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
        collator: Any = None,
    ):
        check_run(args, template, collator)
        self._encoder = encoder = None if template is None else model.row_encoder(tokenizer, template)
        check_dropout(model)
        self.teachers, self.args = checked_teachers(teacher), args
        self._is_encoder_decoder = model.config.is_encoder_decoder
        self._width = model.word_embeddings.embedding_dim
        self._limit = max_positions(model.get_base_model())
        self._vocabulary = vocabulary_of(model)
        self._fixed: dict[str, FixedPrompt] = {}
        self._voices = [
            self._voice(number, each, model, tokenizer, encoder) for number, each in enumerate(self.teachers)
        ]
        self._told = self._has_written = False
        self._times: dict[str, Any] = {}

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
    def is_over_labels(self) -> bool:
        """Whether the divergence is of the labels' scores, and not of tokens."""
        return self.args.distill_over == "labels"

    @property
    def needs_targets(self) -> bool:
        """Whether training rows need targets of their own."""
        by_labels_alone = self.is_over_labels and self.args.distillation_weight == 1
        return self.args.teacher_writes is None and not by_labels_alone

    @property
    def columns(self) -> list[str]:
        """The columns that a row has for its teachers."""
        return [f"teacher_{voice.number}_{name}" for voice in self._voices for name in ("input_ids", "labels")]

    def added_to(self, encoded: Any, raw: Any, name: str, sources_only: bool = False) -> Any:
        """Return encoded rows, or a dict of such, with the columns of the teachers. See `TeacherRows.added_to`.

        With `sources_only`, leave out the rows' targets.
        """
        if encoded is None:
            return None
        if isinstance(encoded, dict):
            if sources_only and "training" in encoded:  # answers are kept by the names of the data
                raise PromptTuningError(
                    "an evaluation data set is called 'training', as the training data is, and the teacher writes "
                    "answers to both; give it another name."
                )
            return {key: self.added_to(rows, raw[key], key, sources_only) for key, rows in encoded.items()}
        raw = from_list(raw, name) if isinstance(raw, list) else raw
        if isinstance(raw, Dataset) and not has_transform(raw):
            raw = raw.with_format(None)
        if sources_only and isinstance(encoded, Dataset):
            if self.columns[0] in encoded.column_names:
                raise PromptTuningError(
                    f"the {name} data was encoded for a teacher already, and teacher_writes asks for new answers; "
                    "give the rows as they were before."
                )
            strip = partial(without_target, is_encoder_decoder=self._is_encoder_decoder)
            options = {"load_from_cache_file": False, "desc": f"Leaving out {name} targets"}
            encoded = encoded.map(strip, features=encoded.features, **options)
        for voice in self._voices:
            encoded = voice.rows.added_to(encoded, raw, name, voice.number, self._room(voice), self._vocabulary)
        return encoded

    def _room(self, voice: Voice) -> int | None:
        """Return the largest number of tokens in a row of a teacher, behind its longest prompt; None for no limit."""
        if self._limit is None:
            return None
        return self._limit - max((len(self._fixed[name].vectors) for name in voice.names), default=0)

    def find_contexts(self, *data: Any) -> None:
        """Find what the rows of each teacher of text begin with, in the first of these data sets that is one."""
        rows = next((each for each in data if isinstance(each, Dataset)), None)
        if rows is None or self._is_encoder_decoder:  # an encoder computes a text anew with each row
            return
        for place, voice in enumerate(self._voices):
            if not voice.names and (start := shared_start(rows, voice.number)):
                self._fixed[voice.name] = FixedPrompt.of_text(start, self._width)
                self._voices[place] = replace(voice, context=self._fixed[voice.name])

    def first_vectors(self, model: SoftPrompts) -> Tensor | None:
        """Return the embeddings of the first tokens of the first text, as many as the prompt's vectors, [P, H] fp32.

        A text of fewer tokens is repeated, as the start `TEACHER` does. None if no teacher is a text of all rows.
        """
        texts = [ids for voice in self._voices if (ids := voice.rows.first_ids())]
        if not texts:
            return None
        ids = repeated_or_cut(texts[0], len(model.prompt))
        embeds = embedded_ids(ids, model.word_embeddings, "the teacher's text has")
        return token_scale(model.get_base_model()) * embeds

    def encoder_of_own_rows(self, rows: RowEncoder) -> RowEncoder:
        """Return what encodes the trainer's own data; other data keeps its targets if the teacher writes them."""
        return replace(rows, sources_only=self.args.teacher_writes is not None)

    def write_targets(self, trainer: Any) -> None:
        """Put what the teachers write into a trainer's data, once, if they are to: one answer to an evaluation row."""
        if self.args.teacher_writes is None or self._has_written:
            return
        self._has_written = True
        options = trainer.rows, trainer.unwrapped
        trainer.train_dataset = self.written(*options, trainer.train_dataset, "training", self.args.teacher_writes)
        trainer.eval_dataset = self.written(*options, trainer.eval_dataset, "evaluation", 1)
        trainer.rows.describe(trainer.unwrapped.info, trainer.train_dataset)  # the example now has a target

    def written(self, rows: RowEncoder, model: SoftPrompts, data: Any, name: str, copies: int) -> Any:
        """Return a data set, or a dict of such, with the answers that the teachers write as its targets.

        `copies` is the number of answers to a row. Return None for None.
        """
        if data is None:
            return None
        if isinstance(data, dict):
            return {key: self.written(rows, model, each, key, copies) for key, each in data.items()}
        answers = Writer(model, self.args, rows.tokenizer, self._voices).answered(data, name, copies)
        limits = {f"teacher_{voice.number}_input_ids": self._room(voice) for voice in self._voices}
        return with_answers(data, answers, limits | {"input_ids": rows.limit}, self._is_encoder_decoder)

    def describe(self, model: SoftPrompts, data: Any, measure: bool) -> None:
        """Record the teachers in the active prompt's description; the times of a request only if asked to `measure`.

        `data` are rows of the trainer. A measured time is kept.
        """
        record = self._record()
        if record["kind"] in ("text", "messages") and isinstance(data, Dataset):
            record["tokens_saved"] = tokens_saved(data, len(model.prompt))
            if measure and not self._times:
                self._times = milliseconds(model, data.with_format(None)[0])
            record |= self._times
        model.info.teacher = record

    def _record(self) -> dict[str, Any]:
        first = self._voices[0]
        tokens, members = len(first.rows.first_ids()), len(first.names)
        return record_of(self.teachers, tokens, members, self.args.publish_teacher_text)

    def attach(self, model: SoftPrompts) -> None:
        """Let a model hold the teachers' prompts, and tell what teaches the active prompt."""
        for name, prompt in self._fixed.items():
            model.set_fixed_prompt(name, prompt)
        model.info.teacher = self._record()  # now, because trackers may not be told the words of a private text

    @torch.no_grad()
    def predictions(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> LabelledLogits:
        """Return what the teachers predict for the labelled tokens of a batch, in the order of `in_row_order`.

        `batches` are the rows as each teacher reads them. Of several teachers, and of several prompts of one, the
        logits are those of their mean distribution.
        """
        model, found = extract_model_from_parallel(model), []
        with model.enable_adapter():  # an evaluation may have disabled the student's
            for voice, batch in zip(self._voices, batches, strict=True):
                for names in voice.names_of_rows(batch):
                    texts = {name: value for name, value in batch.items() if name != TAUGHT_ROWS}
                    output = model(**texts, only_labelled=True, adapter_names=names)
                    found.append(in_row_order(LabelledLogits(output.logits, output.targets, output.rows)))
        return replace(found[0], logits=mean_distribution([each.logits for each in found]))

    @torch.no_grad()
    def scores(
        self,
        model: nn.Module,
        batches: list[dict[str, Tensor]],
        label_token_ids: Sequence[Sequence[int]],
        is_encoder_decoder: bool,
    ) -> Tensor:
        """Return the log of the teachers' mean probabilities of the labels among themselves, [B, L] fp32."""
        model, found = extract_model_from_parallel(model), []
        with model.enable_adapter():
            for voice, batch in zip(self._voices, batches, strict=True):
                for names in voice.names_of_rows(batch):
                    named = batch | {"adapter_names": names}
                    found.append(rank_labels(model, named, label_token_ids, is_encoder_decoder).log_softmax(-1))
        return torch.stack(found).logsumexp(0) - math.log(len(found))

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

    def lesson_of_labels(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        label: Tensor,
        batches: list[dict[str, Tensor]],
        encoder: PromptTokenizer,
    ) -> dict[str, Any]:
        """Return the model's arguments for a batch whose labels' scores are compared with the teachers'.

        `inputs` and `label` ([B], -1 for none) are the student's, and `encoder` has the labels' tokens.
        """
        ids = encoder.label_token_ids
        lesson = LabelDistillation(
            self.scores(model, batches, ids, encoder.is_encoder_decoder),
            batches[0][TAUGHT_ROWS][:, 0] != IGNORED,
            label,
            torch.tensor([len(words) for words in ids], device=label.device),
            self.args.distillation_temperature,
            self.args.distillation_weight,
        )
        mask = inputs["attention_mask"] if encoder.is_encoder_decoder else sources(inputs)
        texts = {"input_ids": inputs["input_ids"], "attention_mask": mask}
        return texts | {"candidates": ids, "distillation": lesson}

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


def teaching_of(
    teacher: Any, model: SoftPrompts, args: Any, tokenizer: Any, template: RowTemplate | None, collator: Any
) -> Teaching | None:
    """Return the teachers of a run; None without a teacher. Raise PromptTuningError as `Teaching` does."""
    return None if teacher is None else Teaching(teacher, model, args, tokenizer, template, collator)

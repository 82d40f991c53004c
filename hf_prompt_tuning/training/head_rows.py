"""Turn a trainer's data into rows for a classification head, and check them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset

from ..data.answer_template import AnswerTemplate
from ..data.class_names import REGRESSION
from ..data.encoded_rows import columns_of
from ..data.encoding import check_dataset, check_kind, encode_data, vocabulary_of
from ..data.head_template import ClassTemplate, HeadTemplate, TagTemplate
from ..data.origins import origin
from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..models.class_labels import checked_labels, checked_tags
from ..models.classifiers import QUESTION_ANS, SEQ_CLS, TOKEN_CLS
from ..models.soft_prompts import SoftPrompts
from ..prompts.info import PromptInfo
from .token_rows import ColumnCheck, PadWarning, RowEncoder

TEMPLATES = {SEQ_CLS: ClassTemplate, TOKEN_CLS: TagTemplate, QUESTION_ANS: AnswerTemplate}
"""What describes the rows for each task of a head."""


def head_template(template: Any, task_type: str | None) -> Any:
    """Return a trainer's template as a backbone with a head of this task takes it; None for a language model's task.

    Raise PromptTuningError if the template is for another kind of backbone.
    """
    if template is None:
        return None
    if task_type is None:
        if isinstance(template, HeadTemplate):
            raise PromptTuningError(
                f"template is a {type(template).__name__}, which is for a head, and the backbone is a language model; "
                "give a PromptTemplate."
            )
        return template
    if task_type == SEQ_CLS and isinstance(template, PromptTemplate):
        return ClassTemplate.of(template)
    if not isinstance(template, TEMPLATES[task_type]):
        raise PromptTuningError(
            f"template is a {type(template).__name__}, and the backbone's head is for {task_type}; give a "
            f"{TEMPLATES[task_type].__name__}."
        )
    return template


@dataclass(frozen=True)
class HeadRows(RowEncoder):
    """Turn the data of one prompt into token ids and labels for its head.

    Attributes:
        task_type: SEQ_CLS or TOKEN_CLS.
        config: the backbone's.
    """

    task_type: str = SEQ_CLS
    config: Any = None

    @classmethod
    def of_head(
        cls, model: SoftPrompts, tokenizer: Any, template: HeadTemplate | None, columns: ColumnCheck
    ) -> "HeadRows":
        """Return what encodes rows behind the active prompt of a model with a head."""
        config = model.base_model.config
        encoder = None if template is None else model.row_encoder(tokenizer, template)
        if encoder is not None:
            columns = replace(columns, made=tuple(encoder.columns_beside))
        pads = PadWarning.of(model.base_model, tokenizer)
        return cls(
            encoder,
            model.room(),
            vocabulary_of(model),
            columns,
            model.active_peft_config.head,
            pads=pads,
            task_type=model.task_type,
            config=config,
        )

    def __call__(self, data: Any, name: str, require_target: bool, may_be_several: bool = False) -> Any:
        """Return the token ids and labels of a dataset, or of each in a dict if it `may_be_several`.

        Raise PromptTuningError if a column would be lost, a row is invalid, or a label is none of the head's.
        """
        check_kind(data, name, may_be_several)
        if isinstance(data, dict):
            return {key: self(rows, key, require_target) for key, rows in data.items()}
        if require_target or self.tokenizer is not None:  # rows to predict may have no labels
            self.columns(data, name, None if self.tokenizer is None else self.tokenizer.template)
        encoded = encode_data(data, name, self.tokenizer, self.limit, require_target, None, False, self.head)
        if isinstance(encoded, Dataset):
            self._check(encoded, data, name)
        if self.tokenizer is None:
            self.pads(encoded, name)
        return encoded

    def _check(self, rows: Dataset, raw: Any, name: str) -> None:
        """Raise PromptTuningError if a row has an unknown token id, or labels that are not the head's."""
        has_labels = "labels" in columns_of(rows)
        if self.vocabulary is not None:
            check_dataset(rows.remove_columns("labels") if has_labels else rows, raw, name, self.vocabulary)
        first = raw[0] if len(raw) else {}
        were_ids = self.tokenizer is None or "input_ids" in first  # of text, encoding has checked the labels
        for i, row in enumerate(rows.with_format(None) if has_labels and were_ids else ()):
            try:
                self._check_labels(row)
            except PromptTuningError as error:
                raise PromptTuningError(f"row {i + 1} of the {name} data{origin(raw[i])}: {error}") from error

    def _check_labels(self, row: dict[str, Any]) -> None:
        try:
            labels = torch.as_tensor(row["labels"])[None]
        except (TypeError, ValueError, RuntimeError) as error:
            raise PromptTuningError(
                f"labels are {row['labels']!r:.80}; give a number, or a list of numbers, in every row."
            ) from error
        if self.task_type == TOKEN_CLS:
            checked_tags(labels, self.config, torch.ones(1, len(row["input_ids"]), dtype=torch.bool))
        else:
            checked_labels(labels, self.config, 1)

    def with_missing_labels(self, data: Any) -> Any:
        """Return rows of token ids to predict as they are: a head's rows may have no labels."""
        return data

    def describe(self, info: PromptInfo, data: Any) -> None:
        """Record the template, an example row and the names of the classes in a prompt's description."""
        super().describe(info, data)
        template = None if self.tokenizer is None else self.tokenizer.template
        if template is None:
            return
        info.classifier = info.classifier | {"problem_type": template.problem_type}
        if template.problem_type != REGRESSION:
            info.classifier["id2label"] = {str(index): name for index, name in enumerate(template.labels)}

"""Turn a trainer's questions and contexts into windows for a head that finds answers, and check them."""

from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, IterableDataset

from ..data.answer_template import AnswerTemplate
from ..data.answer_windows import AnswerTokenizer
from ..data.encoded_rows import ROW, columns_of
from ..data.encoding import check_dataset, check_kind, encode_data, from_list, is_text, vocabulary_of
from ..errors import PromptTuningError
from ..models.classifiers import QUESTION_ANS
from ..models.question_answering import PromptTuningModelForQuestionAnswering
from .token_rows import ColumnCheck, RowEncoder


@dataclass(frozen=True)
class AnswerRows(RowEncoder):
    """Turn the data of one prompt into windows for its head.

    Attributes:
        task_type: QUESTION_ANS.
        config: the backbone's.
    """

    tokenizer: AnswerTokenizer
    task_type: str = QUESTION_ANS
    config: Any = None

    @classmethod
    def of_head(
        cls,
        model: PromptTuningModelForQuestionAnswering,
        tokenizer: Any,
        template: AnswerTemplate | None,
        columns: ColumnCheck,
    ) -> "AnswerRows":
        """Return what encodes rows behind the active prompt. Raise PromptTuningError without a template."""
        if template is None:
            raise PromptTuningError(
                "template is not given, and the backbone has a head for answers; give AnswerTemplate(), or train on "
                "rows of token ids with transformers' Trainer."
            )
        encoder = model.row_encoder(tokenizer, template)
        columns = replace(columns, made=encoder.columns_beside)
        head = model.active_peft_config.head
        return cls(encoder, model.room(), vocabulary_of(model), columns, head, config=model.base_model.config)

    def __call__(self, data: Any, name: str, require_target: bool, may_be_several: bool = False) -> Any:
        """Return the windows of a dataset, or of each in a dict if it `may_be_several`. Keep windows.

        Raise PromptTuningError if rows have no text, a column would be lost, or a row is invalid or does not fit.
        """
        check_kind(data, name, may_be_several)
        if isinstance(data, dict):
            return {key: self(rows, key, require_target) for key, rows in data.items()}
        length, room = self.tokenizer.template.max_length, self.limit
        if room is not None and length > room + len(self.head):
            raise PromptTuningError(
                f"windows have {length} tokens, and behind the prompt the backbone has positions for "
                f"{room + len(self.head)}; lower max_length or num_virtual_tokens."
            )
        if data is None or _are_windows(data):
            return data
        rows = from_list(data, name) if isinstance(data, list) and data else data
        if isinstance(rows, Dataset | IterableDataset) and not is_text(rows, self.tokenizer.template):
            raise PromptTuningError(
                f"the {name} data has token ids, and answers are read from texts; give rows of question and context "
                "with the template, or train with transformers' Trainer."
            )
        self.columns(rows, name, self.tokenizer.template)
        encoded = encode_data(rows, name, self.tokenizer, None, require_target, head=self.head)
        if isinstance(encoded, Dataset) and self.vocabulary is not None:
            # Errors name the origin of a window's row.
            raw = rows.select(encoded[ROW][:])
            check_dataset(encoded.remove_columns("labels"), raw, f"windowed {name}", self.vocabulary)
        return encoded

    def with_missing_labels(self, data: Any) -> Any:
        """Return rows to predict as they are: they may have no answers."""
        return data


def _are_windows(data: Any) -> bool:
    return isinstance(data, Dataset | IterableDataset) and ROW in columns_of(data)

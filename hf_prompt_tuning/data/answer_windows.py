"""Cut questions and contexts into windows that overlap, and find the tokens of an answer in each.

For a question of two tokens, a context of four and windows of seven that share one token of the context:

    window 0      c  q0 q1 s  t0 t1 s      the answer t1 t2 is not whole here: it learns column 0
    window 1      c  q0 q1 s  t1 t2 s      it learns columns 4 and 5
    window 2      c  q0 q1 s  t2 t3 s      column 0
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from .answer_template import AnswerTemplate, Reference
from .encoded_rows import ROW, columns_of
from .head_tokenization import HeadTokenizer, check_is_fast
from .origins import naming
from .row_reports import RowReports

STARTS, ENDS, CONTEXT, REFERENCES = "token_starts", "token_ends", "row_context", "row_answers"
WINDOW_COLUMNS = {
    ROW: Value("int64"),
    STARTS: List(Value("int64")),
    ENDS: List(Value("int64")),
    CONTEXT: Value("string"),
    REFERENCES: List(Value("string")),
}
"""What an encoded window has beside ids and labels, for those who read its answer: the number of its row; for each
token its first character in the context and that behind its last, 0 and 0 outside and for white space; and, in a row's
first window, the context and the texts of the answers, None if these are not known."""


class AnswerTokenizer(HeadTokenizer):
    """Turn questions and contexts into windows of token ids, and answers into their first and last columns.

    Args:
        template: the template. What it leaves open is as `AnswerTemplate.behind_prompt(None)` has it.
        tokenizer: the backbone's, a fast one.
        with_types: whether the backbone reads the `token_type_ids` that the tokenizer may write.
    """

    takes = AnswerTemplate
    template: AnswerTemplate
    cut = (
        "%d of %d windows of the %s data are of rows whose answer is whole in none of its windows of max_length=%d "
        "tokens, so that they say that there is none. Raise stride, which two windows share, or max_length."
    )
    first_cut = (
        "Row %d is the first of the %s stream whose answer is whole in none of its windows of max_length=%d tokens, "
        "so that they say that there is none. Raise stride, which two windows share, or max_length."
    )

    def __init__(self, template: AnswerTemplate, tokenizer: PreTrainedTokenizerBase, with_types: bool = False):
        super().__init__(template.behind_prompt(None) if isinstance(template, self.takes) else template, tokenizer)
        check_is_fast(tokenizer, "which tokens are of which characters")
        self.with_types = with_types and "token_type_ids" in tokenizer.model_input_names
        self.ends_question = self._end_of_question()
        self.columns_beside = (*(["token_type_ids"] if self.with_types else []), *WINDOW_COLUMNS)

    def _end_of_question(self) -> str:
        """Return what is written behind a question: nothing if the tokenizer marks where the context begins.

        Raise PromptTuningError if it does not, and a line break is no token either.
        """
        probe = self.tokenizer(["a"], ["b"], return_token_type_ids=self.with_types)
        parts, types = probe.sequence_ids(0), probe["token_type_ids"][0] if self.with_types else []
        if None in parts[parts.index(0) : parts.index(1)] or len(set(types)) > 1:
            return ""
        if self.tokenizer("a\n")["input_ids"] == self.tokenizer("a")["input_ids"]:
            raise PromptTuningError(
                f"the {type(self.tokenizer).__name__} writes nothing between a question and a context, and has no "
                "token for a line break, so that nothing would tell where the context begins; give it a "
                "post-processor that joins pairs."
            )
        return "\n"

    def _missing(self, row: Mapping[str, Any]) -> PromptTuningError:
        column = self.template.answers_column
        return PromptTuningError(
            f"the row has no answers (column {column!r} holds {row.get(column)!r:.80}); training rows need them, "
            "empty lists where the context has none."
        )

    @property
    def label_type(self) -> Any:
        """The type of the column of encoded answers."""
        return List(Value("int64"))

    @property
    def kinds(self) -> dict[str, Any]:
        """The columns of encoded windows, and their types."""
        ids = {"input_ids": List(Value("int64"))}
        if self.with_types:
            ids["token_type_ids"] = List(Value("int64"))
        return ids | {"labels": self.label_type, "length": Value("int64")} | WINDOW_COLUMNS

    def encode(
        self, row: Mapping[str, Any], require_target: bool = True, reader: Sequence[str] | None = None, number: int = 0
    ) -> list[dict[str, Any]]:
        """Return the windows of one row, which is the row `number`: `kinds` tells their columns, with `was_cut`.

        `labels` are the columns of the answer's first and last token, 0 and 0 in a window that does not have it whole,
        and -100 if it is not known. `was_cut` tells of all windows that none has it whole. Raise PromptTuningError if
        a row is invalid, has no answers although `require_target` is set, or its question fills a window.
        """
        question, context = self.template.texts(row)
        answers = self.template.answers(row)
        if answers is None and require_target:
            raise self._missing(row)
        encoded = self._windows(question + self.ends_question, context)
        windows = []
        for i, ids in enumerate(encoded["input_ids"]):
            pairs = zip(encoded.sequence_ids(i), encoded["offset_mapping"][i], strict=True)
            # No answer begins or ends with white space, so its tokens are as those outside the context.
            offsets = [
                (here, there) if part == 1 and context[here:there].strip() else (0, 0) for part, (here, there) in pairs
            ]
            window = {"input_ids": ids, "length": len(ids), ROW: number}
            if self.with_types:
                window["token_type_ids"] = encoded["token_type_ids"][i]
            starts, ends = map(list, zip(*offsets, strict=True))
            windows.append(window | {STARTS: starts, ENDS: ends, CONTEXT: None, REFERENCES: None})
        _label(windows, context, answers)
        windows[0][CONTEXT] = context
        windows[0][REFERENCES] = None if answers is None else [answer.text for answer in answers]
        return windows

    def _windows(self, question: str, context: str) -> BatchEncoding:
        """Return a question and a context as the tokenizer cuts them, with offsets."""
        length, stride = self.template.max_length, self.template.stride
        options = {"return_offsets_mapping": True, "return_token_type_ids": self.with_types, "verbose": False}
        whole = self.tokenizer([question], [context], **options)
        if len(whole["input_ids"][0]) <= length:
            return whole
        behind = self.tokenizer.num_special_tokens_to_add(pair=True)
        behind += len(self.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        if length - behind <= stride:
            raise PromptTuningError(
                f"the question {question!r:.80} takes {behind} of the {length} tokens of a window, special tokens "
                f"among them, and two windows share {stride} tokens of the context, so that none would go on. Shorten "
                "the question, raise max_length (max_source_length of the command), or lower stride."
            )
        cut = {"truncation": "only_second", "max_length": length, "stride": stride}
        return self.tokenizer([question], [context], return_overflowing_tokens=True, **cut, **options)

    def encode_dataset(
        self, data: Dataset | IterableDataset, name: str, require_target: bool = True
    ) -> Dataset | IterableDataset:
        """Encode every row of `data`, whose columns are all removed: one row for each window, in the rows' order.

        Errors name the row and the data. Rows without answers are rejected if `require_target` is set. Log once how
        many windows are of rows whose answer is whole in none.
        """
        data = self._plain(data, name, require_target)
        kinds = self.kinds
        is_stream, limit = isinstance(data, IterableDataset), self.template.max_length
        # One for each name, as in `PromptTokenizer`.
        reports = self._reports.setdefault(name, RowReports(name, self.cut, self.first_cut, limit, are_chats=False))
        columns = {**kinds, **reports.columns}

        def encode_rows(rows: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
            each = (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))
            found = list(chain.from_iterable(map(encode_row, each, numbers)))
            return {column: [window[column] for window in found] for column in columns}

        def encode_row(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
            with naming(row, number, name):
                windows = self.encode(row, require_target, number=number)
            for window in windows if is_stream else ():
                reports.see(window, number)
            return windows

        options = {"batched": True, "batch_size": 100, "with_indices": True, "remove_columns": columns_of(data)}
        options["features"] = Features(columns)
        if is_stream:
            return data.map(encode_rows, **options).select_columns(list(kinds))
        encoded = data.map(encode_rows, load_from_cache_file=False, desc=f"Tokenizing {name}", **options)
        encoded = encoded.with_format(None)  # a transform is of raw rows
        reports.tell(encoded)
        return encoded.remove_columns(list(reports.columns))

    def readable(self, encoded: Mapping[str, Any], longest: int = 500) -> dict[str, str]:
        """Return the `source` of a row's first window and the row's first answer, each cut to `longest` characters."""
        text = self.tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
        return {"source": text[:longest], "target": next(iter(encoded[REFERENCES] or ()), "")[:longest]}


def _label(windows: Sequence[dict[str, Any]], context: str, answers: Sequence[Reference] | None) -> None:
    """Write the `labels` of a row's first answer into its windows, and `was_cut`."""
    if not answers:
        for window in windows:
            window |= {"labels": [IGNORED if answers is None else 0] * 2, "was_cut": False}
        return
    text, start = answers[0]
    # White space at an answer's ends may be no part of any token.
    first, behind = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
    characters = [_characters(window) for window in windows]
    least, most = min(ends[0] for ends in characters), max(ends[1] for ends in characters)
    for window, (begins, stops) in zip(windows, characters, strict=True):
        tokens = [
            i
            for i, (here, there) in enumerate(zip(window[STARTS], window[ENDS], strict=True))
            if here < there and here < behind and there > first
        ]
        # A tokenizer may leave out characters at the ends of the context.
        is_whole = tokens and (begins <= first or begins == least) and (stops >= behind or stops == most)
        window["labels"] = [tokens[0], tokens[-1]] if is_whole else [0, 0]
    is_cut = all(window["labels"] == [0, 0] for window in windows)
    for window in windows:
        window["was_cut"] = is_cut


def _characters(window: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first character of the context that a window has, and that behind the last."""
    pairs = [(here, there) for here, there in zip(window[STARTS], window[ENDS], strict=True) if here < there]
    return (pairs[0][0], pairs[-1][1]) if pairs else (0, 0)

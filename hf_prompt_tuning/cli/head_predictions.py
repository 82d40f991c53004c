"""Write what a classification head predicts of each row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers.trainer_utils import PredictionOutput

from ..data.answer_template import AnswerTemplate
from ..data.class_names import MULTI, REGRESSION
from ..data.head_template import TagTemplate
from ..data.head_tokenization import HeadTokenizer
from ..layouts.base import IGNORED


def head_records(encoder: HeadTokenizer, output: PredictionOutput, data: Dataset) -> Iterator[dict[str, Any]]:
    """Yield what a file of predictions has of each row: its number, input, prediction and reference, and scores."""
    if isinstance(encoder.template, AnswerTemplate):
        return _of_answers(encoder.template, output, data)
    return _of_labels(encoder, output, data)


def _of_labels(encoder: HeadTokenizer, output: PredictionOutput, data: Dataset) -> Iterator[dict[str, Any]]:
    """Yield each row's number, input, prediction and reference, and of a text the score (logit) of every class.

    A prediction is a class, a number, a list of classes whose probability is above a half, or a tag for each word. A
    reference is null, of words a list with nulls, where the row has none.
    """
    template = encoder.template
    rows = enumerate(zip(data, output.predictions, output.label_ids, strict=True))
    for number, (row, logits, label) in rows:
        record: dict[str, Any] = {"row": number, "input": template.shown(row)}
        if isinstance(template, TagTemplate):
            _, places = encoder.word_tokens(template.words(row))
            record["prediction"] = [template.labels[i] for i in logits[places].argmax(-1)]
            record["reference"] = [None if i == IGNORED else template.labels[i] for i in label[places]]
        elif template.problem_type == REGRESSION:
            record |= {"prediction": float(logits), "reference": encoder.label_of(label)}
        else:
            several = template.problem_type == MULTI
            chosen = logits > 0 if several else int(np.argmax(logits))
            record["prediction"] = encoder.label_of(chosen) if several else template.labels[chosen]
            record["scores"] = dict(zip(template.labels, map(float, logits), strict=True))
            record["reference"] = encoder.label_of(label)
        yield record


def _of_answers(template: AnswerTemplate, output: PredictionOutput, data: Dataset) -> Iterator[dict[str, Any]]:
    """Yield each row's number, question, answer with its start and score, and the texts that are right.

    An answer is an empty text, and its start null, if the context has none. A reference is null where it is not known.
    """
    rows = enumerate(zip(data, output.predictions, output.label_ids, strict=True))
    for number, (row, answer, references) in rows:
        record = {"row": number, "input": template.shown(row), "prediction": answer.text}
        yield record | {"start": answer.start, "score": answer.score, "reference": references}


def write_records(file: Path, records: Iterator[dict[str, Any]]) -> None:
    """Write records as JSON, one a line."""
    with file.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")

"""What the command does for a classification head: its template, and the options that the backbone is loaded with."""

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from ..data.backbone_classes import classes_of_backbone, for_backbone
from ..data.class_names import REGRESSION
from ..data.head_template import ClassTemplate, HeadTemplate
from ..errors import PromptTuningError
from ..models.classifiers import ANSWER, CLASS_NAMES, QUESTION_ANS, SEQ_CLS, TOKEN_CLS
from ..training.head_rows import TEMPLATES
from .data_arguments import DataArguments

logger = logging.getLogger(__name__)

FIELDS = {
    SEQ_CLS: {"source_template": "source", "pair_template": "pair", "max_source_length": "max_source_length"}
    | {"problem_type": "problem_type"},
    TOKEN_CLS: {"words_column": "words_column"},
    QUESTION_ANS: {name: name for name in ("question_column", "context_column", "answers_column", "stride")}
    | {"max_source_length": "max_length", "longest_answer": "longest_answer"},
}
"""The heads that the command trains, and the arguments of data for each: the names of the template's fields."""
TRAINED_HEADS = tuple(FIELDS)
NEEDED = {SEQ_CLS: ("label_column", "source_template"), TOKEN_CLS: ("label_column", "words_column"), QUESTION_ANS: ()}
OF_HEADS = (
    "pair_template",
    "words_column",
    "problem_type",
    *(name for name in FIELDS[QUESTION_ANS] if name != "max_source_length"),
)
"""The arguments of data that are for heads alone."""
WEIGHTS = ("class_weights", "pos_weight")
"""The arguments of training that are JSON, of which a config file may hold a list."""
OF_WRITERS = (
    *("target_template", "label_words", "max_target_length", "messages_column", "completion_column", "chat"),
    *("system_message", "chat_template", "chat_template_kwargs", "assistant_loss"),
)
"""The arguments of data that are for language models."""


def check_for_one_prompt(task_type: str | None, given: Collection[str], of_others: Collection[str]) -> None:
    """Raise PromptTuningError if arguments of ensembles, teachers or recipe auto are given for a head."""
    if task_type in TRAINED_HEADS and (wrong := [name for name in of_others if name in given]):
        raise PromptTuningError(
            f"{wrong[0]} is given, and task_type is {task_type}; a classification head, or one for answers, learns "
            "with one prompt: leave it out."
        )


def check_no_head(data: DataArguments) -> None:
    """Raise PromptTuningError if an argument of heads is given for a language model."""
    if given := [name for name in OF_HEADS if getattr(data, name) is not None]:
        raise PromptTuningError(
            f"{given[0]} is given, and is for a classification head or for answers; give task_type, one of "
            f"{', '.join(TRAINED_HEADS)}, or leave it out."
        )


def head_template(data: DataArguments, task_type: str, saved: Any, trains: bool) -> HeadTemplate:
    """Return the template that the arguments describe. They replace the values of a saved one, if given.

    If the run `trains`, its rows may be the first that have no answer. Raise PromptTuningError if an argument is
    missing, or is for another kind of backbone.
    """
    ours, kind, needed = FIELDS[task_type], TEMPLATES[task_type], NEEDED[task_type]
    others = [name for fields in FIELDS.values() for name in fields if name not in ours]
    labels = {} if task_type == QUESTION_ANS else {"label_column": "label_column"}
    others += [] if labels else ["label_column"]
    if given := [name for name in (*OF_WRITERS, *others) if getattr(data, name) is not None]:
        raise PromptTuningError(
            f"{given[0]} is given, and task_type is {task_type}, whose rows have {' and '.join(ours)}; leave it out."
        )
    values = {to: getattr(data, name) for name, to in (labels | ours).items() if getattr(data, name) is not None}
    if saved is not None:
        if not isinstance(saved, kind):
            raise PromptTuningError(
                f"the template of init_prompt is a {type(saved).__name__}, and task_type is {task_type}; give "
                f"{' and '.join(labels | ours)}."
            )
        if trains and task_type == QUESTION_ANS and not saved.no_answers:
            values["no_answers"] = None
        return replace(saved, **values)
    if missing := [name for name in needed if getattr(data, name) is None]:
        raise PromptTuningError(
            f"{missing[0]} is not given; with task_type {task_type} rows need {' and '.join(needed)}."
        )
    return kind(**({"max_source_length": 512} if kind is ClassTemplate else {}) | values)


def head_options(template: HeadTemplate, config: PreTrainedConfig, task_type: str) -> dict[str, Any]:
    """Return the options of `from_pretrained` with which a backbone has a head for a template's classes.

    A backbone whose head is trained already keeps it; one without names of its classes only if it has as many. Raise
    PromptTuningError if named ones are others.
    """
    if task_type == QUESTION_ANS:
        # A head for answers has two outputs. Files of another task may have another number.
        return {} if config.num_labels == len(ANSWER) else {"num_labels": len(ANSWER)}
    kind, labels = template.problem_type, template.labels
    count = 1 if kind == REGRESSION else len(labels)
    if any(name in CLASS_NAMES[task_type] for name in config.architectures or ()):
        if classes_of_backbone(config) is not None or config.num_labels == count:
            for_backbone(template, config)
            return {"problem_type": kind}
        logger.warning(
            "The backbone's head has %d outputs without names, and the data needs %d: it gets a new head.",
            *(config.num_labels, count),
        )
    # The files may have a head of another size, of this task or of another one.
    new = {"problem_type": kind, "ignore_mismatched_sizes": True}
    if kind == REGRESSION:
        return new | {"num_labels": 1}
    names = dict(enumerate(labels))
    return new | {"id2label": names, "label2id": {name: index for index, name in names.items()}}

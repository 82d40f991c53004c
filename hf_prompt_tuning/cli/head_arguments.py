"""What the command does for a classification head: its template, and the options that the backbone is loaded with."""

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from ..data.backbone_classes import classes_of_backbone, for_backbone
from ..data.class_names import REGRESSION
from ..data.head_template import ClassTemplate, HeadTemplate, TagTemplate
from ..errors import PromptTuningError
from ..models.classifiers import CLASS_NAMES, SEQ_CLS, TOKEN_CLS
from .data_arguments import DataArguments

logger = logging.getLogger(__name__)

TRAINED_HEADS = (SEQ_CLS, TOKEN_CLS)
"""The heads that the command trains."""
OF_HEADS = ("pair_template", "words_column", "problem_type")
"""The arguments of data that are for heads."""
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
            f"{wrong[0]} is given, and task_type is {task_type}; a classification head learns labels with one prompt: "
            "leave it out."
        )


def check_no_head(data: DataArguments) -> None:
    """Raise PromptTuningError if an argument of heads is given for a language model."""
    if given := [name for name in OF_HEADS if getattr(data, name) is not None]:
        raise PromptTuningError(
            f"{given[0]} is given, and is for a classification head; give task_type, SEQ_CLS or TOKEN_CLS, or leave "
            "it out."
        )


def head_template(data: DataArguments, task_type: str, saved: Any) -> HeadTemplate:
    """Return the template that the arguments describe. They replace the values of a saved one, if given.

    Raise PromptTuningError if one is missing, or is for another kind of backbone.
    """
    kind = TagTemplate if task_type == TOKEN_CLS else ClassTemplate
    of_texts, of_words = {"source_template": "source", "max_source_length": "max_source_length"}, {}
    of_texts |= {"pair_template": "pair", "problem_type": "problem_type"}
    of_words["words_column"] = "words_column"
    ours, others = (of_words, of_texts) if task_type == TOKEN_CLS else (of_texts, of_words)
    if given := [name for name in (*OF_WRITERS, *others) if getattr(data, name) is not None]:
        raise PromptTuningError(
            f"{given[0]} is given, and task_type is {task_type}, whose rows have {' and '.join(ours)}; leave it out."
        )
    names = {"label_column": "label_column"} | ours
    values = {to: getattr(data, name) for name, to in names.items() if getattr(data, name) is not None}
    if saved is not None:
        if not isinstance(saved, kind):
            raise PromptTuningError(
                f"the template of init_prompt is a {type(saved).__name__}, and task_type is {task_type}; give "
                f"{' and '.join(names)}."
            )
        return replace(saved, **values)
    needed = ["label_column", "words_column" if task_type == TOKEN_CLS else "source_template"]
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

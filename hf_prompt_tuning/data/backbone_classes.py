"""Put a template's classes in the order of the logits of a backbone's head."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from ..errors import PromptTuningError
from .class_names import REGRESSION, SINGLE
from .head_template import Template


def classes_of_backbone(config: PreTrainedConfig) -> list[str] | None:
    """Return the names of a backbone's labels; None if they are transformers' default ones, LABEL_0 and so on."""
    return _named([str(config.id2label[index]) for index in range(config.num_labels)])


def classes_of_prompt(classifier: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the classes that a prompt records of its head (`PromptInfo.classifier`).

    None if it records none, or transformers' default ones: its data has not been seen.
    """
    return _named(list(classifier.get("id2label", {}).values()))


def _named(names: list[str]) -> list[str] | None:
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else names


def for_backbone(
    template: Template, config: PreTrainedConfig, classifier: Mapping[str, Any] | None = None
) -> Template:
    """Return a template whose classes are in the order of the logits of a backbone's head.

    A template without classes (there is no data) takes the backbone's. A prompt holds its own copy of the head: the
    classes and the problem type that it records (`classifier`) are those of the head.

    Raise PromptTuningError if the template's classes, or its problem type, are not those of the head.
    """
    recorded = classifier or {}
    count, own = config.num_labels, config.problem_type or recorded.get("problem_type")
    kind = template.problem_type or own or (REGRESSION if count == 1 else SINGLE)
    if own not in (None, kind):
        of = "backbone's config.problem_type" if config.problem_type is not None else "prompt's"
        raise PromptTuningError(
            f"the problem type of the labels is {kind}, and the {of} is {own}; give the template its problem_type, or "
            "load the backbone (or a prompt) with the other."
        )
    if (kind == REGRESSION) != (count == 1) and (own is None or kind == REGRESSION):
        raise PromptTuningError(
            f"the problem type of the labels is {kind}, and the backbone's head has num_labels={count}; load it with "
            f"num_labels={1 if kind == REGRESSION else 'the number of classes, 2 or more'}, or give the template its "
            "problem_type."
        )
    template = replace(template, problem_type=kind)
    if kind == REGRESSION:
        return template
    known = classes_of_prompt(recorded) or classes_of_backbone(config)
    numbered = known or [str(index) for index in range(count)]
    if template.labels is None:
        return replace(template, labels=numbered)
    if known and all(name in known for name in template.labels):
        return template.in_order(known)
    are_indices = all(name.isdecimal() and int(name) < count for name in template.labels)
    if are_indices and not any(name.isdecimal() for name in known or ()):
        return replace(template, labels=numbered, label_names=None)
    if known:
        raise _unknown_class(template, known, known == classes_of_backbone(config))
    if len(template.labels) != count:
        raise PromptTuningError(
            f"the data has the {len(template.labels)} classes {', '.join(map(repr, template.labels))}, and the "
            f"backbone's head has {count} labels; load it with num_labels={len(template.labels)}, or with id2label."
        )
    return template.in_order(template.labels)


def _unknown_class(template: Template, known: list[str], of_backbone: bool) -> PromptTuningError:
    other = next(name for name in template.labels or () if name not in known)
    fix = (
        f"load the backbone with num_labels={len(template.labels or ())}, id2label and label2id"
        if of_backbone
        else "make a new prompt for other classes (init_prompt starts from this one)"
    )
    return PromptTuningError(
        f"the label {other!r} (column {template.label_column!r}) is none of the "
        f"{'backbone' if of_backbone else 'prompt'}'s classes {', '.join(map(repr, known))}; correct it, or {fix}."
    )

"""Put a template's classes in the order of the logits of a backbone's head."""

from dataclasses import replace

from transformers import PreTrainedConfig

from ..errors import PromptTuningError
from .class_names import REGRESSION, SINGLE
from .head_template import Template


def classes_of_backbone(config: PreTrainedConfig) -> list[str] | None:
    """Return the names of a backbone's labels; None if they are transformers' default ones, LABEL_0 and so on."""
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    return None if names == [f"LABEL_{index}" for index in range(config.num_labels)] else names


def for_backbone(template: Template, config: PreTrainedConfig) -> Template:
    """Return a template whose classes are in the order of the logits of a backbone's head.

    A template without classes (there is no data) takes the backbone's. Raise PromptTuningError if the template's
    classes, or its problem type, are not those of the backbone's head.
    """
    count, own = config.num_labels, config.problem_type
    kind = template.problem_type or own or (REGRESSION if count == 1 else SINGLE)
    if own not in (None, kind):
        raise PromptTuningError(
            f"the problem type of the labels is {kind}, and the backbone's config.problem_type is {own}; load the "
            "backbone with the other, or give the template its problem_type."
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
    known = classes_of_backbone(config)
    numbered = known or [str(index) for index in range(count)]
    if template.labels is None:
        return replace(template, labels=numbered)
    if known and all(name in known for name in template.labels):
        return replace(template, labels=known)
    are_indices = all(name.isdecimal() and int(name) < count for name in template.labels)
    if are_indices and not any(name.isdecimal() for name in known or ()):
        return replace(template, labels=numbered)
    if known:
        other = next(name for name in template.labels if name not in known)
        raise PromptTuningError(
            f"the label {other!r} (column {template.label_column!r}) is none of the backbone's classes "
            f"{', '.join(map(repr, known))}; correct it, or load the backbone with num_labels={len(template.labels)}, "
            "id2label and label2id."
        )
    if len(template.labels) != count:
        raise PromptTuningError(
            f"the data has the {len(template.labels)} classes {', '.join(map(repr, template.labels))}, and the "
            f"backbone's head has {count} labels; load it with num_labels={len(template.labels)}, or with id2label."
        )
    return template

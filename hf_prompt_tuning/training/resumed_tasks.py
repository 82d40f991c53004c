"""Check that the prompts of a checkpoint learn what the run learns: same prompts, template, labels and head."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..data.backbone_classes import classes_of_prompt
from ..errors import PromptTuningError
from ..models.soft_prompts import SoftPrompts
from ..prompts.files import WEIGHTS_FILE
from ..prompts.info import INFO_FILE, PromptInfo

ALONE = "default"
"""The name of the prompt that PEFT saves in a folder itself. The others have folders of their names in it."""
OF_THE_DATA = ("labels", "label_words", "label_names", "chat", "stride")
"""Fields of templates that are compared by what they mean, or that say how the data is cut into rows."""
ENDINGS_OF_THE_DATA = ("_column", "_length", "longest_answer")
"""The ends of the names of fields that say which column is read, and how much of it."""


def check_same_prompts(checkpoint: str, model: SoftPrompts, trained: Iterable[str]) -> None:
    """Raise PromptTuningError if the prompts of a checkpoint are others, or learn something else than those `trained`.

    Their descriptions are compared. What a description does not say is not compared.
    """
    folder, trained = Path(checkpoint), list(trained)
    saved = {file.parent.name for file in folder.glob(f"*/{WEIGHTS_FILE}")}
    if (folder / WEIGHTS_FILE).is_file():
        saved.add(ALONE)
    if saved and not set(trained) <= saved <= set(model.peft_config):
        before, now = _listed(sorted(saved)), _listed(sorted(trained))
        raise PromptTuningError(
            f"{checkpoint} holds the prompts {before}, and this run trains {now}; resume with the same prompts "
            "(tasks, members), or start anew from the folder of one (init_prompt)."
        )
    for name in trained:
        file = (folder if name == ALONE else folder / name) / INFO_FILE
        if not file.is_file():
            continue
        there = PromptInfo.from_json(json.loads(file.read_text(encoding="utf-8")))
        for before, now in _differences(there, model.prompt_info[name]):
            raise PromptTuningError(
                f"{file.parent} is of a run with {before}, and this one has {now}; resume with the same, or start "
                "anew from its prompt (init_prompt)."
            )


def _differences(there: PromptInfo, here: PromptInfo) -> Iterator[tuple[str, str]]:
    """Yield what two descriptions say that differs, each as two texts."""
    classes = [classes_of_prompt(info.classifier) for info in (there, here)]
    if None not in classes and classes[0] != classes[1]:
        yield f"the classes {_listed(classes[0])}", _listed(classes[1])
    trains = [info.classifier.get("is_trained") for info in (there, here)]
    if None not in trains and trains[0] != trains[1]:
        yield f"train_head={trains[0]}", f"train_head={trains[1]}"
    if there.template is not None and here.template is not None:
        yield from _of_templates(there.template, here.template)


def _of_templates(there: Any, here: Any) -> Iterator[tuple[str, str]]:
    if type(there) is not type(here):
        yield f"a {type(there).__name__}", f"a {type(here).__name__}"
        return
    parts = [(field.name, getattr(there, field.name), getattr(here, field.name)) for field in fields(there)]
    yield from _unlike(part for part in parts if not _is_of_data(part[0]))
    chats = [getattr(template, "chat", None) for template in (there, here)]
    if None in chats:
        yield from _unlike([("chat", *chats)])
    else:
        yield from _unlike((f.name, *(getattr(chat, f.name) for chat in chats)) for f in fields(chats[0]))
    words = [_words(template) for template in (there, here)]
    # Labels of other names (numbers without names) are the same as far as can be told, if their words are.
    alike = words[0].keys() == words[1].keys()
    if words[0] != words[1] if alike else set(words[0].values()) != set(words[1].values()):
        before, now = (", ".join(f"{label}={text!r}" for label, text in of.items()) or "none" for of in words)
        yield f"the label words {before}", now


def _unlike(parts: Iterable[tuple[str, Any, Any]]) -> Iterator[tuple[str, str]]:
    for name, before, now in parts:
        if before != now:
            yield f"{name}={before!r:.200}", f"{name}={now!r:.200}"


def _is_of_data(field: str) -> bool:
    return field in OF_THE_DATA or field.endswith(ENDINGS_OF_THE_DATA)


def _words(template: Any) -> dict[str, str]:
    """Return the words of a language model's labels, by the labels' names; empty for another template."""
    words, names = getattr(template, "label_words", None) or {}, getattr(template, "label_names", None) or ()
    if "labels" in {field.name for field in fields(template)}:
        return {}  # a head's, whose classes are compared
    return {names[int(key)] if key.isdecimal() and int(key) < len(names) else key: text for key, text in words.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))

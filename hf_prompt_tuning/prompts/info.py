"""Read and write `prompt_tuning.json`: how to use a prompt, how it was trained, and its metrics."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_origin

from ..data.answer_template import AnswerTemplate
from ..data.chat_format import ChatFormat
from ..data.chat_template import ChatTemplate
from ..data.chat_tokenization import RowTemplate
from ..data.class_names import PROBLEM_TYPES
from ..data.head_template import ClassTemplate, HeadTemplate, TagTemplate
from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..hub.files import hub_id
from .config import POSITIONS
from .json_files import numbers_of, points_of, write_json
from .local_paths import is_local_path, without_local_paths

INFO_FILE = "prompt_tuning.json"
RESULTS_FILE = "results.json"
FORMAT_VERSION = 2
"""The newest format. A prompt at the start is written in format 1, which earlier versions read."""
RESULTS = ("metrics", "untuned_metrics", "transfer", "history", "confusion_matrix", "calibration")
MEASURED = ("text_milliseconds", "prompt_milliseconds")
"""What was measured of a prompt that was taught; the card says both with the device."""
PACKAGES = ("hf_prompt_tuning", "peft", "transformers", "torch")
known_version = cache(version)
"""Read once: it is a file, and each prompt says the versions."""


@dataclass
class PromptInfo:
    """The description of a prompt.

    Attributes:
        template: the template of the training data; None if it was trained on token ids only.
        example: one row of the training data as `source` and `target`.
        initialization: how the vectors were initialised.
        backbone: the backbone that it was trained on: `name_or_path`, `revision`, and its fingerprint; of a base model
            also some numbers of its `pooler`.
        data: the training data, as far as it is known: `dataset`, `training_rows`, …
        training: the training hyperparameters.
        versions: the versions of the packages that trained it.
        metrics: the metrics of the last evaluation, by the Trainer's names.
        untuned_metrics: the same metrics for the backbone without a prompt.
        transfer: by dataset that it was evaluated but not trained on, the metrics and the number of `rows`.
        history: `loss`, `eval_loss` and, with a teacher, `eval_kl`, each a list of [update step, value].
        confusion_matrix: `labels` (words) and `counts` [L, L] of the last evaluation; a row for each right label.
        calibration: the `temperature` that divides label scores before their softmax, and what it was fitted on, from
            the last evaluation.
        nearest_words: for each position, the nearest tokens of the vocabulary, each with its cosine.
        place: of a prompt that is not at the start, its `prompt_position`, and the `head_token_ids` that it stands
            behind, also as `head_text`. The first rows of its weights file are their embeddings.
        teacher: what taught it, if anything did: its `kind`, of a text the number of its `tokens` and how many tokens
            a request is shorter (`tokens_saved`), the measured `text_milliseconds` and `prompt_milliseconds` of a
            request on a `device`, and the `text` if it is to be published.
        classifier: of a classification head, its labels (`id2label`), the `problem_type`, whether it trains with the
            prompt (`is_trained`), and some numbers of the backbone's `pooler` if it reads one.
    """

    template: RowTemplate | HeadTemplate | None = None
    example: dict[str, str] = field(default_factory=dict)
    initialization: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {name: known_version(name) for name in PACKAGES})
    metrics: dict[str, float] = field(default_factory=dict)
    untuned_metrics: dict[str, float] = field(default_factory=dict)
    transfer: dict[str, dict[str, float]] = field(default_factory=dict)
    history: dict[str, list[list[float]]] = field(default_factory=dict)
    confusion_matrix: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, float] = field(default_factory=dict)
    nearest_words: list[list[list[Any]]] = field(default_factory=list)
    place: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Write `prompt_tuning.json` into `folder`, and `results.json` if there are results."""
        values = {"format_version": 2 if self.place else 1} | asdict(self.for_others())
        for name in ("place", "teacher", "classifier"):
            if not values[name]:
                del values[name]
        for name in ("label_names", "chat"):  # earlier versions reject these fields
            if name in (values["template"] or {}) and values["template"][name] is None:
                del values["template"][name]
        write_json(Path(folder) / INFO_FILE, values)
        results = {name: values[name] for name in RESULTS if values[name]}
        if results:
            write_json(Path(folder) / RESULTS_FILE, results)
        else:
            (Path(folder) / RESULTS_FILE).unlink(missing_ok=True)  # remove an earlier prompt's file

    def for_others(self) -> "PromptInfo":
        """Return a copy for files and cards, of finite numbers and without local paths.

        Of paths it has only the names of files, and only the Hub id of the backbone.
        """
        calibration = numbers_of(self.calibration)
        data = {name: value for name, value in self.data.items() if name != "dataset" or not is_local_path(value)}
        return replace(
            self,
            data={name: without_local_paths(value) for name, value in data.items()},
            training={name: without_local_paths(value) for name, value in self.training.items()},
            backbone=self.backbone | {"name_or_path": hub_id(self.backbone.get("name_or_path"))},
            metrics=numbers_of(self.metrics),
            untuned_metrics=numbers_of(self.untuned_metrics),
            transfer={name: numbers_of(metrics) for name, metrics in self.transfer.items()},
            history={name: points_of(curve) for name, curve in self.history.items()},
            calibration=calibration if len(calibration) == len(self.calibration) else {},
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PromptInfo":
        """Check a parsed `prompt_tuning.json` and return its description. Missing fields stay empty.

        Raise PromptTuningError if a field has the wrong type, or a later version wrote the format.
        """
        format_version = values.get("format_version")
        if type(format_version) is not int or format_version < 1:
            raise PromptTuningError(f"format_version is {format_version!r:.80}, not a number of 1 or more")
        if format_version > FORMAT_VERSION:
            raise PromptTuningError(
                f"it is of format {format_version}, and this version reads {FORMAT_VERSION}; upgrade hf_prompt_tuning"
            )
        template = values.get("template")
        kept = {f.name: values[f.name] for f in fields(cls) if f.name in values and f.name != "template"}
        for name, value in kept.items():
            CHECKS[name](name, value)
        return cls(template=None if template is None else _template(template), **kept)


JSON_TYPES = {Mapping: dict, Sequence: list, ChatFormat: dict}
TYPES = {
    kind: {
        field.name: tuple(
            JSON_TYPES.get(get_origin(part) or part, part) for part in get_args(field.type) or (field.type,)
        )
        for field in fields(kind)
    }
    for kind in (PromptTemplate, ChatTemplate, ChatFormat, ClassTemplate, TagTemplate, AnswerTemplate)
}
"""The types of a template's fields in JSON."""


def _template(values: Any) -> RowTemplate | HeadTemplate:
    _object("template", values)
    kind = _kind_of_template(values)
    _known_fields("template", values, kind)
    for part in fields(kind):
        if part.default is part.default_factory is MISSING and part.name not in values:
            raise PromptTuningError(f"template has no {part.name}")
    _texts("template.label_words", values.get("label_words") or {})
    for name in ("label_names", "labels"):
        for label in values.get(name) or ():
            _text(f"template.{name}", label)
    if values.get("chat") is not None:
        _known_fields("template.chat", values["chat"], ChatFormat)
        values = values | {"chat": ChatFormat(**values["chat"])}
    return kind(**values)


def _kind_of_template(values: dict[str, Any]) -> type:
    if "messages_column" in values:
        return ChatTemplate
    if "words_column" in values:
        return TagTemplate
    if "question_column" in values:
        return AnswerTemplate
    return ClassTemplate if "problem_type" in values else PromptTemplate


def _known_fields(name: str, values: dict[str, Any], kind: type) -> None:
    """Raise PromptTuningError if a value is no field of a class, or has another type than the field."""
    if unknown := [field for field in values if field not in TYPES[kind]]:
        raise PromptTuningError(f"{name} has an unknown field {unknown[0]!r:.80}")
    check_types(values, TYPES[kind], f"{name}.")


def check_types(values: dict[str, Any], types: dict[str, tuple[type, ...]], where: str = "") -> None:
    """Raise PromptTuningError for a value that has none of its types. A boolean is no number."""
    for name, value in values.items():
        if not isinstance(value, types[name]) or (isinstance(value, bool) and bool not in types[name]):
            expected = " or ".join(kind.__name__ for kind in types[name])
            raise PromptTuningError(f"{where}{name} is {value!r:.80}, and must be {expected}")


def _expect(ok: bool, name: str, value: Any, expected: str, verb: str = "is") -> None:
    """Raise PromptTuningError that names a value and what was expected, unless it is `ok`."""
    if not ok:
        raise PromptTuningError(f"{name} {verb} {value!r:.80}, not {expected}")


def _object(name: str, value: Any) -> None:
    _expect(isinstance(value, dict), name, value, "an object")


def _has(name: str, value: dict[str, Any], *needed: str) -> None:
    if any(key not in value for key in needed):
        raise PromptTuningError(f"{name} lacks one of {', '.join(needed)}")


def object_of(check: Callable[[str, Any], None], by_key: bool = False) -> Callable[[str, Any], None]:
    """Return a check of an object whose values all pass `check`. With `by_key`, messages name the value's key."""

    def check_object(name: str, value: Any) -> None:
        _object(name, value)
        for key, item in value.items():
            check(f"{name}.{key}" if by_key else name, item)

    return check_object


def _text(name: str, value: Any) -> None:
    _expect(isinstance(value, str), name, value, "a text", "holds")


def _scalar(name: str, value: Any) -> None:
    scalar = (str, int, float, bool, type(None))
    if not all(isinstance(item, scalar) for item in (value if isinstance(value, list) else [value])):
        raise PromptTuningError(f"{name} is {value!r:.80}, neither a value nor a list of values")


def _number(name: str, value: Any) -> None:
    _expect(isinstance(value, int | float) and not isinstance(value, bool), name, value, "a number", "holds")
    if isinstance(value, int) and abs(value) > 2**63:
        raise PromptTuningError(f"{name} holds a number of {value.bit_length()} bits")


def _matrix(name: str, value: Any, width: int | None = None) -> None:
    is_matrix = isinstance(value, list) and all(isinstance(row, list) for row in value)
    _expect(is_matrix, name, value, "a list of lists")
    for row in value:
        width = len(row) if width is None else width
        if len(row) != width:
            raise PromptTuningError(f"{name} has a row of {len(row)}, not {width}")
        for item in row:
            _number(name, item)


_texts, _scalars = object_of(_text), object_of(_scalar, by_key=True)
check_metrics = object_of(_number)
check_metrics_by_data = object_of(check_metrics, by_key=True)


def _example(name: str, value: Any) -> None:
    _texts(name, value)
    _expect(not value or value.keys() == {"source", "target"}, name, sorted(value), "source and target", "has")


def _confusion(name: str, value: Any) -> None:
    _object(name, value)
    if not value:
        return
    labels = value.get("labels")
    are_texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    _expect(are_texts, f"{name}.labels", labels, "a list of texts")
    _matrix(f"{name}.counts", value.get("counts"), len(labels))
    if len(value["counts"]) != len(labels):
        raise PromptTuningError(f"{name}.counts has {len(value['counts'])} rows for {len(labels)} labels")


def _calibration(name: str, value: Any) -> None:
    check_metrics(name, value)
    if value:
        _has(name, value, "temperature", "rows", "ece", "calibrated_ece")
        temperature = value["temperature"]
        _expect(0 < temperature < math.inf, f"{name}.temperature", temperature, "a number above 0")


def _words(name: str, value: Any) -> None:
    def is_word(pair: Any) -> bool:
        return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], float)

    are_words = isinstance(value, list) and all(isinstance(row, list) and all(map(is_word, row)) for row in value)
    _expect(are_words, name, value, "a list of [word, cosine] for each position")


def _place(name: str, value: Any) -> None:
    _scalars(name, value)
    if value:
        _has(name, value, "prompt_position", "head_token_ids")
        position, ids = value["prompt_position"], value["head_token_ids"]
        _expect(position in POSITIONS[1:], f"{name}.prompt_position", position, " or ".join(POSITIONS[1:]))
        are_ids = isinstance(ids, list) and ids and all(type(i) is int and 0 <= i < 2**31 for i in ids)
        _expect(are_ids, f"{name}.head_token_ids", ids, "a list of token ids")
        _text(f"{name}.head_text", value.get("head_text") or "")


def _teacher(name: str, value: Any) -> None:
    _scalars(name, value)
    if value:
        _has(name, value, "kind")
    if value.keys() & set(MEASURED):
        _has(name, value, *MEASURED, "device")
    for key in ("kind", "text", "device"):
        _expect(isinstance(value.get(key), str | None), f"{name}.{key}", value.get(key), "a text")
    for key in ("tokens", "tokens_saved", *MEASURED):
        if key in value:
            _number(f"{name}.{key}", value[key])


def _classifier(name: str, value: Any) -> None:
    _object(name, value)
    if not value:
        return
    _has(name, value, "id2label", "is_trained")
    _texts(f"{name}.id2label", value["id2label"])
    numbers = [str(index) for index in range(len(value["id2label"]))]
    _expect(list(value["id2label"]) == numbers != [], f"{name}.id2label", list(value["id2label"]), "0, 1, …", "has")
    _expect(isinstance(value["is_trained"], bool), f"{name}.is_trained", value["is_trained"], "true or false")
    _matrix(f"{name}.pooler", [value.get("pooler", [])])
    kind = value.get("problem_type")
    _expect(kind in (None, *PROBLEM_TYPES), f"{name}.problem_type", kind, f"one of {', '.join(PROBLEM_TYPES)}")


def _backbone(name: str, value: Any) -> None:
    _object(name, value)
    _scalars(name, {key: item for key, item in value.items() if key != "embedding"})
    for key in ("name_or_path", "revision", "architecture"):
        _expect(isinstance(value.get(key), str | None), f"{name}.{key}", value.get(key), "a text")
    _matrix(f"{name}.pooler", [value.get("pooler") or []])
    embedding = value.get("embedding")
    if embedding is not None:
        name = f"{name}.embedding"
        _object(name, embedding)
        for key in ("dtype", "quantized", "hash"):
            _expect(isinstance(embedding.get(key), str | None), f"{name}.{key}", embedding.get(key), "a text")
        # A dtype of null is a missing one. The others may be null.
        not_null = embedding if embedding.get("dtype") is not None else {}
        _has(name, not_null, "dtype", "quantized", "hash", "sample")
        _matrix(f"{name}.sample", embedding["sample"])


CHECKS = {
    "example": _example,
    "initialization": _scalars,
    "backbone": _backbone,
    "data": _scalars,
    "training": _scalars,
    "versions": _texts,
    "metrics": check_metrics,
    "untuned_metrics": check_metrics,
    "transfer": check_metrics_by_data,
    "history": object_of(partial(_matrix, width=2), by_key=True),
    "confusion_matrix": _confusion,
    "calibration": _calibration,
    "nearest_words": _words,
    "place": _place,
    "teacher": _teacher,
    "classifier": _classifier,
}

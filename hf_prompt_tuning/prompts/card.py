"""Write the model card of a prompt, from recorded facts only, and of a repository with several prompts, a list."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.chat_template import ChatTemplate
from ..hub.auto_classes import named_auto_class
from ..hub.files import hub_id
from .config import PromptTuningConfig
from .ensemble_info import EnsembleInfo
from .info import PromptInfo
from .plots import CONFUSION_FILE, CURVES_FILE, LOSS_FILE
from .repository_files import CARD_FILE

TEMPLATE, LIST_TEMPLATE = (Path(__file__).parent / name for name in ("card.md.jinja", "repository.md.jinja"))
TAGS = ["prompt-tuning", "soft-prompt", "hf_prompt_tuning"]
MARKER = "<!-- This list is written anew with every push by hf_prompt_tuning; without this line it is left alone. -->"
ROW = re.compile(r"^\| \[(?P<name>[^]]+)\]\([^)]*\) \| (?:`(?P<base>[^`]+)`|not on the Hub) \|$", re.MULTILINE)
ANSWERS = "question-answering"
"""The Hub's name of the task of a head that finds answers."""
PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": ANSWERS,
    "FEATURE_EXTRACTION": "feature-extraction",
}
NOT_OF_CLASSES = (ANSWERS, PIPELINES["TOKEN_CLS"])
"""The tasks whose F1 is of spans, not the mean of classes."""
TAUGHT_BY = {
    "text": "behind a text",
    "messages": "behind the turns of a conversation",
    "column": "behind a text of each row",
    "prompt": "behind another prompt",
    "ensemble": "behind each of several prompts, on average",
    "several": "behind each of several teachers, on average",
}
METRIC_NAMES = {"kl": "KL from the teacher", "no_context_kl": "KL, no context", "first_tokens_kl": "KL, first tokens"}
METRIC_NAMES |= {"f1": "macro F1", "rougeL": "ROUGE-L", "exact_match": "exact match"}


def write_card(
    folder: Path,
    config: PromptTuningConfig,
    info: PromptInfo,
    backbone_size: int,
    peft_agrees: bool,
    repo_id: str | None = None,
    ensemble: EnsembleInfo | None = None,
    subfolder: str | None = None,
) -> None:
    """Write `README.md` into a prompt's folder, next to its pictures.

    `backbone_size` is the number of frozen parameters. Unless `peft_agrees` with this package on the backbone, the
    card has no code for PEFT. Without a `repo_id`, the card's code loads the folder; `subfolder` is the prompt's in
    the repository. This prompt is the best member of the `ensemble` in the folder, if there is one.
    """
    info = info.for_others()
    facts = {
        "title": _title(repo_id, subfolder, hub_id(config.base_model_name_or_path)),
        "base": hub_id(config.base_model_name_or_path),
        "where": f"{repo_id!r}, subfolder={subfolder!r}" if repo_id and subfolder else repr(repo_id or "."),
        "peft_agrees": peft_agrees,
        "causal": config.task_type in (None, "CAUSAL_LM"),
        "auto_class": named_auto_class(config.task_type, info.backbone.get("architecture")).__name__,
        "tags_tokens": config.task_type == "TOKEN_CLS",
        "processor": info.data.get("processor"),
        "picture_columns": str(info.data.get("picture_columns") or "").split(", "),
        "finds_answers": config.task_type == "QUESTION_ANS",
        "gives_features": config.task_type == "FEATURE_EXTRACTION",
        "pair": getattr(info.template, "pair", None),
        "chats": isinstance(info.template, ChatTemplate),
        "task": PIPELINES.get(config.task_type),
        "classifies": info.template is not None and info.template.is_classification,
    }
    pictures = [name for name in (LOSS_FILE, CONFUSION_FILE, CURVES_FILE) if (folder / name).exists()]
    body = read_template(TEMPLATE).render(
        facts, config=config, info=info, ensemble=ensemble, backbone_size=backbone_size, pictures=pictures
    )
    task = "text-classification" if facts["classifies"] else "text-generation"
    task = "image-text-to-text" if facts["processor"] else PIPELINES.get(config.task_type, task)
    metadata = _metadata(info, facts["title"], facts["base"], task, facts["causal"])
    ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}").save(folder / "README.md")


def _metadata(info: PromptInfo, title: str, base: str | None, task: str, causal: bool) -> ModelCardData:
    """Return what the Hub reads of a card: the backbone, the task, the dataset and the results without NaN."""
    dataset = info.data.get("dataset")
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset or "custom",
            dataset_name=dataset or "evaluation data",
            metric_type=name,
            metric_value=round(value, 4),
            metric_name=_metric_name(name, task),
        )
        for name, value in _plain(info.metrics).items()
        if value == value
    ]
    return ModelCardData(
        library_name="peft",
        base_model=base,
        base_model_relation=None if base is None else "adapter",
        tags=TAGS,
        pipeline_tag=task if causal or task != "text-generation" else None,
        datasets=[dataset] if dataset else None,
        model_name=title,
        eval_results=results or None,
    )


def add_to_card(file: Path, language: Any = None, license: str | None = None, tags: str | list[str] = ()) -> None:
    """Add language, license and tags to a card's metadata. They are not recorded with a prompt."""
    card = ModelCard(file.read_text(encoding="utf-8"))
    card.data.language, card.data.license = language or card.data.language, license or card.data.license
    added = [tags] if isinstance(tags, str) else list(tags or ())
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *added]))
    card.save(file)


def name_in_card(file: Path, config: PromptTuningConfig) -> None:
    """Name PEFT, the backbone and our tags in the metadata of a card that others wrote; without one, do nothing."""
    if not file.exists():
        return
    card, base = ModelCard(file.read_text(encoding="utf-8")), hub_id(config.base_model_name_or_path)
    card.data.library_name = "peft"
    if base is not None:
        card.data.base_model, card.data.base_model_relation = base, "adapter"
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
    card.save(file)


def read_template(file: Path) -> jinja2.Template:
    """Load a card's template. An undefined name in it is an error."""
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, **options)
    filters = {"literal": repr, "cell": _cell, "fence": _fence, "metric_name": _metric_name, "plain": _plain}
    environment.filters |= filters | {"in_words": start_in_words, "taught_by": _taught_by}
    return environment.from_string(file.read_text(encoding="utf-8"))


def _title(repo_id: str | None, subfolder: str | None, base: str | None) -> str:
    if repo_id and subfolder:
        return f"{subfolder} of {repo_id.split('/')[-1]}"
    if repo_id:
        return repo_id.split("/")[-1]
    return f"A soft prompt for {base}" if base else "A soft prompt"


def _plain(metrics: dict[str, Any]) -> dict[str, float]:
    """Return metrics by name, without the `eval_` or `untuned_` prefix."""
    return {name.removeprefix("eval_").removeprefix("untuned_"): float(value) for name, value in metrics.items()}


def _metric_name(name: str, task: str | None = None) -> str:
    if task in NOT_OF_CLASSES and name == "f1":
        return "F1"
    return METRIC_NAMES.get(name, name.replace("_", " "))


def _taught_by(kind: str) -> str:
    return TAUGHT_BY.get(kind, "behind a teacher")


def _cell(value: Any) -> str:
    """Return a value as text for a Markdown table."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = repr(value) if isinstance(value, list) else str(value)
    return " ".join(text.splitlines()).replace("|", "\\|")


def _fence(text: str) -> str:
    """Return text as a code block. The fence is longer than any fence in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def start_in_words(info: PromptInfo) -> str:
    """Return the prompt's initialisation in words."""
    start = info.initialization
    private = {"TEACHER": "the first tokens of the text that teaches it", "EXAMPLES": "rows of the training data"}
    goes_on = {"TEACHER": "a text taught that is not told", "EXAMPLES": "started from rows of the training data"}
    before = goes_on.get(str(start.get("private_start")))
    labels, length = start.get("label_words"), start.get("num_virtual_tokens")  # untrusted
    are_all_of_labels = isinstance(labels, list) and isinstance(length, int) and len(labels) >= length
    words = private | {
        "TEXT": f"the words “{start.get('prompt_tuning_init_text')}”",
        "SAMPLE_VOCAB": f"words drawn from the {start.get('vocab_sample_size')} most common tokens",
        "FIRST_VOCAB": "the first tokens of the vocabulary",
        "CLASS_LABELS": "the label words" + ("" if are_all_of_labels else ", and words drawn from the vocabulary"),
        "RANDOM": f"random numbers in ±{start.get('random_range')}",
        "PROMPT": "another prompt" + ("" if before is None else f", which {before}"),
    }
    return words.get(str(start.get("prompt_tuning_init")), "vectors that are not recorded")


def is_ours(card: str | None) -> bool:
    """Tell whether a repository's card is our list or is missing. A card that a person wrote is never overwritten."""
    return card is None or MARKER in card


def repository_card(
    repo_id: str | None, folders: Iterable[str], bases: Mapping[str, str | None], before: str | None = None
) -> str:
    """Return the text of the card of the prompts in `folders`; `repo_id` is None for a local folder.

    `bases` are the Hub ids of the backbones by folder, as far as they are known. The others are read from the present
    card.
    """
    base_of = {row["name"]: row["base"] for row in ROW.finditer(before or "")} | dict(bases)
    prompts = {folder: base_of.get(folder) for folder in sorted(folders)}
    models = sorted({base for base in prompts.values() if base})
    data = ModelCardData(library_name="peft", base_model=models or None, tags=TAGS)
    body = read_template(LIST_TEMPLATE).render(
        marker=MARKER, title=(repo_id or "Soft prompts").split("/")[-1], prompts=prompts, where=repo_id or "."
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def write_repository_card(folder: Path, repo_id: str | None, bases: Mapping[str, str | None]) -> None:
    """Write the card into a folder of prompts, unless a person's card is there."""
    file = folder / CARD_FILE
    before = file.read_text(encoding="utf-8") if file.exists() else None
    if is_ours(before):
        file.write_text(repository_card(repo_id, bases, bases), encoding="utf-8")

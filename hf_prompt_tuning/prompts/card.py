"""Write the model card of a prompt, from recorded facts only."""

from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..hub.names import hub_id
from .config import PromptTuningConfig
from .ensemble_info import EnsembleInfo
from .info import PromptInfo
from .plots import CONFUSION_FILE, CURVES_FILE, LOSS_FILE

TEMPLATE = Path(__file__).parent / "card.md.jinja"
TAGS = ["prompt-tuning", "soft-prompt", "hf_prompt_tuning"]
LABELS = {"f1": "macro F1", "rougeL": "ROUGE-L", "exact_match": "exact match"}


def write_card(
    folder: Path,
    config: PromptTuningConfig,
    info: PromptInfo,
    backbone_size: int,
    repo_id: str | None = None,
    ensemble: EnsembleInfo | None = None,
    subfolder: str | None = None,
) -> None:
    """Write `README.md` into a prompt's folder, next to its pictures.

    Args:
        folder: the prompt's folder.
        config: the prompt's config.
        info: the prompt's description.
        backbone_size: the number of frozen parameters.
        repo_id: the Hub repository for the folder. Without it, the card's code loads the folder.
        ensemble: the ensemble in the folder, if there is one. This prompt is its best member.
        subfolder: the prompt's folder in the repository, if it is not the root.
    """
    info = info.for_others()
    base = hub_id(config.base_model_name_or_path)
    causal = config.task_type != "SEQ_2_SEQ_LM"
    classifies = info.template is not None and info.template.is_classification
    metrics = _plain(info.metrics)
    data = ModelCardData(
        library_name="peft",
        base_model=base,
        base_model_relation=None if base is None else "adapter",
        tags=TAGS,
        pipeline_tag="text-classification" if classifies else "text-generation" if causal else None,
        datasets=[info.data["dataset"]] if info.data.get("dataset") else None,
        model_name=_title(repo_id, subfolder, base),
        eval_results=_eval_results(metrics, info, classifies) or None,
    )
    numbers = config.num_virtual_tokens * config.token_dim
    body = read_template(TEMPLATE).render(
        title=_title(repo_id, subfolder, base),
        base=base,
        where=f"{repo_id!r}, subfolder={subfolder!r}" if repo_id and subfolder else repr(repo_id or "."),
        config=config,
        info=info,
        ensemble=ensemble,
        vote=_plain(ensemble.metrics) if ensemble else {},
        curves_file=CURVES_FILE if (folder / CURVES_FILE).exists() else None,
        template=info.template,
        metrics=metrics,
        untuned=_plain(info.untuned_metrics),
        numbers=numbers,
        share=100 * numbers / (numbers + backbone_size),
        start=start_in_words(info),
        classifies=classifies,
        causal=causal,
        loss_file=LOSS_FILE if (folder / LOSS_FILE).exists() else None,
        confusion_file=CONFUSION_FILE if (folder / CONFUSION_FILE).exists() else None,
        labels=LABELS,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(folder / "README.md")


def add_to_card(file: Path, language: Any = None, license: str | None = None, tags: str | list[str] = ()) -> None:
    """Add language, license and tags to a card's metadata. They are not recorded with a prompt."""
    card = ModelCard(file.read_text(encoding="utf-8"))
    card.data.language, card.data.license = language or card.data.language, license or card.data.license
    more = [tags] if isinstance(tags, str) else list(tags or ())
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *more]))
    card.save(file)


def read_template(file: Path) -> jinja2.Template:
    """Load a card's template. An undefined name in it is an error."""
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, **options)
    environment.filters |= {"literal": repr, "cell": _cell, "fence": _fence}
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


def _eval_results(metrics: dict[str, float], info: PromptInfo, classifies: bool) -> list[EvalResult]:
    """Return the metrics in the Hub's format, without NaN."""
    dataset = info.data.get("dataset")
    return [
        EvalResult(
            task_type="text-classification" if classifies else "text-generation",
            dataset_type=dataset or "custom",
            dataset_name=dataset or "evaluation data",
            metric_type=name,
            metric_value=round(value, 4),
            metric_name=LABELS.get(name, name.replace("_", " ")),
        )
        for name, value in metrics.items()
        if value == value
    ]


def _cell(value: Any) -> str:
    """Return a value as text for a Markdown table."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = repr(value) if isinstance(value, list) else str(value)
    return text.replace("\n", " ").replace("|", "\\|")


def _fence(text: str) -> str:
    """Return text as a code block. The fence is longer than any fence in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def start_in_words(info: PromptInfo) -> str:
    """Return the prompt's initialisation in words."""
    known = info.initialization
    return {
        "TEXT": f"the words “{known.get('prompt_tuning_init_text')}”",
        "SAMPLE_VOCAB": f"words drawn from the {known.get('vocab_sample_size')} most common tokens",
        "FIRST_VOCAB": "the first tokens of the vocabulary",
        "CLASS_LABELS": "the label words, and words drawn from the vocabulary",
        "RANDOM": f"random numbers in ±{known.get('random_range')}",
        "PROMPT": "another prompt",
    }.get(str(known.get("prompt_tuning_init")), "vectors that are not recorded")

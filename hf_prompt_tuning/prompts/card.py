"""A prompt's model card: what is known of it, and nothing else."""

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
    """Writes `README.md` into a prompt's folder, beside its pictures.

    Args:
        folder: where.
        config: the prompt's.
        info: what the prompt says of itself.
        backbone_size: how many parameters stay frozen.
        repo_id: the Hub repository that the folder goes to; without it the card's code loads the folder itself.
        ensemble: the one that this prompt is the best of, if the folder holds one.
        subfolder: of the repository, where the prompt is in one.
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
    """Adds to a card's head what a prompt cannot know of itself."""
    card = ModelCard(file.read_text(encoding="utf-8"))
    card.data.language, card.data.license = language or card.data.language, license or card.data.license
    more = [tags] if isinstance(tags, str) else list(tags or ())
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *more]))
    card.save(file)


def read_template(file: Path) -> jinja2.Template:
    """A card's template, in which an unknown name is an error."""
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
    """Metrics by their own names, without the evaluation's prefix."""
    return {name.removeprefix("eval_").removeprefix("untuned_"): float(value) for name, value in metrics.items()}


def _eval_results(metrics: dict[str, float], info: PromptInfo, classifies: bool) -> list[EvalResult]:
    """The metrics as the Hub shows them."""
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
    """A value within a Markdown table."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = repr(value) if isinstance(value, list) else str(value)
    return text.replace("\n", " ").replace("|", "\\|")


def _fence(text: str) -> str:
    """Text as a code block, with a fence that it does not hold itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def start_in_words(info: PromptInfo) -> str:
    """How the prompt started, as words."""
    known = info.initialization
    return {
        "TEXT": f"the words “{known.get('prompt_tuning_init_text')}”",
        "SAMPLE_VOCAB": f"words drawn from the {known.get('vocab_sample_size')} most common tokens",
        "FIRST_VOCAB": "the first tokens of the vocabulary",
        "CLASS_LABELS": "the label words, and words drawn from the vocabulary",
        "RANDOM": f"random numbers in ±{known.get('random_range')}",
        "PROMPT": "another prompt",
    }.get(str(known.get("prompt_tuning_init")), "vectors that are not recorded")

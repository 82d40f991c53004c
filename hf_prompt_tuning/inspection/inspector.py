"""Inspect one prompt, or several prompts on one backbone (`inspect_prompt`).

From the vectors alone, these are computed:

- the nearest words (Lester et al. 2021, section 7);
- the norms, compared with the vocabulary's;
- the cosines between positions;
- the distance of each vector from its start;
- the similarity of the prompts (SPoT, Vu et al. 2022).

With rows of text, also:

- the attention that each position gets;
- loss and accuracy with each position removed.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.collator import DataCollatorForPromptTuning
from ..data.encoding import encode_data, from_list
from ..data.processors import tokenizer_in
from ..data.template import sources_of
from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..layouts.sharing import of_all_parts
from ..layouts.traits import token_scale
from ..models import vocabulary
from ..models.initialization import made_again
from ..models.load import Coder, check_for_one, for_other_prompts, load_prompt
from ..models.model_classes import check_writes_text
from ..models.soft_prompts import SoftPrompts
from ..prompts.card import start_in_words
from ..prompts.privacy import private_start
from .comparison import compare_vectors
from .effects import attention_to_prompt, quality, quality_without_each
from .results import Inspection, Move, Position, PromptInspection, Word

QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
BINS = 60


def inspect_prompt(
    prompts: SoftPrompts | str | Path | Sequence[str | Path],
    tokenizer: Coder | None = None,
    data: Dataset | Sequence[dict[str, Any]] | None = None,
    *,
    backbone: PreTrainedModel | str | Path | None = None,
    words: int = 5,
    batch_size: int = 32,
    ignore_mismatch: bool = False,
    **load_kwargs: Any,
) -> Inspection:
    """Inspect what prompts have learned, and what each of their vectors does.

    A given model is not changed, not even during the call. A given backbone is frozen, and not changed otherwise.

    Args:
        prompts: a prompt-tuning model (all its prompts are inspected), or folders or Hub ids of prompts.
        tokenizer: the backbone's tokenizer, or its processor if the data has pictures; required with a model.
        data: rows with the columns of the prompt's template. Without them, only the vectors are inspected.
        backbone: as in `load_prompt`, for folders and Hub ids. One backbone is loaded for all prompts.
        words: number of nearest words for each position.
        batch_size: rows in a batch when positions are removed.
        ignore_mismatch: as in `load_prompt`.
        **load_kwargs: passed to `load_prompt` (`token`, `device_map`, `gguf_file`, …).

    Raises:
        PromptTuningError: there is no tokenizer, a number is below 1, or the data does not fit the template of a
            single prompt. With several prompts, a misfit is written to the prompt's notes instead.
        PromptLoadError: as in `load_prompt`.
    """
    for option, value in (("words", words), ("batch_size", batch_size)):
        if value < 1:
            raise PromptTuningError(f"{option} is {value}; give 1 or more, in whole numbers.")
    if isinstance(prompts, SoftPrompts):
        model, names = of_all_parts(prompts).eval(), {name: name for name in prompts.peft_config}
    else:
        model, tokenizer, names = _loaded(prompts, tokenizer, backbone, ignore_mismatch, load_kwargs)
    coder, tokenizer = tokenizer, tokenizer_in(tokenizer)
    if tokenizer is None:
        raise PromptTuningError("the backbone's tokenizer is not given; give it as tokenizer=….")
    if data is not None and not isinstance(data, Dataset):
        data = from_list(list(data), "given")
    embed, inspections = model.word_embeddings, []
    norms = vocabulary.vocabulary_norms(embed, vocabulary.vocabulary_size(embed, tokenizer))
    for adapter, name in names.items():
        model.set_adapter(adapter)
        inspections.append(_of_vectors(model, name, tokenizer, norms, words))
        _add_effects(inspections[-1], model, coder, data, batch_size, is_alone=len(names) == 1)
    vectors = {name: model.prompt_encoder[adapter].embedding.weight.detach() for adapter, name in names.items()}
    return Inspection(inspections, compare_vectors(vectors) if len(names) > 1 else None)


def _loaded(
    prompts: str | Path | Sequence[str | Path],
    tokenizer: Coder | None,
    backbone: PreTrainedModel | str | Path | None,
    ignore_mismatch: bool,
    load_kwargs: dict[str, Any],
) -> tuple[SoftPrompts, Coder | None, dict[str, str]]:
    """Return a model with all prompts, its tokenizer or processor, and the prompts' names by adapter name."""
    paths = [prompts] if isinstance(prompts, str | Path) else list(prompts)
    if not paths:
        raise PromptTuningError("there is no prompt; give a folder or a Hub id.")
    if len({str(path) for path in paths}) < len(paths):
        raise PromptTuningError(f"a prompt is given twice: {', '.join(map(str, paths))}.")
    first, *others = paths
    check_for_one(load_kwargs, len(paths))
    if isinstance(backbone, PreTrainedModel):
        backbone = of_all_parts(backbone)
    loaded = load_prompt(first, backbone=backbone, tokenizer=tokenizer, ignore_mismatch=ignore_mismatch, **load_kwargs)
    options = for_other_prompts(load_kwargs | {"ignore_mismatch": ignore_mismatch})
    names = {"default": str(first)}
    for number, path in enumerate(others, start=2):
        names[f"prompt_{number}"] = str(path)
        loaded.model.load_adapter(path, f"prompt_{number}", **options)
    return loaded.model, loaded.processor or loaded.tokenizer, names


def _of_vectors(
    model: SoftPrompts, name: str, tokenizer: PreTrainedTokenizerBase, norms: Tensor, how_many: int
) -> PromptInspection:
    """Inspect the active prompt's vectors without any text."""
    vectors, embed, info = model.prompt.detach(), model.word_embeddings, model.info
    template, known = info.template, info.backbone
    lengths = vectors.norm(dim=1).cpu()
    by_cosine = vocabulary.nearest_tokens(vectors, embed, len(norms), how_many)
    by_distance = vocabulary.nearest_tokens(vectors, embed, len(norms), how_many, by_distance=True)
    values = (lengths.tolist(), vocabulary.percentiles(lengths, norms).tolist())
    rows = zip(_words(by_cosine, tokenizer), _words(by_distance, tokenizer), *values, strict=True)
    counts, edges = torch.histogram(norms, BINS)
    inspection = PromptInspection(
        name=name,
        backbone=str(known.get("name_or_path") or known.get("architecture") or type(model.get_base_model()).__name__),
        width=vectors.shape[1],
        source=None if template is None else " + ".join(sources_of(template)),
        targets=[] if template is None else list((template.label_words or {}).values()) or [template.target or ""],
        started_as=start_in_words(info),
        place=info.place,
        recorded={key.removeprefix("eval_"): float(v) for key, v in info.metrics.items() if math.isfinite(v)},
        positions=[Position(number, *row) for number, row in enumerate(rows, start=1)],
        similarity=vocabulary.cosine_matrix(vectors, vectors).tolist(),
        vocabulary_norms={
            "quantiles": {str(q): float(norms[round(q / 100 * (len(norms) - 1))]) for q in QUANTILES},
            "edges": edges.tolist(),
            "counts": counts.tolist(),
        },
    )
    _add_moves(inspection, model, tokenizer, len(norms))
    return inspection


def _words(nearest: vocabulary.NearestTokens, tokenizer: PreTrainedTokenizerBase) -> list[list[Word]]:
    rows = zip(nearest.ids.tolist(), nearest.cosines.tolist(), nearest.distances.tolist(), strict=True)
    return [[Word(tokenizer.decode([i]), i, c, d) for i, c, d in zip(*row, strict=True)] for row in rows]


def _add_moves(
    inspection: PromptInspection, model: SoftPrompts, tokenizer: PreTrainedTokenizerBase, size: int
) -> None:
    """Add how far each vector has moved, if its start was saved or can be computed again."""
    vectors, embed = model.prompt.detach(), model.word_embeddings
    start = model.prompt_encoder[model.active_adapter].start
    if start is None:
        start = made_again(model.info.initialization, len(vectors), embed, tokenizer, token_scale(model.base_model))
    if start is None:
        private = private_start(model.info.initialization) is not None
        why = "not saved, because they are words that may be private" if private else "not known"
        inspection.notes["moved"] = f"the vectors that the prompt started from are {why}"
        return
    start = start.to(vectors.device)
    words = _words(vocabulary.nearest_tokens(start, embed, size, 1), tokenizer)
    distances, norms = (vectors - start).norm(dim=1), start.norm(dim=1).clamp(min=1e-12)
    cosines = torch.nn.functional.cosine_similarity(vectors, start, dim=1)
    for i, position in enumerate(inspection.positions):
        position.moved = Move(
            distance=float(distances[i]),
            relative=float(distances[i] / norms[i]),
            cosine=float(cosines[i]),
            start=words[i][0],
            still_nearest=words[i][0].token_id == position.by_cosine[0].token_id,
        )


def _add_effects(
    inspection: PromptInspection,
    model: SoftPrompts,
    coder: Coder,
    data: Dataset | None,
    batch_size: int,
    is_alone: bool,
) -> None:
    """Add what the active prompt's vectors do to rows of text, or write to the notes why it is unknown.

    Raise PromptTuningError if the rows do not fit the template of a prompt that is inspected alone.
    """
    reason = "no rows of text were given"
    if data is not None:
        try:
            return _add_effects_on_rows(inspection, model, coder, data, batch_size)
        except PromptTuningError as error:
            if is_alone:
                raise
            reason = str(error)
    inspection.notes |= dict.fromkeys(("attention", "without"), reason)


def _add_effects_on_rows(
    inspection: PromptInspection,
    model: SoftPrompts,
    coder: Coder,
    data: Dataset,
    batch_size: int,
) -> None:
    template = model.info.template
    if template is None:
        raise PromptTuningError(f"{inspection.name} has no template, by which rows become text; leave the data out.")
    check_writes_text(model)
    encoder, collate = model.row_encoder(coder), DataCollatorForPromptTuning(coder)
    head = model.active_peft_config.head
    rows = encode_data(data, "given", encoder, model.room(), require_target=False, head=head)
    inspection.rows = len(rows)
    try:
        by_layer = attention_to_prompt(model, rows, collate)
    except PromptTuningError as error:
        inspection.notes["attention"] = str(error)
    else:
        inspection.attention_by_layer = by_layer.tolist()
        for position, share in zip(inspection.positions, by_layer.mean(0).tolist(), strict=True):
            position.attention = share
    labelled = [row for row in rows if any(i != IGNORED for i in row["labels"])]
    labelled.sort(key=lambda row: row["length"])  # for little padding in a batch
    inspection.labelled_rows = len(labelled)
    if not labelled:
        inspection.notes["without"] = "the rows have no labels"
        return
    batches = [collate(labelled[i : i + batch_size]) for i in range(0, len(labelled), batch_size)]
    inspection.loss, inspection.accuracy = quality(model, batches, encoder.label_token_ids)
    without_each = quality_without_each(model, batches, encoder.label_token_ids)
    for position, without in zip(inspection.positions, without_each, strict=True):
        position.loss_without, position.accuracy_without = without

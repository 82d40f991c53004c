"""Export prompts as tokens of the vocabulary: a checkpoint that any engine serves.

A prompt of P vectors becomes P rows of the embedding matrix, under P added special tokens, and a text that begins with
these tokens is a text behind the prompt. Many prompts fit into one checkpoint, so one server serves all tasks, mixed
in its batches, and its prefix cache shares the keys and values of each prompt.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..hub.backbones import largest_shard
from .added_tokens import check_extensible, embedding_rows, with_added_tokens
from .exported_prompts import ExportedPrompt, Prompts, load_prompts
from .measured_export import Measured, Row, measure, rows_of, states_to_fit
from .output_rows import RADII, bias_of, fitted_row
from .prompt_texts import PromptText, RowTexts, prompt_text, request, with_tokens
from .sample_texts import SAMPLE_TEXTS, checked_texts

PROMPTS_FILE = "prompt.json"


def export_tokens(
    prompts: Prompts,
    out: str | Path,
    backbone: PreTrainedModel | str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Iterable[str] = (),
    **load: Any,
) -> Path:
    """Write a checkpoint of the backbone in which prompts are tokens of the vocabulary.

    The folder loads with `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`, and `AutoTokenizer`, without this package.
    Its `prompt.json` says for each prompt by name how its texts begin and how a request looks.

    Args:
        prompts: a Hub id or folder; several, named by the last part of their paths, or by the keys of a mapping; or a
            model, of which all prompts are taken (then pass `tokenizer`).
        out: the folder: new, empty, or an earlier export, which is replaced.
        backbone: as in `load_prompt`; default the one that the first prompt names.
        tokenizer: the backbone's, in place of its own.
        texts: texts of your task. It is measured on them, and on texts of many kinds, that the added tokens are never
            written and that the logits are those of the prompt-tuning model.
        **load: passed to `load_prompt`.

    Returns:
        The folder.

    Raises:
        PromptTuningError: the backbone has an embedding for each layer, is quantized or not whole, or changes its
            embeddings otherwise than by a factor; names are repeated or taken; the tokenizer gives no text the ids of
            training; the added tokens would be written, or change the logits; or `out` holds something else.
        PromptLoadError: as in `load_prompt`.
        PromptMismatchError: the prompts are of different backbones.
    """
    folder, texts = checked_folder(out), checked_texts(texts)
    exported = load_prompts(prompts, backbone, tokenizer, **load)
    base, own = exported[0].model.get_base_model(), exported[0].tokenizer
    check_extensible(base)
    check_is_not_of(base, folder)
    with unfinished(folder) as made:
        base.config.save_pretrained(made)  # it decides, too, which class AutoTokenizer takes
        with_tokens(own, exported).save_pretrained(made)
        extended = AutoTokenizer.from_pretrained(made)
        ids = {prompt.name: extended.convert_tokens_to_ids(prompt.tokens) for prompt in exported}
        check_ids(ids, own, base)
        forms = {prompt.name: prompt_text(prompt, extended, ids[prompt.name]) for prompt in exported}
        served, measured = with_prompts(base, exported, ids, rows_of(exported, ids, [*SAMPLE_TEXTS, *texts]))
        _save(served, made, base)
        write_prompts(made, folder.resolve().name, exported, ids, forms, measured)
    return folder


@torch.no_grad()
def with_prompts(
    base: PreTrainedModel,
    prompts: Sequence[ExportedPrompt],
    ids: dict[str, list[int]],
    rows: Sequence[Row],
    stored: Callable[[Tensor], Tensor] = Tensor.clone,
) -> tuple[PreTrainedModel, dict[str, Measured]]:
    """Return a copy of the backbone with the prompts' tokens, and what was measured on it for each prompt.

    The shortest output row with which the tokens are never written is taken, as it is `stored`. Raise
    PromptTuningError if there is none.
    """
    all_ids = [i for prompt in prompts for i in ids[prompt.name]]
    vectors = torch.cat([embedding_rows(prompt.vectors, base) for prompt in prompts])
    weight, output = base.get_output_embeddings().weight, torch.zeros(())
    states = states_to_fit(with_added_tokens(base, all_ids, vectors, output), rows) if bias_of(base) is None else []
    for radius in RADII:
        output = stored(fitted_row(states, weight, radius)) if states else output
        served = with_added_tokens(base, all_ids, vectors, output)
        measured = measure(served, rows, all_ids)
        if all(values.is_out_of_reach for values in measured.values()):
            break
    for name, values in measured.items():
        values.check(name, type(base).__name__)
    return served, measured


def checked_folder(out: str | Path) -> Path:
    """Return the folder of an export. Raise PromptTuningError if it holds something else."""
    folder = Path(out)
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not _is_export(folder):
        raise PromptTuningError(f"{str(out)!r} holds other files than an export; give a new folder.")
    if folder.is_mount():
        raise PromptTuningError(f"{str(out)!r} is a mount point, which cannot be replaced; give a folder in it.")
    check_writable(folder.resolve().parent)
    return folder


def check_writable(folder: Path) -> None:
    """Raise PromptTuningError if nothing can be written into a folder, or it cannot be made."""
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is no folder"
        raise PromptTuningError(
            f"nothing can be written in {str(folder)!r}: {str(there)!r} {why}; give another folder."
        )


def check_is_not_of(base: PreTrainedModel, folder: Path) -> None:
    """Raise PromptTuningError if a folder is the backbone's own, which may be an export, too."""
    if base.name_or_path and folder.exists() and folder.resolve() == Path(base.name_or_path).resolve():
        raise PromptTuningError(f"{str(folder)!r} is the backbone's own folder; give another one for the export.")


def _is_export(folder: Path) -> bool:
    """Tell whether a folder holds an earlier export: a `prompt.json` may be anybody's."""
    try:
        described = json.loads((folder / PROMPTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    entries = described.values() if isinstance(described, dict) else [described]
    return bool(entries) and all(isinstance(entry, dict) and "token_ids" in entry for entry in entries)


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Yield a new folder, which takes the place of `folder` at the end. After an error nothing has changed.

    At every moment the old export or the new one is whole. After a crash it may stand beside `folder`, under a hidden
    name.
    """
    folder = folder.resolve()  # a link stays one
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    before = made.with_name(f"{made.name}-before")
    try:
        yield made
        let_others_read(made)
        if folder.exists():
            folder.rename(before)
        made.rename(folder)
    except BaseException:
        if before.exists() and not folder.exists():
            before.rename(folder)
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


def let_others_read(folder: Path) -> None:
    """Let all users read an export. safetensors writes files for their owner alone, and a server may be another."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def check_ids(ids: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase, base: PreTrainedModel) -> None:
    """Raise PromptTuningError if ids of the prompts' tokens are not free and behind each other.

    They may lie in the padding of the embedding matrix, behind the tokenizer's own ids.
    """
    taken, given = set(tokenizer.get_vocab().values()), [i for several in ids.values() for i in several]
    size = base.get_input_embeddings().num_embeddings
    if max(taken) >= size:
        raise PromptTuningError(
            f"the tokenizer has the id {max(taken)}, and the backbone's embedding {size} rows; give the backbone's "
            "own tokenizer, or call resize_token_embeddings before the backbone gets a prompt."
        )
    if taken & set(given) or given != list(range(given[0], given[0] + len(given))) or given[0] > size:
        raise PromptTuningError(
            f"the tokenizer {type(tokenizer).__name__} gives added tokens the ids {given[:3]}…, which are not free, "
            "not behind each other, or beyond the end of the vocabulary; give a fast tokenizer."
        )


def _save(served: PreTrainedModel, folder: Path, base: PreTrainedModel) -> None:
    """Write the checkpoint, in files that are as large as the backbone's."""
    generation = served.generation_config
    # Saving refuses a config that generating accepts (a temperature beside do_sample=False); many backbones have one.
    served.generation_config = GenerationConfig()
    size = largest_shard(base)
    served.save_pretrained(folder, **({} if size is None else {"max_shard_size": size}))
    generation.to_json_file(folder / "generation_config.json")


def write_prompts(
    folder: Path,
    model: str,
    prompts: Sequence[ExportedPrompt],
    ids: dict[str, list[int]],
    forms: dict[str, PromptText],
    measured: dict[str, Measured],
    vector_error: float = 0.0,
) -> None:
    """Write `prompt.json`: for each prompt, how its texts begin, and a request that is ready to send to `model`.

    `vector_error` is the relative error with which the vectors are stored.
    """
    described = {}
    for prompt in prompts:
        form, rows = forms[prompt.name], RowTexts(prompt)
        path, body = request(prompt, form, ids[prompt.name], model)
        entry = {
            "prompt_position": prompt.position,
            "prefix": form.prefix,
            "template": rows.template(form),
            "suffix": form.suffix,
            "add_special_tokens": form.add_special_tokens,
            "token_ids": ids[prompt.name],
            "endpoint": path,
            "request": body,
            "measured": measured[prompt.name].to_json() | {"vector_error": vector_error},
        }
        described[prompt.name] = entry | {"notes": _notes(form, rows)}
    text = json.dumps(described, indent=2, ensure_ascii=False)
    (folder / PROMPTS_FILE).write_text(text + "\n", encoding="utf-8")


def _notes(form: PromptText, rows: RowTexts) -> list[str]:
    """Return what a client must know beside the request."""
    notes = []
    if form.is_system and rows.has_system_turn:
        notes.append("Put the prefix in front of the system message's text; give every chat a system message.")
    elif form.is_system:
        notes.append("Put the prefix in front of the first user message's text: the chat template has no system turn.")
    elif form.as_ids:
        notes.append("Send token ids, as the request does: the server writes other special tokens around a text.")
    elif not form.add_special_tokens:
        notes.append("Send add_special_tokens: false, or the token ids: the text holds all special tokens.")
    if not form.any_beginning:
        notes.append("A text that begins with white space gets other tokens behind the prompt than in training.")
    return notes

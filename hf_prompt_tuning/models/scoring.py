"""Evaluate a prompt: by token-weighted loss, by ranking labels, and by generated texts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.chat_targets import last_run
from ..data.collator import beside_texts
from ..errors import PromptTuningError
from ..layouts.base import IGNORED, LabelledLogits, nll_by_row, token_nll
from ..layouts.label_search import LabelSearch
from ..prompts.json_files import numbers_of
from .generation_options import ends_of_text
from .outputs import RankingOutput

METRICS = Path(__file__).parents[1] / "metrics"
GREEDY: Mapping[str, Any] = MappingProxyType({"do_sample": False})


def label_nll(model: Callable, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each row's labelled tokens, [B] fp32, and their number, [B] long.

    The batch has `input_ids`, `attention_mask` [B, T] and `labels`, and `adapter_names` if the rows have several
    prompts. The model may be wrapped.
    """
    with torch.no_grad():
        return nll_of(LabelledLogits(*labelled_logits(model, batch)), len(batch["input_ids"]))


def nll_of(predictions: LabelledLogits, size: int) -> tuple[Tensor, Tensor]:
    """Return what `label_nll` returns, from the predictions of a batch of `size` rows."""
    rows = predictions.rows
    nll = token_nll(predictions.logits, predictions.targets)
    return nll_by_row(nll, rows, size), torch.bincount(rows, minlength=size)


def labelled_logits(model: Callable, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the predictions of a batch's K labelled tokens, [K, V], their token ids [K], and their rows [K]."""
    if not beside_texts(batch) or extract_model_from_parallel(model).puts_pictures_in(beside_texts(batch)):
        output = model(**batch, only_labelled=True)
        return output.logits, output.targets, output.rows
    labels, seq2seq = batch["labels"], extract_model_from_parallel(model).config.is_encoder_decoder
    given = {name: value for name, value in batch.items() if name != "labels" or seq2seq}
    logits = model(**given).logits
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    places = columns if seq2seq else columns + logits.shape[1] - labels.shape[1] - 1
    # Without a prompt, no token stands before the first token to predict it.
    rows, columns, places = rows[places >= 0], columns[places >= 0], places[places >= 0]
    return logits[rows, places], labels[rows, columns], rows


def pictures_of(model: Callable, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the columns of a batch that are pictures and types of tokens, which the model takes in any call."""
    model = extract_model_from_parallel(model)
    return {name: batch[name] for name in beside_texts(batch) if model.puts_pictures_in([name])}


def rank_labels(
    model: Callable, batch: dict[str, Tensor], label_token_ids: Sequence[Sequence[int]], is_encoder_decoder: bool
) -> Tensor:
    """Return the log-likelihood of every label's words (and EOS) after every source, [B, L] fp32.

    The arguments are those of `search_labels`.
    """
    return search_labels(model, batch, label_token_ids, is_encoder_decoder, None).scores


def search_labels(
    model: Callable,
    batch: dict[str, Tensor],
    label_token_ids: Sequence[Sequence[int]],
    is_encoder_decoder: bool,
    search: LabelSearch | None,
) -> RankingOutput:
    """Return the log-likelihoods of labels' words (and EOS) after every source, of all labels if `search` is None.

    The batch is as for `label_nll`. Of `input_ids` only the source is read: all of them in an encoder-decoder; in a
    causal model those whose label is -100. `label_token_ids` are L sequences.
    """
    mask = batch["attention_mask"] if is_encoder_decoder else sources(batch)
    with torch.no_grad():
        return model(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            candidates=label_token_ids,
            adapter_names=batch.get("adapter_names"),
            search=search,
            **pictures_of(model, batch),
        )


def sources(batch: dict[str, Tensor]) -> Tensor:
    """Return the attention mask [B, T] of what stands before each row's last target; of a row without one, all of it.

    A chat has several targets if all turns of the assistant are, and tokens behind the last one. A text has one
    target, at its end.
    """
    labelled = batch["labels"] != IGNORED
    starts = labelled & ~torch.nn.functional.pad(labelled, (1, 0))[:, :-1]
    columns = torch.arange(labelled.shape[1], device=labelled.device)
    last = torch.where(starts, columns, -1).amax(1, keepdim=True)
    return batch["attention_mask"] * ((columns < last) | (last < 0))


def label_losses(scores: Tensor, labels: Tensor, label_token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return what `label_nll` returns, from the scores [B, L] of `rank_labels`, or those that a search required.

    `labels` [B] are the indices of the rows' labels; -1 for a row without a label, which has no labelled tokens.
    """
    known, index = labels >= 0, labels.clamp(min=0)
    sizes = torch.tensor([len(ids) for ids in label_token_ids], device=scores.device)
    nll = -scores.gather(1, index[:, None])[:, 0]
    return torch.where(known, nll, 0.0), sizes[index] * known


def loss_metrics(nll: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Return loss and perplexity, weighted by tokens; empty without labelled tokens."""
    if not tokens.sum():
        return {}
    loss = float(nll.sum(dtype=np.float64) / tokens.sum())
    return {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0)))}


def classification_metrics(scores: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro F1 from scores [N, L] and references [N], of the rows that have a label (-1: none)."""
    labelled = references >= 0
    if not labelled.any():
        return {}
    return metric("classification.py").compute(predictions=scores[labelled].argmax(1), references=references[labelled])


def confusion_counts(predictions: np.ndarray, references: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return `labels` (their names) and `counts` [L, L], with a row for each right label; empty without labelled rows.

    Predictions and references are label indices, [N]; a negative reference is none.
    """
    labelled = references >= 0
    if not labelled.any():
        return {}
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (references[labelled], predictions[labelled]), 1)
    return {"labels": list(names), "counts": counts.tolist()}


def loss_history(
    log_history: list[dict[str, Any]], name: str | None = None, most: int = 1000
) -> dict[str, list[list[float]]]:
    """Return training and evaluation loss as [update step, value], thinned to at most `most` points each.

    With a teacher, the divergence from it is a third curve, `eval_kl`. More points would make a prompt's description
    larger than the prompt. `name` is the prompt's, in the log of several.
    """
    keys = {"loss": f"loss_{name}" if name else "loss", "eval_loss": f"eval_{name}_loss" if name else "eval_loss"}
    if name is None:
        keys |= {"eval_kl": "eval_kl"}
    curves = {
        curve: [[log["step"], log[key]] for log in log_history if key in numbers_of(log)]
        for curve, key in keys.items()
    }
    return {curve: points[:: -(-len(points) // most)] for curve, points in curves.items() if points}


def text_metrics(predictions: Sequence[str], references: Sequence[str | None]) -> dict[str, float]:
    """Return exact match and ROUGE-L of the rows that have a reference; empty if none has."""
    pairs = [pair for pair in zip(predictions, references, strict=True) if pair[1] is not None]
    if not pairs:
        return {}
    return metric("text.py").compute(predictions=[text for text, _ in pairs], references=[right for _, right in pairs])


def metric(file: str) -> Any:
    """Return a metric of this package, a module of `evaluate` that needs no network."""
    import evaluate  # of the extra `train`

    return evaluate.load(str(METRICS / file), keep_in_memory=True)


def decode(token_ids: np.ndarray | Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Decode N rows of token ids to texts; -100 and special tokens are left out."""
    rows: list[Any] = [[int(i) for i in row if i != IGNORED] for row in token_ids]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def generate_targets(
    model: Any,
    batch: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    end_ids: Sequence[int] = (),
    sampling: Mapping[str, Any] = GREEDY,
) -> Tensor:
    """Generate continuations of a batch's sources (see `sources`), [B, T'], with -100 after their end.

    `end_ids` are more end tokens, those of a chat's turn. `sampling` are options of `generate`, by default greedy.
    """
    mask = batch["attention_mask"] if model.config.is_encoder_decoder else sources(batch)
    ends, pad = ends_of_text(model.generation_config, tokenizer, end_ids), tokenizer.pad_token_id
    ids = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=mask,
        adapter_names=batch.get("adapter_names"),
        **pictures_of(model, batch),
        max_new_tokens=max_new_tokens,
        num_beams=1,
        num_return_sequences=1,
        return_dict_in_generate=False,
        **sampling,
        eos_token_id=ends,
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        tokenizer=tokenizer,  # for the stop strings of the backbone's config, if it has some
    )
    # A decoder's first token is its start token, which in many models (BART, NLLB) is also the end token.
    ids = ids[:, 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1] :]
    # After the first end token come pads, which may be any token.
    end = torch.isin(ids, torch.tensor(ends, device=ids.device)).long()
    ended = end.cumsum(1) - end > 0
    return ids.masked_fill(ended, IGNORED)


def generate_within(
    model: Any,
    batch: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    end_ids: Sequence[int] = (),
    sampling: Mapping[str, Any] = GREEDY,
) -> Tensor:
    """Generate as `generate_targets`, but stop at a causal backbone's last position.

    A row without room for `max_new_tokens` is generated alone. In a batch it would either run past its last position
    after it is finished, or stop the other rows early.
    """
    room = [model.room(name) for name in batch.get("adapter_names") or [None] * len(batch["input_ids"])]
    if model.config.is_encoder_decoder or None in room:
        return generate_targets(model, batch, tokenizer, max_new_tokens, end_ids, sampling)
    mask = sources(batch)
    left = torch.tensor(room, device=mask.device) - mask.sum(1)
    left += model.count_head_tokens(batch["input_ids"], mask, batch.get("adapter_names"))
    tight = left < max_new_tokens
    if others := list(
        pictures_of(model, batch)
    ):  # pictures are not one a row, so a part of the rows has no known part of them
        if tight.any():
            raise PromptTuningError(
                f"a row of the batch has positions for {int(left.min())} new tokens, and {max_new_tokens} are to be "
                f"written; with {others[0]} no row is written alone. Lower max_target_length, or shorten rows."
            )
        return generate_targets(model, batch, tokenizer, max_new_tokens, end_ids, sampling)
    parts = [((~tight).nonzero()[:, 0], max_new_tokens)] if not tight.all() else []
    parts += [(row, max(1, int(left[row]))) for row in tight.nonzero()]
    generated = []
    for rows, limit in parts:
        part = {
            name: values[rows] if isinstance(values, Tensor) else [values[i] for i in rows.tolist()]
            for name, values in batch.items()
        }
        generated.append((rows, generate_targets(model, part, tokenizer, limit, end_ids, sampling)))
    ids = left.new_full((len(left), max(new.shape[1] for _, new in generated)), IGNORED)
    for rows, new in generated:
        ids[rows, : new.shape[1]] = new
    return ids


def longest_target(data: Any) -> int:
    """Return the token count of the longest target in a dataset's first thousand rows; 128 if it is not readable."""
    if isinstance(data, dict):
        data = next(iter(data.values()))
    if not isinstance(data, Dataset):
        return 128
    rows = data[: min(len(data), 1000)]["labels"]
    return max(len(last_target(row)) for row in rows) or 128


def last_target(labels: Sequence[int]) -> list[int]:
    """Return the token ids of a row's last target; an empty list for a row without one."""
    target = last_run([label != IGNORED for label in labels])
    return [int(labels[i]) for i in target]

"""How good a prompt is: token-weighted loss, labels by rank, texts by generation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.template import PromptTemplate
from ..layouts.base import IGNORED
from ..prompts.info import numbers_of
from .backbone import max_positions
from .generation_options import ends_of_text

METRICS = Path(__file__).parents[1] / "metrics"


def label_nll(model: Callable, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of each example's labelled tokens, and how many there are.

    Args:
        model: a prompt-tuning model (or its wrapper).
        batch: `input_ids`, `attention_mask` [B, T] and `labels`; `adapter_names`, where the rows have several prompts.

    Returns:
        [B] fp32 and [B] long.
    """
    with torch.no_grad():
        logits, targets, rows = labelled_logits(model, batch)
    nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    size = len(batch["input_ids"])
    summed = torch.zeros(size, device=nll.device).index_add(0, rows, nll)
    return summed, torch.bincount(rows, minlength=size)


def beside_texts(batch: dict[str, Any]) -> list[str]:
    """Return what a batch has beside texts (pictures, token types, …), which only `forward` for whole rows takes."""
    return [name for name in batch if name not in ("input_ids", "attention_mask", "labels", "adapter_names", "label")]


def labelled_logits(model: Callable, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The predictions of the K labelled tokens, [K, V], the tokens [K], and the row of each [K]; as `label_nll`."""
    if not beside_texts(batch):
        output = model(**batch, only_labelled=True)
        return output.logits, output.targets, output.rows
    labels, seq2seq = batch["labels"], extract_model_from_parallel(model).config.is_encoder_decoder
    given = {name: value for name, value in batch.items() if name != "labels" or seq2seq}
    logits = model(**given).logits
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    places = columns if seq2seq else columns + logits.shape[1] - labels.shape[1] - 1
    # Without a prompt nothing stands before the first token to predict it.
    rows, columns, places = rows[places >= 0], columns[places >= 0], places[places >= 0]
    return logits[rows, places], labels[rows, columns], rows


def rank_labels(
    model: Callable, batch: dict[str, Tensor], label_token_ids: Sequence[Sequence[int]], is_encoder_decoder: bool
) -> Tensor:
    """The log-likelihood of every label's words (and EOS) behind every source.

    Args:
        model: a prompt-tuning model (or its wrapper).
        batch: `input_ids`, `attention_mask` and `labels` as the collator makes them; of `input_ids` only the source
            (where `labels` is -100, for causal models) is read. `adapter_names`, where the rows have several prompts.
        label_token_ids: L sequences of token ids.
        is_encoder_decoder: the labels are the decoder's, and all of `input_ids` is source.

    Returns:
        [B, L] fp32, summed over each label's tokens.
    """
    mask = batch["attention_mask"]
    if not is_encoder_decoder:
        mask = mask * (batch["labels"] == IGNORED)
    with torch.no_grad():
        return model(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            candidates=label_token_ids,
            adapter_names=batch.get("adapter_names"),
        ).scores


def loss_metrics(nll: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Loss and perplexity, weighted by tokens; nothing where nothing was labelled."""
    if not tokens.sum():
        return {}
    loss = float(nll.sum(dtype=np.float64) / tokens.sum())
    return {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0)))}


def classification_metrics(scores: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Accuracy and macro F1 of the rows that have a label.

    Args:
        scores: [N, L].
        references: [N], -1 for a row without a label.
    """
    known = references >= 0
    if not known.any():
        return {}
    metric = evaluate.load(str(METRICS / "classification.py"), keep_in_memory=True)
    return metric.compute(predictions=scores[known].argmax(1), references=references[known])


def confusion_matrix(scores: np.ndarray, references: np.ndarray, template: PromptTemplate) -> dict[str, Any]:
    """`labels` (words) and `counts` [L, L], rows by the right label, of the rows that have one; empty without any."""
    known = references >= 0
    if not known.any():
        return {}
    words = [template.label_words[label] for label in template.labels]
    counts = np.zeros((len(words), len(words)), dtype=int)
    np.add.at(counts, (references[known], scores[known].argmax(1)), 1)
    return {"labels": words, "counts": counts.tolist()}


def loss_history(log_history: list[dict[str, Any]], most: int = 1000) -> dict[str, list[list[float]]]:
    """Training and evaluation loss as [update step, value], thinned to `most` points each.

    Args:
        log_history: `trainer.state.log_history`.
        most: more would make a prompt's description larger than the prompt.
    """
    curves = {
        name: [[log["step"], log[name]] for log in log_history if name in numbers_of(log)]
        for name in ("loss", "eval_loss")
    }
    return {name: points[:: -(-len(points) // most)] for name, points in curves.items() if points}


def text_metrics(predictions: Sequence[str], references: Sequence[str | None]) -> dict[str, float]:
    """Exact match and ROUGE-L of the rows that have a reference; nothing where none has."""
    pairs = [pair for pair in zip(predictions, references, strict=True) if pair[1] is not None]
    if not pairs:
        return {}
    metric = evaluate.load(str(METRICS / "text.py"), keep_in_memory=True)
    return metric.compute(predictions=[text for text, _ in pairs], references=[right for _, right in pairs])


def decode(token_ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of [N, T] token ids; -100 is left out, special tokens too."""
    rows: list[Any] = [[int(i) for i in row if i != IGNORED] for row in token_ids]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def generate_targets(
    model: Any, batch: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> Tensor:
    """Greedy continuations of the sources, [B, T'], -100 behind their end.

    Args:
        model: a prompt-tuning model, unwrapped.
        batch: as for `rank_labels`.
        tokenizer: gives an end of text and the pad token.
        max_new_tokens: a continuation's limit.
    """
    mask, ends, pad = batch["attention_mask"], ends_of_text(model.generation_config, tokenizer), tokenizer.pad_token_id
    if not model.config.is_encoder_decoder:
        mask = mask * (batch["labels"] == IGNORED)
    ids = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=mask,
        adapter_names=batch.get("adapter_names"),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=ends,
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
    )
    # A decoder's first token is where it starts, which for many (BART, NLLB) is the very token that ends a text.
    ids = ids[:, 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1] :]
    # After the first end come pads, which may be any token.
    end = torch.isin(ids, torch.tensor(ends, device=ids.device)).long()
    ended = end.cumsum(1) - end > 0
    return ids.masked_fill(ended, IGNORED)


def generate_within(
    model: Any,
    batch: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    room: int | Tensor | None,
) -> Tensor:
    """As `generate_targets`, ending where the backbone has no more positions.

    A row that has no room for `max_new_tokens` is generated by itself: among others it would either be fed beyond its
    end, when it is done, or end them early.

    Args:
        model, batch, tokenizer, max_new_tokens: as there.
        room: how many tokens a causal backbone has positions for behind the prompt, or behind each row's ([B] long);
            None where there is no limit.
    """
    if room is None:
        return generate_targets(model, batch, tokenizer, max_new_tokens)
    left = room - (batch["attention_mask"] * (batch["labels"] == IGNORED)).sum(1)
    tight = left < max_new_tokens
    parts = [((~tight).nonzero()[:, 0], max_new_tokens)] if not tight.all() else []
    parts += [(row, max(1, int(left[row]))) for row in tight.nonzero()]
    found = []
    for rows, limit in parts:
        part = {
            name: values[rows] if isinstance(values, Tensor) else [values[i] for i in rows.tolist()]
            for name, values in batch.items()
        }
        found.append((rows, generate_targets(model, part, tokenizer, limit)))
    ids = left.new_full((len(left), max(part.shape[1] for _, part in found)), IGNORED)
    for rows, part in found:
        ids[rows, : part.shape[1]] = part
    return ids


def room_behind(model: Any, names: Sequence[str]) -> Tensor | None:
    """How many text tokens a causal backbone has positions for behind each row's prompt, [B] long.

    Args:
        model: a prompt-tuning model, unwrapped.
        names: each row's prompt.

    Returns:
        None where there is no limit.
    """
    limit = max_positions(model.get_base_model())
    if limit is None or model.config.is_encoder_decoder:
        return None
    lengths = [len(model.prompt_encoder[name].embedding.weight) for name in names]
    return limit - torch.tensor(lengths, device=model.device)


def longest_target(data: Any) -> int:
    """Tokens of the longest target among a dataset's first thousand rows; 128 where they cannot be looked at."""
    if isinstance(data, dict):
        data = next(iter(data.values()))
    if not isinstance(data, Dataset):
        return 128
    rows = data[: min(len(data), 1000)]["labels"]
    return max(sum(label != IGNORED for label in row) for row in rows) or 128

"""Adapt labels, logits and packed rows for trainers that do not know about prompts."""

import inspect
from collections.abc import Container, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.modeling_outputs import ModelOutput

from ..errors import PromptTuningError
from ..layouts import Examples, Prompts
from ..layouts.base import IGNORED
from ..layouts.padded import predicting_columns
from ..prompts.config import PromptTuningConfig
from ..prompts.files import CONFIG_FILE
from ..prompts.repository_files import STATE
from .batch_checks import Targets, Texts, check_labels
from .heads import RowHeads

REFERENCE = "ref"
"""TRL's name for the reference model: a copy of the prompt "default" from before the first step."""


def strip_virtual_tokens(logits: Any, labels: Tensor | None) -> Any:
    """Return the logits of the text only, [B, T, V], from logits [B, P+T, V] and labels [B, T].

    For `preprocess_logits_for_metrics` of a Trainer that does not know about prompts. Column t then belongs to the
    text's column t (and predicts column t + 1), with pads at either side. Of a tuple that starts with logits, every
    tensor of [B, P+T, ...] is cut. An encoder-decoder's logits, and generated ids, have no virtual tokens and are
    returned unchanged. Raise PromptTuningError if there are no labels, which T is read from, or more labels than
    logits.
    """
    first = logits[0] if isinstance(logits, tuple) else logits
    if first.dim() != 3:
        return logits
    if labels is None:
        raise PromptTuningError(
            "strip_virtual_tokens got no labels, by which it knows the text's length; give the rows labels "
            "(-100 where there are none)."
        )
    width, extra = first.shape[1], first.shape[1] - labels.shape[1]
    if extra < 0:
        raise PromptTuningError(
            f"strip_virtual_tokens got {width} columns of logits for {labels.shape[1]} of labels; "
            "give it the logits of a prompt-tuning model."
        )

    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cut, value))
        has_them = isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] == width
        return value[:, extra:] if has_them else value

    return cut(logits)


def labels_for_trainers(
    backbone: PreTrainedModel,
    labels: Tensor | None,
    texts: Texts,
    targets: Targets,
    has_prompt: bool,
    behind_head: Tensor,
) -> Tensor | None:
    """Return the labels that a trainer means who does not know about prompts, [B, T], or None.

    A `transformers.Trainer` divides the loss by its own count of labels. If the backbone's own loss shifts the labels,
    Trainer counts from the second column on, because without a prompt no token stands before a row's first token.
    TRL's fused head never counts a text's first token. In rows where `behind_head` [B] is True, the first token is a
    head's, which nothing predicts here either. Raise PromptTuningError if `shift_labels` is invalid, a row's first
    token has a label that was not counted, or a pad has a label that was.
    """
    if targets.fused_lm_head:
        _check_fused(targets)
    if targets.shift_labels is not None:
        shifted = check_labels(backbone, targets.shift_labels, None, texts.shape[0])
        labels = from_shifted(shifted, texts.shape[1])
        if bool((behind_head & (labels[:, 0] != IGNORED)).any()):
            raise _first_of_head("shift_labels has a label for")
        return labels
    if labels is None or not has_prompt or targets.only_labelled:
        return labels
    shifts = LOSS_MAPPING.get(getattr(backbone, "loss_type", None)) is ForCausalLMLoss
    if targets.fused_lm_head:
        return pad(labels[:, 1:], (1, 0), value=IGNORED) if shifts else labels
    if targets.num_items_in_batch is not None:
        _check_counted(labels, texts.attention_mask, shifts, behind_head)
    return labels


def check_no_head_labels(labels: Tensor | None, targets: Targets) -> Tensor | None:
    """Return the labels of heads, [B, h]; raise PromptTuningError if only labelled tokens are computed."""
    if labels is not None and targets.only_labelled:
        raise PromptTuningError(
            "labels are given on the tokens that the prompt stands behind, which no prompt can predict better; make "
            "them -100 there."
        )
    return labels


def _first_of_head(what: str) -> PromptTuningError:
    return PromptTuningError(
        f"{what} a row's very first token, before which nothing stands to predict it, because the prompt stands "
        "behind it. Make it -100."
    )


def _check_counted(labels: Tensor, mask: Tensor | None, shifts: bool, behind_head: Tensor) -> None:
    """Raise PromptTuningError for labels that Trainer counts and we do not, or that we count and Trainer does not."""
    given = labels != IGNORED
    if mask is not None and bool((given & ~mask.bool()).any()):
        raise PromptTuningError("labels are given on pads, where attention_mask is 0; make them -100 there.")
    # A row's first token may stand behind pads.
    first = given[:, 0] if mask is None else given.gather(1, mask.long().argmax(1)[:, None])[:, 0]
    if not shifts and bool((first & behind_head).any()):
        raise _first_of_head("num_items_in_batch was counted with the label of")
    if shifts and bool((given[:, 0] & ~behind_head).any()):
        raise PromptTuningError(
            "a row's very first token has a label, and num_items_in_batch was counted without it, so the loss would "
            "be scaled wrongly. Make the first column of labels -100; or let it count, and have the collator give "
            "shift_labels = torch.nn.functional.pad(labels, (0, 1), value=-100) beside labels; or use "
            "PromptTuningTrainer."
        )


def from_shifted(shift_labels: Tensor, length: int) -> Tensor:
    """Return labels [B, T] from labels in the columns that predict them.

    `shift_labels` is [B, T], where the first token predicts the first column; or [B, T+1], where the prompt's last
    vector does. Raise PromptTuningError for another width, or for a label in the last column, which no token follows.
    """
    columns = shift_labels.shape[1]
    if columns not in (length, length + 1):
        raise PromptTuningError(
            f"shift_labels has {columns} columns for {length} tokens; give {length}, or {length + 1} where the first "
            "token's label counts."
        )
    if bool((shift_labels[:, -1] != IGNORED).any()):
        raise PromptTuningError("shift_labels has a label in its last column, behind which no token stands.")
    labels = shift_labels[:, :-1]
    return labels if columns > length else pad(labels, (1, 0), value=IGNORED)


def fused_in_caller_columns(
    outputs: ModelOutput, prompts: Prompts, examples: Examples, targets: Targets, heads: RowHeads | None
) -> ModelOutput:
    """Move TRL's outputs from the columns of padded rows to those of the caller's batch.

    A TRL trainer takes the last N-1 columns as the predictions of columns 1 … N-1 of its labels.

    Values of tokens are [B, P+T] in `outputs`, and 0 without a label. They are returned as [B, T-1]; as [B, T] if a
    label in the first column counts; as wide as `shift_labels` if the caller gave them.
    """
    rows, columns = predicting_columns(prompts, examples.labels)
    places = (examples.labels != IGNORED).nonzero(as_tuple=True)[1]
    if examples.order is not None:
        places = examples.order[rows, places]
    length = examples.labels.shape[1]
    if heads is not None and heads.kept is not None:
        places, length = heads.kept[rows, places], heads.columns
        if (of_heads := targets.labels_of_heads) is not None:
            more, tokens = (of_heads != IGNORED).nonzero(as_tuple=True)
            rows, columns = torch.cat([rows, more]), torch.cat([columns, tokens - 1])
            places = torch.cat([places, heads.head_columns()[more, tokens]])
    shifted = targets.shift_labels is not None
    from_first = targets.shift_labels.shape[1] == length + 1 if shifted else bool((places == 0).any())

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != 2:
            return value
        scores = value.new_zeros(len(value), length)
        scores[rows, places] = value[rows, columns]
        scores = pad(scores, (0, 1)) if shifted else scores
        return scores if from_first else scores[:, 1:]

    return type(outputs)(**{name: moved(value) for name, value in outputs.items()})


def check_fused_head(backbone: PreTrainedModel, outputs: ModelOutput) -> None:
    """Raise PromptTuningError if the outputs are not those that TRL reads.

    The backbone may have no fused head. Or it is also TRL's `ref_model`, to which TRL adds a head that returns only
    log-probabilities.
    """
    if "log_probs" not in outputs:
        raise PromptTuningError(
            "fused_lm_head is given, and the backbone has none; let the trainer add it (trl.trainer.utils."
            "add_fused_lm_head), or leave the argument out."
        )
    if outputs.get("entropy") is None and any("entropy" in head for head in _fused_heads(backbone)):
        raise PromptTuningError(
            "the backbone is also the ref_model, and TRL has written into it for both. Leave ref_model out, or load "
            "it a second time."
        )


def _fused_heads(backbone: PreTrainedModel) -> Iterator[tuple[str, ...]]:
    """Yield what each fused head returns that TRL has added to the backbone, from the last one to the first."""
    forward = backbone.forward
    while inspect.isfunction(function := getattr(forward, "__func__", forward)):
        variables = inspect.getclosurevars(function).nonlocals
        if not variables.keys() >= {"original_forward", "outputs"}:
            return
        yield variables["outputs"]
        forward = variables["original_forward"]


def _check_fused(targets: Targets) -> None:
    """Raise PromptTuningError for arguments that TRL's fused head would ignore."""
    for name in ("label_smoothing", "only_labelled", "candidates"):
        if getattr(targets, name):
            raise PromptTuningError(f"{name} is given with fused_lm_head, which knows none; leave one of them out.")
    if targets.labels is None and targets.shift_labels is None:
        raise PromptTuningError("fused_lm_head is given without labels, which it scores; give labels.")


def add_reference(model: PeftModel, config: PromptTuningConfig) -> None:
    """Add a copy of the prompt "default" as `REFERENCE`, which is not trained.

    TRL asks for a new prompt with the same config and then copies the vectors. A normal initialisation would need the
    tokenizer or the other prompt that the first prompt needed. It would also give the optimizer vectors that must not
    be trained. Raise PromptTuningError if another prompt is active: TRL would train it, and would compare it with
    "default".
    """
    if model.active_adapter != "default":
        raise PromptTuningError(
            f"the prompt {model.active_adapter!r} is active, and TRL copies 'default' as what it measures training "
            "against. Call the prompt that trains 'default', or give ref_model."
        )
    model.add_adapter(REFERENCE, replace(config, inference_mode=True))
    reference, prompt = model.prompt_encoder[REFERENCE], model.prompt_encoder["default"]
    reference.load_state_dict(prompt.state_dict())
    reference.info, reference.start, reference.head = deepcopy(prompt.info), prompt.start, prompt.head


def root_to_resume(folder: Any, name: str, names: Container[str]) -> Path | None:
    """Return the checkpoint whose root holds the prompt "default", if a prompt in its folder `name` is being loaded.

    So a `Trainer` resumes a model of several prompts, `names`: "default" in the root and the others in folders.
    """
    if not isinstance(folder, str | Path) or name == "default" or Path(folder).name != name or "default" not in names:
        return None
    root = Path(folder).parent
    return root if (root / STATE).is_file() and (root / CONFIG_FILE).is_file() else None


def folder_in_checkpoint(folder: Any, name: str, names: Container[str]) -> Path | None:
    """Return the folder of the prompt `name` in a checkpoint of several prompts, if the checkpoint's root is loaded.

    So a `Trainer` that loads the best checkpoint gets the active prompt of a model of several prompts, `names`. It
    asks for the root, which holds the prompt "default".
    """
    if not isinstance(folder, str | Path) or name == "default" or name not in names or "default" not in names:
        return None
    own = Path(folder) / name
    return own if (Path(folder) / STATE).is_file() and (own / CONFIG_FILE).is_file() else None

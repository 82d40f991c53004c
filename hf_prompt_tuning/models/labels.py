"""What trainers that know nothing of prompts count, and how it is made to fit: labels, logits, packed rows."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

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

BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Where a packed row's examples begin, as collators without padding give it."""

REFERENCE = "ref"
"""TRL's name for what training is measured against: a copy of the prompt "default" from before the first step."""


def strip_virtual_tokens(logits: Any, labels: Tensor | None) -> Any:
    """The logits of the text alone, for `preprocess_logits_for_metrics` of a Trainer that knows nothing of prompts.

    Column t then belongs to the text's column t (and predicts column t + 1), with pads at either side.

    Args:
        logits: [B, P+T, V], or a tuple that starts with them; every tensor of [B, P+T, ...] within it is cut. An
            encoder-decoder's logits, and generated ids, have no virtual tokens and stay as they are.
        labels: [B, T].

    Returns:
        As `logits`, [B, T, V].

    Raises:
        PromptTuningError: no labels, from which T is known, or more labels than logits.
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


def agreed_labels(
    labels: Tensor, mask: Tensor | None, backbone: PreTrainedModel, counted: bool, fused: bool | None
) -> Tensor:
    """The labels that whoever calls `forward` has in mind.

    A `transformers.Trainer` divides by what it counted. For a backbone whose own loss shifts the labels it counts
    those from the second column on, because without a prompt nothing stands before a row's first token.

    Args:
        labels: [B, T].
        mask: [B, T] or None.
        backbone: whose loss Trainer looks at.
        counted: the loss is divided by Trainer's count.
        fused: TRL sums and divides the loss itself; with it a text's first token is never a target.

    Returns:
        [B, T]; for TRL without the labels that it does not count.

    Raises:
        PromptTuningError: a label on a row's very first token that was not counted, or one on a pad that was.
    """
    shifts = LOSS_MAPPING.get(getattr(backbone, "loss_type", None)) is ForCausalLMLoss
    if fused:
        return pad(labels[:, 1:], (1, 0), value=IGNORED) if shifts else labels
    if not counted:
        return labels
    given = labels != IGNORED
    if mask is not None and bool((given & ~mask.bool()).any()):
        raise PromptTuningError("labels are given on pads, where attention_mask is 0; make them -100 there.")
    if shifts and bool(given[:, 0].any()):
        raise PromptTuningError(
            "a row's very first token has a label, and num_items_in_batch was counted without it, so the loss would "
            "be scaled wrongly. Make the first column of labels -100; or let it count, and have the collator give "
            "shift_labels = torch.nn.functional.pad(labels, (0, 1), value=-100) beside labels; or use "
            "PromptTuningTrainer."
        )
    return labels


def from_shifted(shift_labels: Tensor, length: int) -> Tensor:
    """Labels [B, T] of labels that stand where they are predicted.

    Args:
        shift_labels: [B, T], whose first column is predicted by the first token, or [B, T+1], whose first column is
            predicted by the prompt's last vector. Nothing stands behind the last token to be predicted by it.
        length: T.

    Raises:
        PromptTuningError: another number of columns, or a label in the last one.
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


def fused_as_it_came(outputs: ModelOutput, prompts: Prompts, examples: Examples, shifted: int | None) -> ModelOutput:
    """TRL's outputs of padded rows in the columns of the batch as it came.

    A TRL trainer takes the last N-1 columns for those that predict the columns 1 … N-1 of the labels that it gave.

    Args:
        outputs: of a backbone with TRL's fused head; what belongs to a token is [B, P+T], and 0 where no label is.
        prompts: those in front of the rows.
        examples: [B, T], with labels.
        shifted: how many columns `shift_labels` had, where those were given.

    Raises:
        PromptTuningError: the backbone has no such head.

    Returns:
        As `outputs`: [B, T-1]; [B, T] where a label in the first column counts; as wide as `shift_labels`.
    """
    if "log_probs" not in outputs:
        raise PromptTuningError(
            "fused_lm_head is given, and the backbone has none; let the trainer add it (trl.trainer.utils."
            "add_fused_lm_head), or leave the argument out."
        )
    rows, columns = predicting_columns(prompts, examples.labels)
    places = (examples.labels != IGNORED).nonzero(as_tuple=True)[1]
    if examples.order is not None:
        places = examples.order[rows, places]
    length = examples.labels.shape[1]
    from_first = shifted == length + 1 if shifted is not None else bool((places == 0).any())

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != 2:
            return value
        found = value.new_zeros(examples.labels.shape)
        found[rows, places] = value[rows, columns]
        found = found if shifted is None else pad(found, (0, 1))
        return found if from_first else found[:, 1:]

    return type(outputs)(**{name: moved(value) for name, value in outputs.items()})


def check_fused(labels: Tensor | None, smoothing: float, only_labelled: bool, candidates: Any) -> None:
    """Refuses what TRL's fused head would drop.

    Raises:
        PromptTuningError: no labels to score, or another argument that says how to score them.
    """
    others = {"label_smoothing": smoothing, "only_labelled": only_labelled, "candidates": candidates}
    if given := [name for name, value in others.items() if value]:
        raise PromptTuningError(f"{given[0]} is given with fused_lm_head, which knows none; leave one of them out.")
    if labels is None:
        raise PromptTuningError("fused_lm_head is given without labels, which it scores; give labels.")


def check_unpacked(kwargs: dict[str, Any]) -> None:
    """Refuses a packed row's boundaries: its examples would share one prompt, in front of the first.

    Raises:
        PromptTuningError: one of `BOUNDARIES` is given.
    """
    if given := [name for name in BOUNDARIES if kwargs.get(name) is not None]:
        raise PromptTuningError(
            f"{given[0]} is given, so several examples are packed into a row, and only the first would stand behind "
            "the prompt. Turn packing and padding_free off; PromptTuningTrainer packs by itself."
        )


def add_reference(model: PeftModel, config: PromptTuningConfig) -> None:
    """Adds a copy of the prompt "default" as `REFERENCE`, which does not train.

    TRL asks for a new prompt of the same config and copies the vectors then. To initialise one would need the
    tokenizer or the other prompt that the first one needed, and an optimizer would be given what it may not train.

    Raises:
        PromptTuningError: another prompt is active, which TRL would train and measure against a copy of "default".
    """
    if model.active_adapter != "default":
        raise PromptTuningError(
            f"the prompt {model.active_adapter!r} is active, and TRL copies 'default' as what it measures training "
            "against. Call the prompt that trains 'default', or give ref_model."
        )
    model.add_adapter(REFERENCE, replace(config, inference_mode=True))
    model.prompt_encoder[REFERENCE].load_state_dict(model.prompt_encoder["default"].state_dict())
    model.prompt_info[REFERENCE] = deepcopy(model.prompt_info["default"])
    model.prompt_starts[REFERENCE] = model.prompt_starts["default"]

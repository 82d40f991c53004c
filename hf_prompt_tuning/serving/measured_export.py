"""Measure an export on texts: logits beside the prompt-tuning model's, and the probability of the added tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.heads import without_head
from ..errors import PromptTuningError
from ..layouts.traits import max_positions
from .exported_prompts import ExportedPrompt
from .output_rows import recorded_states
from .prompt_texts import RowTexts
from .sample_texts import SAMPLE_TEXTS

REACH = 2.0**-24
"""The largest probability of all added tokens together: half a unit in the last place of an fp32 probability."""
LOGITS = {torch.float32: 1e-4, torch.float64: 1e-4}
"""The largest difference of logits, relative to the largest logit, that is rounding. 0.1 in 16 bits."""
PER_PROMPT = 6
"""How many texts are measured behind each prompt; without a prompt, all are."""


@dataclass(frozen=True)
class Row:
    """A text that is measured.

    Attributes:
        text: the text.
        prompt: the prompt that it stands behind; None for none.
        ids: its token ids as the prompt-tuning model takes them.
        served: its token ids with those of the prompt's tokens.
        fits: whether the output row is fitted to it, and not only checked on it: to every other one.
    """

    text: str
    prompt: ExportedPrompt | None
    ids: list[int]
    served: list[int]
    fits: bool


@dataclass
class Measured:
    """What was measured behind a prompt, or without one.

    Attributes:
        logit_error: the largest difference of a logit from the prompt-tuning model's, relative to the largest logit.
        probability: the largest probability of all added tokens together, at any position.
        tolerance: the largest error that is rounding.
    """

    logit_error: float = 0.0
    probability: float = 0.0
    tolerance: float = 0.1

    @property
    def is_out_of_reach(self) -> bool:
        """Whether the added tokens change no probability beyond rounding."""
        return self.probability <= REACH

    def check(self, name: str, backbone: str) -> None:
        """Raise PromptTuningError if the added tokens may be written, or the logits are others."""
        where = f"behind {name!r}" if name else "without a prompt"
        if np.isnan([self.logit_error, self.probability]).any():
            raise PromptTuningError(
                f"{backbone} gives logits {where} that are no numbers, which nothing can be measured on; load it in "
                'another dtype (dtype="float32"), and export a prompt of finite vectors.'
            )
        if not self.is_out_of_reach:
            raise PromptTuningError(
                f"the added tokens have a probability of {self.probability:.1e} {where}, with every output row that "
                f"was tried, and at most {REACH:.1e} is rounding: {backbone} might write them. Serve it by embeddings "
                "(export_vllm), or with transformers."
            )
        if self.logit_error > self.tolerance:
            raise PromptTuningError(
                f"the logits behind the tokens of {name!r} differ from those behind the prompt by "
                f"{self.logit_error:.1e} of the largest one, and {self.tolerance:.1e} would be rounding: {backbone} "
                "reads more than embeddings. Serve it with transformers."
            )

    def to_json(self) -> dict[str, float]:
        """Return the two measured numbers."""
        return {"logit_error": self.logit_error, "probability_of_added_tokens": self.probability}


def rows_of(prompts: Sequence[ExportedPrompt], ids: dict[str, list[int]], texts: Sequence[str]) -> list[Row]:
    """Return the texts that are measured: all without a prompt, and some of them behind each, in turn.

    Raise PromptTuningError if a caller's text has no tokens, or more than the backbone has positions.
    """
    tokenizer, limit = prompts[0].tokenizer, max_positions(prompts[0].model.get_base_model())
    rows: list[Row] = []
    for number, text in enumerate(texts):
        plain = tokenizer(text)["input_ids"]
        rows.append(Row(text, None, plain, plain, fits=number % 2 == 0))
    for place, prompt in enumerate(prompts):
        source, head = RowTexts(prompt), prompt.head
        chosen = [texts[(place * PER_PROMPT + i) % len(texts)] for i in range(min(PER_PROMPT, len(texts)))]
        for number, text in enumerate([*chosen, *texts[len(texts) - 2 :]]):
            own = source.ids(text)
            served = [*head, *ids[prompt.name], *without_head(own, head)]
            # Behind a prompt's vectors, and in a chat, a hidden state may be like none of a bare text.
            rows.append(Row(text, prompt, own, served, fits=number % 2 == 0))
    return [row for row in rows if _fits(row, limit)]


def _fits(row: Row, limit: int | None) -> bool:
    """Tell whether a row is measured: a long sample text is not, if the backbone has no room for it.

    Raise PromptTuningError for a caller's text without room or without tokens, and for the shortest sample text.
    """
    if row.served and (limit is None or len(row.served) <= limit):
        return True
    if row.served and row.text in SAMPLE_TEXTS[:-1]:
        return False
    counted = f"{len(row.served)} tokens{' with the prompt' if row.prompt else ''}"
    raise PromptTuningError(
        f"the text {row.text[:40]!r} has {counted}, and is measured on 1 or more"
        f"{'' if limit is None else f', at most {limit}'}; give other texts, or a shorter prompt."
    )


def states_to_fit(served: PreTrainedModel, rows: Iterable[Row]) -> list[Tensor]:
    """Return what the output layer is called with, [T, H'], for each row that an output row is fitted to.

    `served` is the backbone with the prompts' tokens, whatever their output rows are. A row whose states are no
    numbers is left out: `measure` tells of it.
    """
    with recorded_states(served, served.get_output_embeddings()) as (model, states):
        for row in rows:
            if row.fits:
                model(**_inputs(row, row.served, served))
    return [state[0] for state in states if state.isfinite().all()]


def measure(served: PreTrainedModel, rows: Iterable[Row], added: Sequence[int]) -> dict[str, Measured]:
    """Return what is measured behind each prompt by name; "" is no prompt.

    Args:
        served: the backbone with the prompts' tokens.
        rows: the texts.
        added: the ids of all prompts' tokens.
    """
    measured: dict[str, Measured] = {}
    kept = torch.ones(len(served.get_output_embeddings().weight), dtype=torch.bool)
    kept[list(added)] = False
    tolerance = LOGITS.get(served.dtype, 0.1)
    for row in rows:
        values = measured.setdefault(row.prompt.name if row.prompt else "", Measured(tolerance=tolerance))
        logits = served(**_inputs(row, row.served, served)).logits[0].double().cpu()
        if row.prompt is not None:
            ours = row.prompt.model(**_inputs(row, row.ids, served), adapter_names=[row.prompt.adapter]).logits[0]
            # A decoder's own columns differ where a head stands; those of the text, and the one before, are last.
            length = len(ours) if served.config.is_encoder_decoder else len(row.served) - _before(row) + 1
            logits, ours = logits[-length:], ours[-length:].double().cpu()
            shared = kept[: ours.shape[1]]
            error = (logits[:, : len(shared)][:, shared] - ours[:, shared]).abs().max() / ours.abs().max()
            values.logit_error = float(np.maximum(values.logit_error, float(error)))  # unlike max, it keeps a NaN
        reached = logits.softmax(-1)[:, ~kept].sum(-1).max()
        values.probability = float(np.maximum(values.probability, float(reached)))
    return measured


def _before(row: Row) -> int:
    """Return how many tokens stand before a row's text: the head's and the prompt's."""
    return len(row.prompt.head) + len(row.prompt.vectors)


def _inputs(row: Row, ids: Sequence[int], model: PreTrainedModel) -> dict[str, Tensor]:
    """Return a model's input of one row of ids; an encoder-decoder writes the row's text."""
    inputs = {"input_ids": torch.tensor([list(ids)], device=model.device)}
    if model.config.is_encoder_decoder:
        inputs["labels"] = torch.tensor([row.ids], device=model.device)
    return inputs

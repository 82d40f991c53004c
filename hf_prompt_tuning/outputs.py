"""What a prompt-tuning model gives when it is asked for labelled tokens or candidates only."""

import dataclasses

from torch import Tensor
from transformers.modeling_outputs import ModelOutput


@dataclasses.dataclass
class RankingOutput(ModelOutput):
    """What `forward(..., candidates=…)` gives.

    Attributes:
        scores: [B, L] fp32, the log-likelihood of each candidate's words behind each row.
    """

    scores: Tensor | None = None


@dataclasses.dataclass
class LabelledOutput(ModelOutput):
    """What `forward(..., only_labelled=True)` gives: the loss and the predictions of the K labelled tokens.

    Attributes:
        loss: scalar.
        logits: [K, V].
        targets: [K] long, the tokens that stand there.
        rows: [K] long, the example of each.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None
    rows: Tensor | None = None

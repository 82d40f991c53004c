"""The calls that are tried: each draws its arguments, makes the call, and compares the result with the oracle's."""

from .base import EntryPoint
from .broken import Broken
from .foreign_trainers import Dpo, Grpo, Kto, Sft, VanillaTrainer
from .forward import Candidates, Forward, ForwardWithLabels, OnlyLabelled
from .generate import Beams, Generate, Samples
from .loops import DecodingLoop
from .pipelines import Classification, Generation
from .trainers import Evaluate, Predict, Predictions, Texts, Train

CALLS: list[EntryPoint] = [
    Forward(),
    ForwardWithLabels(),
    OnlyLabelled(),
    Candidates(),
    Generate(),
    Beams(),
    Samples(),
    DecodingLoop(),
    Broken(),
    Classification(),
    Generation(),
]
TRAINERS: list[EntryPoint] = [
    Evaluate(),
    Predict(),
    Predictions(),
    Texts(),
    Train(),
    VanillaTrainer(),
    Sft(),
    Dpo(),
    Kto(),
    Grpo(),
]
ENTRY_POINTS = CALLS + TRAINERS

"""The calls that are tried: each draws its arguments, makes the call, and compares the result with the oracle's."""

from tests.shared.versions import HAS_TRL

from .base import EntryPoint
from .broken import Broken
from .chats import Chats
from .foreign_trainers import VanillaTrainer
from .forward import Candidates, Forward, ForwardWithLabels, OnlyLabelled
from .generate import Beams, Generate, Samples
from .heads import Heads
from .loops import DecodingLoop
from .pictures import Pictures
from .pipelines import Classification, Generation
from .places import Places
from .taught import Taught
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
    Places(),
    Chats(),
    Heads(),
    Pictures(),
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
    Taught(),
    VanillaTrainer(),
]
if HAS_TRL:
    from .trl_trainers import Dpo, Grpo, Kto, Sft

    TRAINERS += [Sft(), Dpo(), Kto(), Grpo()]
ENTRY_POINTS = CALLS + TRAINERS

"""The calls that are tried: each draws its arguments, makes the call, and compares the result with the oracle's."""

from .base import EntryPoint
from .forward import Candidates, Forward, ForwardWithLabels, OnlyLabelled
from .generate import Beams, Generate, Samples

ENTRY_POINTS: list[EntryPoint] = [
    Forward(),
    ForwardWithLabels(),
    OnlyLabelled(),
    Candidates(),
    Generate(),
    Beams(),
    Samples(),
]

"""One case from its drawing to its outcome."""

import gc
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

from hf_prompt_tuning import PromptTuningError

from .before import CHANGES
from .entry_points.base import EntryPoint
from .world import Setting, Unequal, World, require_unchanged, settings, snapshot

THREADS = 3
FEW = 260
"""Of 10,000; those of the rarer entry points come on top."""


@dataclass(frozen=True)
class Case:
    """A call of an entry point, and what is there before it."""

    setting: Setting
    asked: Any


def cases(entry: EntryPoint) -> st.SearchStrategy[Case]:
    """All that may be asked of an entry point."""

    @st.composite
    def drawn(draw: Any) -> Case:
        setting = draw(settings(entry.befores, entry.families, entry.dtypes))
        return Case(setting, entry.arguments(draw, setting))

    return drawn()


def outcome(entry: EntryPoint, case: Case) -> str:
    """ "equal", or why the package refused the case rightly.

    Raises:
        Unequal: it gives something else than the oracle, changes the backbone, or refuses what is not on the list.
        Exception: whatever else it raised.
    """
    world = World(case.setting)
    entry.prepare(world, case.asked)
    before = snapshot(world.backbone)
    try:
        change = CHANGES.get(case.setting.before)
        if change is not None:
            entry.call(world, case.asked)
            require_unchanged(before, world.backbone, "the first call", entry.free)
            change(world)
            world.changed()
            before = snapshot(world.backbone)
        results = _calls(entry, world, case)
    except PromptTuningError as error:
        require_unchanged(before, world.backbone, "a refused call", entry.free)
        why = entry.reason(case.asked, str(error))
        if why is None:
            raise Unequal(f"refused, and not on the list: {error}") from error
        return why
    require_unchanged(before, world.backbone, "the call", entry.free)
    for asked, got in results:
        entry.check(world, asked, got)
    return "equal"


def _calls(entry: EntryPoint, world: World, case: Case) -> list[tuple[Any, Any]]:
    """What was asked and got: once, in another thread, or in several at once with other rows each."""
    if case.setting.before == "another thread":
        entry.call(world, case.asked)
        asked = [case.asked]
    elif case.setting.before == "threads at once":
        asked = [case.asked.again(turn) for turn in range(THREADS)]
    else:
        return [(case.asked, entry.call(world, case.asked))]
    found: list[Any] = [None] * len(asked)
    threads = [threading.Thread(target=_kept, args=(entry, world, one, found, i)) for i, one in enumerate(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return list(zip(asked, found, strict=True))


def _kept(entry: EntryPoint, world: World, asked: Any, found: list[Any], place: int) -> None:
    torch.set_num_threads(1)
    try:
        found[place] = entry.call(world, asked)
    except BaseException as error:
        found[place] = error


def record(figures: Counter, entry: EntryPoint, case: Case, found: str) -> None:
    """Counts a case and its outcome."""
    figures["outcome", found] += 1
    figures["entry point", entry.name] += 1
    for name in ("family", "dtype", "attention", "layout", "before"):
        figures[name, getattr(case.setting, name)] += 1


def few_of(entry: EntryPoint) -> int:
    """How many cases of an entry point are among the 300 of `make test`."""
    return max(6, round(FEW * entry.cases / 10_000))


def require_right(entry: EntryPoint, count: int, seed: int | None = None, figures: Counter | None = None) -> None:
    """Draws so many cases of an entry point, and raises what is wrong with the smallest wrong one.

    Args:
        entry: whose cases.
        count: how many.
        seed: of the drawing; None draws the same ones every time.
        figures: counts them.
    """

    @hypothesis.settings(
        max_examples=count,
        derandomize=seed is None,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases(entry))
    def right(case: Case) -> None:
        found = outcome(entry, case)
        record(figures if figures is not None else Counter(), entry, case, found)

    # A trainer collects garbage in each run, which takes a second where all the libraries' objects are looked at.
    gc.freeze()
    try:
        (right if seed is None else hypothesis.seed(seed)(right))()
    finally:
        gc.unfreeze()

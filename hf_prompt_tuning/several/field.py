"""Plan a field: prompts that train together, and the steps at which the worse half is dropped.

A run of 60 update steps with 10 prompts and a budget of 4 ordinary runs:

    steps      1 to 10    11 to 20    21 to 30    31 to 60
    prompts    10         5           3           2

It computes 10·10 + 5·10 + 3·10 + 2·30 = 240 steps of one prompt, 4 times those of an ordinary run. Where few training
rows are compared by and learned from later (`rows_apart`), the last round leaves one prompt, which costs 3.5.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from ..data.chat_tokenization import RowTemplate
from ..errors import PromptTuningError
from ..prompts.config import PromptTuningConfig, PromptTuningInit
from .task import PromptTask

DEFAULT_RATE, EXAMPLES_RATE, WIDTH = 0.03, 0.01, 10
"""The rate that is known to work, that of a start from training rows, and how far a field goes below and above."""
NUMBERS_OF_RATES = (5, 3)
"""How many learning rates a field may have. Odd numbers: the one that is known to work is in the middle."""
TWO, ONE = 2, 1
"""How many prompts the last round leaves: two that are compared at the end, or one."""
LONGEST_ROUNDS = 0.5
"""The largest share of a run's steps in all rounds that leave one prompt: it then learns from more rows."""
SHORTEST_ROUND = 0.1
"""The least share of a run's steps in a round: earlier, losses say little about where a prompt ends."""


@dataclass(frozen=True)
class Round:
    """The end of a round: after update step `step`, the best `stay` prompts go on."""

    step: int
    stay: int


@dataclass(frozen=True)
class Field:
    """A field.

    Attributes:
        members: its prompts.
        distances: by a prompt's name, how many rates its own is from the one that is known to work for its start, and
            the number of the start.
        share: the share of the run's steps that each round has.
        left: how many prompts the last round leaves.
    """

    members: list[PromptTask]
    distances: dict[str, tuple[int, int]]
    share: float
    left: int

    def rounds(self, steps: int) -> list[Round]:
        """Return the rounds in a run of so many steps. Raise PromptTuningError if a round would have no step."""
        length = math.floor(self.share * steps + 1e-9)
        if length < 1:
            raise PromptTuningError(
                f"the run has {steps} update steps, and recipe auto compares prompts after a share of "
                f"{self.share:.2g} of them; give {math.ceil(1 / self.share)} steps or more (num_train_epochs)."
            )
        sizes = list(halvings(len(self.members), self.left))[1:]
        return [Round(length * number, size) for number, size in enumerate(sizes, start=1)]


def halvings(size: int, left: int) -> Iterator[int]:
    """Yield how many prompts train in each round: half as many, rounded up, until there would be two; then `left`."""
    yield size
    while size > TWO:
        size = max(math.ceil(size / 2), TWO)
        yield left if size == TWO else size


def share_of_round(size: int, budget: float, left: int) -> float:
    """Return the share of a run's steps that each round may have, so that the field costs no more than its budget.

    All rounds are equally long, and who is left trains no shorter than a round; one that is left, for half of the run.
    """
    sizes = list(halvings(size, left))
    longest = 1 / len(sizes) if left == TWO else LONGEST_ROUNDS / (len(sizes) - 1)
    return min((budget - left) / _beyond(sizes, left), longest)


def _beyond(sizes: Sequence[int], left: int) -> int:
    return sum(size - left for size in sizes)


def cost(size: int, rounds: Sequence[Round], steps: int) -> float:
    """Return the cost of a field, in ordinary runs: the sum over all steps of the prompts that train, by the steps."""
    total, begin = 0, 0
    for end in rounds:
        total += size * (end.step - begin)
        size, begin = end.stay, end.step
    return (total + size * (steps - begin)) / steps


def learning_rates(number: int, middle: float = DEFAULT_RATE) -> list[float]:
    """Return learning rates from a tenth of `middle` to ten times it, evenly on a logarithmic scale."""
    return [float(f"{middle / WIDTH * WIDTH ** (2 * i / (number - 1)):.4g}") for i in range(number)]


def starts(config: PromptTuningConfig, template: RowTemplate, seed: int) -> list[tuple[PromptTuningConfig, int]]:
    """Return the configs of a field's starts, each with a seed; first the one that is better known to work.

    They are the config's own start, and words drawn from the vocabulary. If its own are drawn words, the labels' words
    are the other start; without labels, other drawn words. Of training rows, others are the other start. A prompt that
    starts from a prompt has no other start.
    """
    own, drawn, labels = config.prompt_tuning_init, PromptTuningInit.SAMPLE_VOCAB, PromptTuningInit.CLASS_LABELS
    if own == PromptTuningInit.PROMPT:
        return [(config, seed)]
    if own == PromptTuningInit.EXAMPLES:
        return [(config, seed), (config, seed + 1)]
    if own != drawn:
        return [(config, seed), (replace(config, prompt_tuning_init=drawn), seed)]
    if template.is_classification:
        return [(replace(config, prompt_tuning_init=labels), seed), (config, seed)]
    return [(config, seed), (config, seed + 1)]


def plan_field(
    config: PromptTuningConfig,
    template: RowTemplate,
    lengths: Sequence[int] | None,
    seed: int,
    budget: float,
    left: int = TWO,
) -> Field:
    """Return the largest field that the budget, in ordinary runs, pays for. Its last round leaves `left` prompts.

    It has every combination of the lengths, the starts and the learning rates. Raise PromptTuningError if the budget
    is below 1, or too small for three learning rates; the message says what is needed.
    """
    if not budget >= 1:
        raise PromptTuningError(f"recipe_budget is {budget}, and one ordinary run costs 1; give 1 or more.")
    shapes = [
        (start if length is None else replace(start, num_virtual_tokens=length), seed_of_start, number_of_start)
        for length in lengths or [None]
        for number_of_start, (start, seed_of_start) in enumerate(starts(config, template, seed))
    ]
    for number in NUMBERS_OF_RATES:
        size = number * len(shapes)
        if (share := share_of_round(size, budget, left)) >= SHORTEST_ROUND - 1e-9:
            members, distances = [], {}
            from_rows = config.prompt_tuning_init == PromptTuningInit.EXAMPLES
            rates = learning_rates(number, EXAMPLES_RATE if from_rows else DEFAULT_RATE)
            for (prompt, own_seed, start), (i, rate) in product(shapes, enumerate(rates)):
                name = f"prompt_{len(members) + 1}"
                members.append(PromptTask(name, prompt, learning_rate=rate, seed=own_seed))
                distances[name] = abs(i - number // 2), start
            return Field(members, distances, share, left)
    needed = left + SHORTEST_ROUND * _beyond(list(halvings(size, left)), left)
    raise PromptTuningError(
        f"recipe_budget is {budget}, and the smallest field here, of {size} prompts, costs {needed:.2g} ordinary "
        "runs; give that, ask for fewer recipe_lengths, or train one prompt without recipe auto."
    )

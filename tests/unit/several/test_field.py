"""How a field is planned, which rows are held apart, and what it ends with: by their values."""

from collections import Counter

import numpy as np
import pytest

from hf_prompt_tuning import PromptTemplate, PromptTuningConfig, PromptTuningError
from hf_prompt_tuning.several.field import ONE, TWO, Round, cost, halvings, learning_rates, plan_field
from hf_prompt_tuning.several.field_choice import best_first, is_clearly_worse, order
from hf_prompt_tuning.several.field_end import chance_of, is_clear, wins_of
from hf_prompt_tuning.several.rows_apart import rows_apart

LABELS = PromptTemplate("{text}", label_column="label", label_words={"1": "a", "2": "b"})
FREE = PromptTemplate("{text}", target="{answer}")


class TestPlan:
    def test_it_is_halved_until_there_are_two(self):
        assert list(halvings(10, TWO)) == [10, 5, 3, 2]
        assert list(halvings(6, TWO)) == [6, 3, 2]
        assert list(halvings(3, TWO)) == [3, 2]

    def test_or_the_last_round_leaves_one(self):
        assert list(halvings(10, ONE)) == [10, 5, 3, 1]
        assert list(halvings(3, ONE)) == [3, 1]
        rounds = plan_field(PromptTuningConfig(), LABELS, None, 42, 4.0, ONE).rounds(60)
        assert rounds == [Round(10, 5), Round(20, 3), Round(30, 1)]
        assert cost(10, rounds, 60) == (10 * 10 + 5 * 10 + 3 * 10 + 30) / 60 == 3.5

    def test_the_default_rate_is_in_the_middle(self):
        assert learning_rates(5) == [0.003, 0.009487, 0.03, 0.09487, 0.3]
        assert learning_rates(3) == [0.003, 0.03, 0.3]

    def test_the_default_budget(self):
        field = plan_field(PromptTuningConfig(), LABELS, None, 42, 4.0)
        rounds = field.rounds(60)
        assert rounds == [Round(10, 5), Round(20, 3), Round(30, 2)]
        assert cost(10, rounds, 60) == (10 * 10 + 5 * 10 + 3 * 10 + 2 * 30) / 60 == 4.0
        starts = Counter(task.config.prompt_tuning_init.value for task in field.members)
        assert starts == {"CLASS_LABELS": 5, "SAMPLE_VOCAB": 5}
        assert {task.seed for task in field.members} == {42}
        nearest = [min(field.distances, key=field.distances.get), max(field.distances, key=field.distances.get)]
        by_name = {task.name: task for task in field.members}
        near, far = (by_name[name] for name in nearest)
        assert (near.learning_rate, near.config.prompt_tuning_init.value) == (0.03, "CLASS_LABELS")
        assert far.learning_rate in (0.003, 0.3) and far.config.prompt_tuning_init.value == "SAMPLE_VOCAB"

    @pytest.mark.parametrize(
        ("budget", "rates"), [(4.0, [0.001, 0.003162, 0.01, 0.03162, 0.1]), (2.5, [0.001, 0.01, 0.1])]
    )
    def test_starts_from_rows_are_two_draws_and_known_by_a_lower_rate(self, budget, rates):
        field = plan_field(PromptTuningConfig(prompt_tuning_init="EXAMPLES"), LABELS, None, 42, budget)
        starts = Counter((task.config.prompt_tuning_init.value, task.seed) for task in field.members)
        assert starts.keys() == {("EXAMPLES", 42), ("EXAMPLES", 43)} and len(set(starts.values())) == 1
        assert sorted({task.learning_rate for task in field.members}) == rates
        nearest = min(field.distances, key=field.distances.get)
        task = next(task for task in field.members if task.name == nearest)
        assert (field.distances[nearest], task.learning_rate, task.seed) == ((0, 0), 0.01, 42)

    @pytest.mark.parametrize("steps", [10, 33, 59, 100, 1234])
    @pytest.mark.parametrize("budget", [2.5, 2.7, 3.0, 3.7, 4.0, 6.0, 20.0])
    @pytest.mark.parametrize("left", [ONE, TWO])
    def test_no_field_costs_more_than_its_budget(self, steps, budget, left):
        field = plan_field(PromptTuningConfig(), LABELS, None, 0, budget, left)
        rounds = field.rounds(steps)
        assert cost(len(field.members), rounds, steps) <= budget
        assert rounds[-1].stay == left and rounds[-1].step < steps
        assert left == TWO or rounds[-1].step <= steps / 2

    def test_a_small_budget_has_fewer_rates(self):
        assert len(plan_field(PromptTuningConfig(), LABELS, None, 0, 2.5).members) == 6

    def test_budgets_that_are_too_small(self):
        with pytest.raises(PromptTuningError, match=r"recipe_budget is 0\.5, and one ordinary run costs 1"):
            plan_field(PromptTuningConfig(), LABELS, None, 0, 0.5)
        with pytest.raises(PromptTuningError, match=r"recipe_budget is 1.5, and .* of 6 prompts, costs 2.5 ordinary"):
            plan_field(PromptTuningConfig(), LABELS, None, 0, 1.5)
        with pytest.raises(PromptTuningError, match=r"of 12 prompts, costs 3\.5"):
            plan_field(PromptTuningConfig(), LABELS, [5, 20], 0, 3)

    def test_what_is_needed_is_enough(self):
        assert len(plan_field(PromptTuningConfig(), LABELS, [5, 20], 0, 3.5).members) == 12

    def test_runs_that_are_too_short(self):
        with pytest.raises(PromptTuningError, match=r"the run has 5 update steps, .* give 6 steps or more"):
            plan_field(PromptTuningConfig(), LABELS, None, 0, 4.0).rounds(5)
        assert plan_field(PromptTuningConfig(), LABELS, None, 0, 4.0).rounds(6)[0].step == 1

    def test_starts_and_lengths(self):
        words = PromptTuningConfig(prompt_tuning_init_text="Is it one?")
        field = plan_field(words, LABELS, [5, 20], 0, 6.0)
        kinds = Counter((t.config.prompt_tuning_init.value, t.config.num_virtual_tokens) for t in field.members)
        assert kinds == {(start, length): 5 for start in ("TEXT", "SAMPLE_VOCAB") for length in (5, 20)}
        drawn = plan_field(PromptTuningConfig(), FREE, None, 7, 4.0).members
        assert Counter(task.seed for task in drawn) == {7: 5, 8: 5}
        assert {task.config.prompt_tuning_init.value for task in drawn} == {"SAMPLE_VOCAB"}
        from_prompt = plan_field(PromptTuningConfig(init_prompt="p"), FREE, None, 7, 4.0).members
        assert len(from_prompt) == 5 and {t.config.init_prompt for t in from_prompt} == {"p"}


class TestRowsApart:
    def test_each_label_has_its_share(self):
        labels = [0] * 33 + [1] * 17
        held = rows_apart(labels, 4, seed=1)
        assert Counter(labels[row] for row in held) == {0: 7, 1: 4}
        assert held == sorted(set(held)) == rows_apart(labels, 4, seed=1) != rows_apart(labels, 4, seed=2)

    def test_few_rows_are_halved_and_single_ones_kept(self):
        labels = [0] * 5 + [1] * 2 + [2]
        assert Counter(labels[row] for row in rows_apart(labels, 4, seed=0)) == {0: 2, 1: 1}

    def test_many_rows(self):
        held = rows_apart(np.arange(40_000).tolist() and [i % 2 for i in range(40_000)], 4, seed=0)
        assert len(held) == 1000

    def test_texts(self):
        assert len(rows_apart([0] * 20, 8, seed=0)) == 8
        assert len(rows_apart([0] * 100, 8, seed=0)) == 20


class TestChoice:
    def test_a_loss_that_is_not_finite_comes_last(self):
        assert order({"a": float("nan"), "b": 2.0, "c": 1.0, "d": float("inf")}) == ["c", "b", "a", "d"]

    def test_clearly_worse(self):
        """The standard error of four differences is 0.5, or 0.4 where they spread less."""
        best, spread = np.zeros(4), np.array([-1.0, 1.0, -1.0, 1.0]) * (3 / 4) ** 0.5
        assert not is_clearly_worse(0.99 + spread, best) and is_clearly_worse(1 + 0.8 * spread, best)
        assert not is_clearly_worse(-1 + 0.1 * spread, best)

    def test_what_one_row_and_bad_numbers_tell(self):
        assert not is_clearly_worse(np.array([9.0]), np.array([1.0]))
        assert is_clearly_worse(np.array([float("nan"), 0.0]), np.zeros(2))

    def test_the_nearest_to_the_default_of_those_that_are_alike(self):
        noise = np.array([-1.0, 1.0, -1.0, 1.0])
        of_rows = {"far": 1 + noise, "near": 1.2 - noise, "worse": 5 + noise, "worst": 9 + noise}
        losses = {name: float(rows.mean()) for name, rows in of_rows.items()}
        distances = {"far": (2, 0), "near": (0, 1), "worst": (0, 0), "worse": (1, 0)}
        assert best_first(losses, of_rows, distances) == ["near", "far", "worse", "worst"]

    def test_the_lower_loss_at_the_same_distance(self):
        noise = np.array([-1.0, 1.0])
        of_rows = {"high": 1.1 - noise, "low": 1 + noise}
        losses = {name: float(rows.mean()) for name, rows in of_rows.items()}
        assert best_first(losses, of_rows, {"high": (1, 0), "low": (1, 0)}) == ["low", "high"]


class TestEnd:
    def test_chance(self):
        assert chance_of(5, 0) == 1 / 32
        assert chance_of(0, 0) == 1.0
        assert chance_of(8, 1) == (9 + 1) / 2**9

    def test_clear_wins(self):
        assert is_clear((5, 0)) and not is_clear((4, 0)) and not is_clear((5, 2)) and is_clear((8, 1))

    def test_wins(self):
        vote, prompt, labels = np.array([0, 0, 1, 1, 0]), np.array([0, 1, 0, 0, 1]), np.array([0, 0, 1, 0, -1])
        assert wins_of(vote, prompt, labels) == (2, 1)

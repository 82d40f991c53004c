"""The rows of the quality benchmark: stratified, apart from those that are reported, or refused."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from quality_tasks import choosing_split, read_tasks, reported_splits, stratified

from hf_prompt_tuning import PromptTuningError
from tests.shared.repository import ROOT


def numbers(rows):
    return set(rows["number"])


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        ("a" * 70 + "b" * 30, 10, {"a": 7, "b": 3}),
        ("a" * 98 + "bc", 10, {"a": 8, "b": 1, "c": 1}),
        ("aaabbbccc", 4, {"a": 2, "b": 1, "c": 1}),
        ("aab", 3, {"a": 2, "b": 1}),
    ],
)
def test_a_sample_has_each_label_in_its_share_and_at_least_once(labels, count, expected):
    chosen = stratified(list(labels), count, random.Random(0))
    assert len(set(chosen)) == count
    assert Counter(labels[i] for i in chosen) == expected


@pytest.mark.parametrize("count", [1, 4])
def test_fewer_rows_than_labels_and_more_than_there_are_are_refused(count):
    with pytest.raises(PromptTuningError, match=f"{count} rows are asked for, of 3 rows with 2 labels"):
        stratified(["a", "a", "b"], count, random.Random(0))


def test_folds_are_drawn_by_the_seed_and_report_each_row_once(reviews):
    task = read_tasks(reviews, None)["few"]
    splits = list(reported_splits(task, "all", 0, 600))
    assert [split.fold for split in splits] == [0, 1, 2, 3]
    assert sorted(i for split in splits for i in numbers(split.held_out)) == list(range(20))
    for split in splits:
        assert numbers(split.train) == set(range(20)) - numbers(split.held_out)
        assert Counter(split.held_out["mood"])["bad"] in (1, 2)  # 7 of 20
    again, other = (list(reported_splits(task, "all", seed, 600)) for seed in (0, 1))
    assert [split.train["number"] for split in again] == [split.train["number"] for split in splits]
    assert [numbers(split.held_out) for split in other] != [numbers(split.held_out) for split in splits]


def test_the_seed_draws_the_rows_to_learn_from_and_all_seeds_report_the_same(reviews):
    task = read_tasks(reviews, None)["many"]
    first, second = (next(reported_splits(task, 12, seed, 6)) for seed in (0, 1))
    assert Counter(first.train["mood"]) == Counter(second.train["mood"]) == {"good": 8, "bad": 4}
    assert numbers(first.train) != numbers(second.train)
    assert first.held_out["number"] == second.held_out["number"] and len(first.held_out) == 6
    assert len(next(reported_splits(task, "all", 0, 600)).held_out) == 12


def test_more_rows_than_there_are_are_refused(reviews):
    task = replace(read_tasks(reviews, None)["many"], sizes={91: 1})
    with pytest.raises(PromptTuningError, match="has 90 rows to learn from, and the size is 91"):
        next(reported_splits(task, 91, 0, 600))


def test_a_choice_is_made_on_other_rows_of_the_training_file(reviews):
    tasks = read_tasks(reviews, None)
    choices = [choosing_split(next(reported_splits(tasks["many"], 12, seed, 6)), tasks) for seed in (0, 1)]
    assert [(len(choice.train), len(choice.held_out)) for choice in choices] == [(12, 78), (12, 78)]
    assert numbers(choices[0].train).isdisjoint(numbers(choices[0].held_out))
    assert choices[0].held_out["number"] == choices[1].held_out["number"]


def test_where_all_rows_are_learned_from_a_third_is_held_out_for_the_choice(reviews):
    tasks = read_tasks(reviews, None)
    choice = choosing_split(next(reported_splits(tasks["many"], "all", 1, 6)), tasks)
    assert (len(choice.train), len(choice.held_out), choice.seed) == (60, 30, 0)
    assert numbers(choice.train) | numbers(choice.held_out) == set(range(90))


def test_a_choice_for_a_fold_sees_none_of_its_reported_rows(reviews):
    tasks = read_tasks(reviews, None)
    for split in reported_splits(tasks["few"], "all", 3, 600):
        choice = choosing_split(split, tasks)
        assert (choice.seed, choice.fold, len(choice.held_out)) == (3, split.fold, 5)
        assert numbers(choice.train) | numbers(choice.held_out) == numbers(split.train)


def test_a_task_may_be_chosen_on_another_ones_training_rows(reviews):
    tasks = read_tasks(reviews, None)
    few = replace(tasks["few"], choose_on="many")
    choice = choosing_split(next(reported_splits(few, "all", 0, 600)), tasks)
    assert (choice.task.name, len(choice.train), len(choice.held_out)) == ("many", 15, 75)
    for other in ("none", "few"):
        with pytest.raises(PromptTuningError, match=f"choose_on: '{other}'"):
            choosing_split(next(reported_splits(replace(few, choose_on=other), "all", 0, 600)), tasks)


def test_the_benchmarks_own_tasks_are_read(tmp_path):
    tasks = read_tasks(ROOT / "benchmarks" / "quality_tasks.yaml", None)
    sizes = {name: list(task.sizes) for name, task in tasks.items()}
    assert sizes == {
        "tweets": ["all"],
        "sst2": [50, 1000, "all"],
        "trec": [60, 600, "all"],
        "mrpc": [400, "all"],
        "demo": [24, "all"],
    }
    demo = next(reported_splits(tasks["demo"], 24, 0, 600))
    assert (len(demo.train), len(demo.held_out)) == (24, 120)
    assert demo.task.prompt_template().labels == ["complaint", "no complaint"]
    with pytest.raises(PromptTuningError, match=r"no file .*sst2_train.tsv; give its folder with --data"):
        next(reported_splits(tasks["sst2"], 50, 0, 600))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("few: 3", "give the task's name, and a mapping"),
        ("few: {rows: 3}", "has 'rows'; a task has train_file, template"),
        ("few: {template: x}", "has no 'train_file'; give it"),
        ("few: {train_file: a, template: x, label_column: b, sizes: {}}", "both or none of test_file and folds"),
        ("few: {train_file: a, template: x, label_column: b, folds: 2, sizes: {most: 3}}", "the size 'most' with 3"),
        ("few: {train_file: a, template: x, label_column: b, folds: 2, sizes: {all: 0}}", "the size 'all' with 0"),
    ],
)
def test_a_wrong_description_is_refused_by_name(tmp_path, description, message):
    file = tmp_path / "tasks.yaml"
    file.write_text(description)
    with pytest.raises(PromptTuningError, match=message):
        read_tasks(file, None)

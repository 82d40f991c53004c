"""The quality benchmark resumes, chooses rates on rows apart, and its tables are means of whole seeds."""

import pytest
import quality
import quality_results
from quality import Benchmark
from quality_results import (
    Results,
    behind_full,
    look,
    mean_curve,
    of_method,
    plot,
    seconds_to,
    table,
    tables,
    write_tables,
)
from quality_tasks import read_tasks

from hf_prompt_tuning import PromptTuningError
from tests.shared.tiny_models import tiny_model

SHARING = ("ours", "ours_averaged")
"""The methods of one training."""


@pytest.fixture
def made(monkeypatch):
    """What `measure` was asked for, in turn, in place of any training: its split and rate."""
    calls = []

    def measure(name, backbone, tokenizer, split, rate, epochs, **curve):
        calls.append((split, rate))
        f1 = {1e-5: 0.5, 3e-5: 0.7, 1e-4: 0.7, 3e-4: 0.6}.get(rate, 0.4)
        found = entry_of(f1=f1, loss={3e-5: 2.0, 1e-4: 1.0}.get(rate, 3.0))
        return dict.fromkeys(SHARING if name in SHARING else [name], found)

    monkeypatch.setattr(quality, "measure", measure)
    return calls


def entry_of(**values):
    defaults = {"accuracy": 0.5, "f1": 0.5, "loss": 1.0, "rows_seen": 24, "trained": 640, "seconds": 3.0}
    return defaults | {"wall_seconds": 4.0, "curve": [], "machine": "a"} | values


def run_of(method, seed, fold=None, folds=1, task="few", size="all", **values):
    key = {"kind": "run", "backbone": "tiny", "task": task, "size": size, "method": method, "training_rows": 15}
    return key | {"seed": seed, "fold": fold, "folds": folds} | entry_of(**values)


@pytest.fixture
def benchmark(reviews, tokenizer, tmp_path):
    results = Results(tmp_path / "results" / "quality.json")
    return Benchmark(tiny_model("llama"), tokenizer, "tiny", read_tasks(reviews, None), results, reported=6)


def test_what_is_there_is_not_run_again(benchmark, made):
    few = benchmark.tasks["few"]
    benchmark.run(few, "all", "ours", 0)
    assert [(split.seed, split.fold) for split, _ in made] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    entries = benchmark.results.entries("run")
    assert [
        (e["task"], e["size"], e["method"], e["fold"], e["training_rows"]) for e in entries if e["method"] == "ours"
    ] == [("few", "all", "ours", fold, 15) for fold in range(4)]
    benchmark.run(few, "all", "ours", 0)
    assert len(made) == 4 and benchmark.results.entries("run") == entries
    benchmark.run(few, "all", "ours", 1)
    assert len(made) == 8


def test_a_training_that_methods_share_is_made_once(benchmark, made):
    many = benchmark.tasks["many"]
    benchmark.run(many, 12, "ours", 0)
    benchmark.run(many, 12, "ours_averaged", 0)
    assert len(made) == 1
    assert [entry["method"] for entry in benchmark.results.entries("run")] == ["ours", "ours_averaged"]


def test_a_rate_is_chosen_once_on_rows_that_are_not_reported(benchmark, made):
    many = benchmark.tasks["many"]
    for seed in (0, 1):
        benchmark.run(many, 12, "full", seed)
    choices, runs = (benchmark.results.entries(kind) for kind in ("choice", "run"))
    assert [entry["rate"] for entry in choices] == [1e-5, 3e-5, 1e-4, 3e-4]
    assert {entry["rows_apart"] for entry in choices} == {78}
    assert [entry["rate"] for entry in runs] == [1e-4, 1e-4]  # the best macro F1, and the lower loss
    assert [rate for _, rate in made] == [1e-5, 3e-5, 1e-4, 3e-4, 1e-4, 1e-4]
    assert all(split.held_out["text"] != made[-1][0].held_out["text"] for split, _ in made[:4])


def test_a_best_rate_at_an_end_of_the_grid_is_told(benchmark, made, monkeypatch, capsys):
    benchmark.run(benchmark.tasks["many"], 12, "full", 0)
    assert "is at an end" not in capsys.readouterr().out
    monkeypatch.setattr(quality, "measure", lambda name, *given, **curve: {name: entry_of(f1=given[3])})
    benchmark.run(benchmark.tasks["many"], 12, "lora", 0)
    assert "many, 12: the best rate of lora, 0.003, is at an end of its grid\n" in capsys.readouterr().out


def test_folds_choose_each_for_itself(benchmark, made):
    benchmark.run(benchmark.tasks["few"], "all", "full", 2)
    assert [(e["seed"], e["fold"]) for e in benchmark.results.entries("choice")] == [
        (2, fold) for fold in range(4) for _ in range(4)
    ]
    reported = [set(split.held_out["text"]) for split, _ in made[4::5]]
    for i, (split, _) in enumerate(made):
        if i % 5 < 4:  # a choice: its rows are of the fold's training rows
            assert not reported[i // 5] & {*split.train["text"], *split.held_out["text"]}


def test_the_long_recipe_is_left_out_where_rows_are_many(benchmark, made, capsys):
    benchmark.tasks["many"].sizes["all"] = 1
    long = quality.METHODS["peft_article_50_epochs"]
    assert (long.epochs, long.most_rows) == (50, 100)
    benchmark.run(benchmark.tasks["many"], "all", "peft_article_50_epochs", 0)
    assert [entry["epochs"] for entry in benchmark.results.entries("run")] == [50]
    object.__setattr__(long, "most_rows", 89)
    try:
        benchmark.run(benchmark.tasks["many"], "all", "peft_article_50_epochs", 1)
    finally:
        object.__setattr__(long, "most_rows", 100)
    assert len(made) == 1
    assert capsys.readouterr().out.endswith("many, all: peft_article_50_epochs is for at most 89 rows\n")


def test_two_processes_add_to_one_file(tmp_path):
    one, other = (Results(tmp_path / "quality.json") for _ in range(2))
    one.add(run_of("ours", 0))
    other.add(run_of("ours", 1))
    one.add({"kind": "choice", "method": "full"})
    assert [entry["seed"] for entry in one.entries("run")] == [0, 1]
    assert one.find({"kind": "choice", "method": "full"}) == {"kind": "choice", "method": "full"}
    assert one.find({"kind": "run", "seed": 2}) is None
    assert [file.name for file in tmp_path.iterdir()] == ["quality.json"]


def test_the_table_has_means_and_spreads_of_whole_seeds():
    runs = [
        run_of("ours", seed, fold, 2, f1=f1) for seed, fold, f1 in [(0, 0, 0.5), (0, 1, 0.7), (1, 0, 0.8), (1, 1, 0.8)]
    ]
    runs += [run_of("ours", 2, 0, 2, f1=0.1)]  # a fold is missing
    runs += [run_of("untuned", 0, fold, 2, f1=0.3, trained=0, seconds=0) for fold in (0, 1)]
    assert table(runs).splitlines()[2:] == [
        "| few | all, 15 | `untuned` | 1 | 0.500 | 0.300 | – | – | 0 |",
        "| few | all, 15 | `ours` | 2 | 0.500 ± 0.000 | 0.700 ± 0.141 | 3 | – | 640 |",
    ]


def test_two_runs_of_one_seed_and_fold_are_refused():
    with pytest.raises(PromptTuningError, match="two runs of ours, few, all with the seed 3"):
        of_method([run_of("ours", 3), run_of("ours", 3)], ("few", "all"), "ours")


def test_time_to_the_accuracy_with_which_pefts_recipe_ends():
    slow = [[10, 10.0, 0.5, 0], [20, 20.0, 0.6, 0]], [[10, 12.0, 0.5, 0], [20, 24.0, 0.8, 0]]
    runs = [run_of("peft_article_50_epochs", seed, curve=curve) for seed, curve in enumerate(slow)]
    runs += [run_of("peft_article", 0, curve=[[5, 1.0, 0.2, 0], [10, 2.0, 0.3, 0]])]
    runs += [run_of("ours", 0, curve=[[5, 1.1, 0.6, 0], [10, 2.2, 0.7, 0]])]
    assert mean_curve(of_method(runs, ("few", "all"), "peft_article_50_epochs")) == [
        (11.0, 0.5),
        (22.0, pytest.approx(0.7)),
    ]
    assert (seconds_to([(1, 0.5), (2, 0.7), (3, 0.6)], 0.6), seconds_to([(1, 0.5)], 0.6)) == (2, None)
    times = {line.split("|")[3].strip(" `"): line.split("|")[8].strip() for line in table(runs).splitlines()[2:]}
    assert times == {
        "ours": "2 s (0.10)",
        "peft_article": "not reached",
        "peft_article_50_epochs": "22 s (1.00)",
    }
    without = [entry | {"curve": []} if entry["method"] == "peft_article_50_epochs" else entry for entry in runs]
    assert {line.split("|")[8].strip() for line in table(without).splitlines()[2:]} == {"–"}
    assert mean_curve([[runs[0], without[-1] | {"curve": []}]]) == []


def test_seconds_of_several_machines_are_not_compared():
    runs = [run_of("peft_article", 0, curve=[[5, 1.0, 0.3, 0]]), run_of("ours", 0, curve=[[5, 1.0, 0.4, 0]])]
    other = run_of("ours", 1, curve=[[5, 9.0, 0.4, 0]], machine="b")
    cells = [line.split("|")[7:9] for line in table([*runs, other]).splitlines()[2:]]
    assert cells == [[" – ", " – "], [" 3 ", " 1 s (1.00) "]]
    assert table(runs).splitlines()[2].split("|")[7:9] == [" 3 ", " 1 s (1.00) "]


def test_methods_are_compared_with_full_fine_tuning_on_the_same_seeds_three_at_least():
    runs = [run_of("full", seed, task=task, f1=f1) for task, f1 in (("few", 0.8), ("many", 0.6)) for seed in range(3)]
    runs += [run_of("ours", seed, f1=f1) for seed, f1 in ((0, 0.7), (1, 0.72), (2, 0.74), (3, 0.1))]
    runs += [run_of("ours", seed, task="many", f1=0.64) for seed in range(3)]
    runs += [run_of("ours", 0, task="other", f1=0.1), *(run_of("lora", seed, f1=0.1) for seed in range(2))]
    assert behind_full(runs).splitlines()[2:] == ["| `ours` | 2 | -2.0 |", "| `full` | 2 | +0.0 |"]
    assert behind_full(runs[:2]) == "" and tables(runs[:2]) == table(runs[:2])


def test_no_two_methods_look_alike():
    assert len({tuple(look(number).values()) for number in range(len(quality.METHODS))}) == len(quality.METHODS)


def test_the_plot_is_drawn_from_the_entries_alone(tmp_path):
    runs = [
        run_of(method, seed, task=task) for method in ("ours", "full") for seed in (0, 1) for task in ("few", "many")
    ]
    plot(runs, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_an_encoder_decoder_is_refused(reviews, tokenizer, tmp_path):
    with pytest.raises(PromptTuningError, match="tiny is an encoder-decoder"):
        Benchmark(tiny_model("t5"), tokenizer, "tiny", {}, Results(tmp_path / "quality.json"))


def test_the_tables_are_written_into_their_place_of_a_page(tmp_path):
    page, runs = tmp_path / "page.md", [run_of("ours", 0)]
    page.write_text(f"Before.\n{quality_results.START}\nold\n{quality_results.END}\nAfter.\n")
    for _ in range(2):
        write_tables(runs, page)
        parts = [quality_results.START, "", tables(runs), "", quality_results.END]
        assert page.read_text() == "Before.\n" + "\n".join(parts) + "\nAfter.\n"
    page.write_text("Before.\n")
    with pytest.raises(PromptTuningError, match="has no <!-- the tables"):
        write_tables(runs, page)


def test_the_documentation_has_the_tables_of_the_results():
    runs = Results(quality.RESULTS).entries("run")
    own = [entry for entry in runs if entry["backbone"] == "SmolLM2-135M-Instruct"]
    assert own and f"\n{tables(own)}\n" in quality.PAGE.read_text(encoding="utf-8")


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Results, page and plot of the command, and a backbone's folder, in place of the repository's."""
    for name in ("RESULTS", "QUICK", "PAGE", "PLOT"):
        monkeypatch.setattr(quality, name, tmp_path / f"{name}{getattr(quality, name).suffix}")
    quality.PAGE.write_text(f"{quality_results.START}{quality_results.END}")
    return tmp_path


def test_the_command_makes_the_runs_of_a_described_task_and_the_tables(files, reviews, tokenizer, capsys):
    tiny_model("llama").save_pretrained(files / "backbone")
    tokenizer.save_pretrained(files / "backbone")
    model = ["--model_name_or_path", str(files / "backbone"), "--gguf_file", "", "--name", "tiny"]
    asked = ["--task", str(reviews), "--tasks", "many", "--sizes", "12", "--seeds", "0", "1"]
    with pytest.raises(PromptTuningError, match="there are no runs of tiny"):
        quality.main(["--table", *model])
    with pytest.raises(PromptTuningError, match=r"--tasks has 'none'; the tasks are tweets, .* few, many"):
        quality.main(["--task", str(reviews), "--tasks", "none", *model])
    quality.main([*asked, "--methods", "untuned", "ours", *model])
    runs = Results(quality.RESULTS).entries("run")
    assert [(e["method"], e["seed"], e["rows_seen"]) for e in runs] == [
        ("untuned", 0, 0),
        ("ours", 0, 24),
        ("ours_averaged", 0, 24),
        ("untuned", 1, 0),
        ("ours", 1, 24),
        ("ours_averaged", 1, 24),
    ]
    assert [len(e["curve"]) for e in runs] == [0, 4, 4, 0, 4, 4]  # 4 steps
    assert tables(runs) in capsys.readouterr().out and tables(runs) in quality.PAGE.read_text()
    assert quality.PLOT.read_bytes().startswith(b"\x89PNG")
    quality.main([*asked[:-2], "2", "--methods", "ours", "--points", "0", *model])
    runs = Results(quality.RESULTS).entries("run")
    assert [(e["seed"], e["curve"]) for e in runs[-2:]] == [(2, []), (2, [])]
    quality.main(["--quick", "--methods", "untuned", *model])
    assert capsys.readouterr().out.endswith(f"{quality.NO_RESULT}\n")
    assert [(e["task"], e["size"], e["reported_rows"]) for e in Results(quality.QUICK).entries("run")] == [
        ("demo", "24", 120)
    ]
    assert Results(quality.RESULTS).entries("run") == runs

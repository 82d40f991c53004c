"""The methods of the quality benchmark see the same rows, and are ranked alike: beside a slow reference."""

import copy
from dataclasses import replace

import peft
import pytest
import quality_methods
import torch
from quality_methods import METHODS, measure, of_article
from quality_ranking import Ranker
from quality_tasks import read_tasks, reported_splits

from hf_prompt_tuning import FieldTrainer, PromptTuningArguments, PromptTuningConfig, PromptTuningTrainer
from hf_prompt_tuning.several import rows_apart
from tests.shared.tiny_models import tiny_model

LONG = {"few_shot": 15, "recipe_peft": 50, "peft_article_50_epochs": 50}
"""How often methods see the rows that do not see them as often as the others."""
FIVE = ("five_orders", "five_orders_averaged")
DRAWS = "three_draws"
AUTO = {"auto": 20, "auto_examples": 160}
"""How many vectors a prompt of the recipe auto has."""


@pytest.fixture
def split(reviews):
    """12 rows to learn from, and 12 that are reported."""
    return next(reported_splits(read_tasks(reviews, None)["many"], 12, 5, 600))


@pytest.fixture
def adapted(monkeypatch):
    """The `Run` of each `measure`, in turn."""
    runs, kind = [], quality_methods.Run
    monkeypatch.setattr(quality_methods, "Run", lambda **values: runs.append(kind(**values)) or runs[-1])
    return runs


def rate_of(name):
    return METHODS[name].rates[0] if METHODS[name].rates else None


@torch.no_grad()
def slow_scores(backbone, rows, label_token_ids, before=()):
    """The log-likelihood of each label's words behind each row, one sequence after another, without any prompt."""
    scores = torch.zeros(len(rows), len(label_token_ids))
    for i, row in enumerate(rows):
        source = [*before, *(t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100)]
        for j, words in enumerate(label_token_ids):
            ids = torch.tensor([[*source, *words]])
            logs = backbone(input_ids=ids).logits[0].log_softmax(-1)
            scores[i, j] = logs[len(source) - 1 : -1].gather(1, torch.tensor(words)[:, None]).sum()
    return scores


def test_all_methods_see_the_same_number_of_rows_and_leave_the_given_backbone_alone(split, tokenizer):
    backbone = tiny_model("llama", max_position_embeddings=512)
    before = copy.deepcopy(backbone.state_dict())
    found = {
        name: measure(name, backbone, tokenizer, split, rate_of(name), epochs=2, points=3, watched=5)[name]
        for name in METHODS
        if name not in AUTO  # too few steps for their rounds
    }
    seen = {name: entry["rows_seen"] for name, entry in found.items()}
    learning = {name for name in METHODS if name not in ("untuned", "in_context", *LONG, *AUTO, *FIVE, DRAWS)}
    assert {seen[name] for name in learning} == {24} and {seen[name] for name in FIVE} == {5 * 24}
    assert (seen[DRAWS], seen["untuned"], seen["in_context"]) == (3 * 24, 0, 0)
    assert all(seen[name] == 12 * epochs for name, epochs in LONG.items())
    trained = {name: entry["trained"] for name, entry in found.items()}
    H, every = 32, sum(parameter.numel() for parameter in backbone.parameters())
    assert (trained["ours"], trained["peft_defaults"], trained["peft_article"]) == (20 * H, 20 * H, 8 * H)
    assert (trained["untuned"], trained["in_context"], trained["full"]) == (0, 0, every)
    for name in learning:
        assert [steps for steps, *_ in found[name]["curve"]] == [2, 3, 4]
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(("name", "rate"), [("ours", None), ("lora", 1e-2), ("full", 1e-3)])
def test_evaluations_on_the_way_change_nothing(split, tokenizer, name, rate):
    backbone = tiny_model("llama", attention_dropout=0.3)
    given = (backbone, tokenizer, split, rate, 2)
    watched, alone = (measure(name, *given, points=points, watched=5)[name] for points in (4, 0))
    assert [len(found["curve"]) for found in (watched, alone)] == [4, 0]
    assert watched["loss"] == alone["loss"]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_ranking_without_vectors_is_that_of_the_plain_backbone(split, tokenizers, kind):
    backbone, tokenizer = tiny_model("llama").train(), tokenizers[kind]
    ranker = Ranker(backbone, tokenizer, split.task.prompt_template(), "auto")
    rows = ranker.encoder.encode_dataset(split.held_out, "test")
    scores = ranker.scores(rows, None)
    assert backbone.training
    torch.testing.assert_close(scores, slow_scores(backbone, rows, ranker.encoder.label_token_ids))
    metrics, right = ranker.metrics(rows, None), torch.tensor(rows["label"])
    assert metrics["accuracy"] == pytest.approx(float((scores.argmax(1) == right).float().mean()))
    assert metrics["loss"] == pytest.approx(float(-scores.gather(1, right[:, None]).mean()), rel=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_examples_in_context_are_read_before_the_row(split, tokenizers, adapted, kind):
    backbone, tokenizer = tiny_model("llama", max_position_embeddings=512), tokenizers[kind]
    measure("in_context", backbone, tokenizer, split, None, epochs=2)
    run = adapted[0]
    rows = run.ranker.encoder.encode_dataset(split.held_out, "test").select(range(3))
    scores = run.ranker.scores(rows, run.prompts()[0])
    weight = backbone.get_input_embeddings().weight
    shown = torch.cdist(run.prompts()[0], weight).argmin(1).tolist()
    text = tokenizer.decode(shown)
    assert text.count("Label : good") + text.count("Label : bad") == 8 and text.count("Label : bad") == 3
    assert not {tokenizer.eos_token_id, tokenizer.bos_token_id} & set(shown)
    ids = run.ranker.encoder.label_token_ids
    if kind == "gpt2":
        expected = slow_scores(backbone, rows, ids, shown)
    else:  # BOS stands once, before the examples
        own = [{name: row[name][1:] for name in ("input_ids", "labels")} for row in rows]
        expected = slow_scores(backbone, own, ids, [tokenizer.bos_token_id, *shown])
    torch.testing.assert_close(scores, expected)


def test_ours_is_the_trainer_with_its_defaults(split, tokenizer, tmp_path):
    found = measure("ours", tiny_model("llama"), tokenizer, split, None, epochs=2)["ours"]
    config = PromptTuningConfig(prompt_tuning_init_text=split.task.text, prompt_position="auto")
    trainer = PromptTuningTrainer(
        tiny_model("llama"),
        PromptTuningArguments(str(tmp_path), num_train_epochs=2, seed=5, save_strategy="no", use_cpu=True),
        train_dataset=split.train,
        eval_dataset=split.held_out,
        processing_class=tokenizer,
        template=split.task.prompt_template(),
        prompt_config=config,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert (found["accuracy"], found["f1"]) == (round(metrics["eval_accuracy"], 4), round(metrics["eval_f1"], 4))
    scores = torch.tensor(trainer.predict(split.held_out).predictions)
    right = torch.tensor(trainer.eval_dataset["label"])
    assert found["loss"] == pytest.approx(float(-scores.gather(1, right[:, None]).mean()), abs=1e-4)


def test_one_training_ends_with_its_last_step_and_with_the_mean_that_average_last_makes(split, tokenizer, tmp_path):
    asked = (tiny_model("llama"), tokenizer, split, None)
    both = measure("ours_averaged", *asked, epochs=3)
    assert both.keys() == {"ours", "ours_averaged"}
    assert both["ours"]["loss"] == measure("ours", *asked, epochs=3)["ours"]["loss"] != both["ours_averaged"]["loss"]
    args = PromptTuningArguments(
        str(tmp_path), num_train_epochs=3, seed=5, save_strategy="no", use_cpu=True, average_last=0.5
    )
    trainer = PromptTuningTrainer(
        tiny_model("llama"),
        args,
        train_dataset=split.train,
        processing_class=tokenizer,
        template=split.task.prompt_template(),
        prompt_config=PromptTuningConfig(prompt_tuning_init_text=split.task.text, prompt_position="auto"),
    )
    trainer.train()
    ranker = Ranker(tiny_model("llama"), tokenizer, split.task.prompt_template(), "auto")
    rows = ranker.encoder.encode_dataset(split.held_out, "test")
    metrics = ranker.metrics(rows, trainer.model.prompt.detach())
    assert both["ours_averaged"]["loss"] == round(metrics["loss"], 4)


def test_five_orders_are_five_runs_from_one_start(split, tokenizer, adapted, tmp_path):
    found = measure("five_orders", tiny_model("llama"), tokenizer, split, None, epochs=3)
    assert found.keys() == set(FIVE) and {entry["trained"] for entry in found.values()} == {5 * 20 * 32}
    prompts = []
    for order in range(5):
        trainer = PromptTuningTrainer(
            tiny_model("llama"),
            PromptTuningArguments(
                *(str(tmp_path),), num_train_epochs=3, seed=5, data_seed=order, average_last=0.5, save_strategy="no",
                use_cpu=True,
            ),
            train_dataset=split.train,
            processing_class=tokenizer,
            template=split.task.prompt_template(),
            prompt_config=PromptTuningConfig(prompt_tuning_init_text=split.task.text, prompt_position="auto"),
        )  # fmt: skip
        trainer.train()
        prompts.append(trainer.model.prompt.detach())
    torch.testing.assert_close(torch.stack(adapted[0].prompts()), torch.stack(prompts), rtol=1e-5, atol=1e-5)
    assert (prompts[0] - prompts[1]).abs().max() > 1e-3
    ranker = Ranker(tiny_model("llama"), tokenizer, split.task.prompt_template(), "auto")
    rows = ranker.encoder.encode_dataset(split.held_out, "test")
    for name, voting in (("five_orders", prompts), ("five_orders_averaged", [torch.stack(prompts).mean(0)])):
        metrics = ranker.metrics(rows, *voting)
        assert found[name]["loss"] == pytest.approx(metrics["loss"], abs=2e-4)
        assert found[name]["accuracy"] == round(metrics["accuracy"], 4)


def test_three_draws_are_three_runs_of_the_recipe_examples(split, tokenizer, adapted, tmp_path):
    """Each starts from rows that its own seed draws, and all see the rows in the same order."""
    backbone = tiny_model("llama", max_position_embeddings=512)
    found = measure(DRAWS, backbone, tokenizer, split, None, epochs=3)
    assert found.keys() == {DRAWS} and found[DRAWS]["trained"] == 3 * 160 * 32
    text, prompts = split.task.text, []
    for seed in (5, 6, 7):
        trainer = PromptTuningTrainer(
            backbone,
            PromptTuningArguments(
                *(str(tmp_path),), recipe="examples", num_train_epochs=3, seed=seed, data_seed=5, save_strategy="no",
                use_cpu=True,
            ),
            train_dataset=split.train,
            processing_class=tokenizer,
            template=split.task.prompt_template(),
            prompt_config=PromptTuningConfig(
                prompt_tuning_init="EXAMPLES", prompt_tuning_init_text=text, prompt_position="auto"
            ),
        )  # fmt: skip
        trainer.train()
        prompts.append(trainer.model.prompt.detach())
    torch.testing.assert_close(torch.stack(adapted[0].prompts()), torch.stack(prompts), rtol=1e-5, atol=1e-5)
    assert (prompts[0] - prompts[1]).abs().max() > 1e-3
    metrics = adapted[0].ranker.metrics(adapted[0].ranker.encoder.encode_dataset(split.held_out, "test"), *prompts)
    assert found[DRAWS]["accuracy"] == round(metrics["accuracy"], 4)


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize(("few", "kind"), [(True, "one"), (False, "average"), (False, "vote")])
def test_the_recipe_auto_is_ranked_as_its_trainer_ranks(split, tokenizer, adapted, monkeypatch, few, kind, name):
    made = []

    class Field(FieldTrainer):
        def __init__(self, *given, **options):
            made.append(self)
            super().__init__(*given, **options)

        def _set_end(self, *given):
            super()._set_end(*given)
            self.end = replace(self.end, kind=kind)

    monkeypatch.setattr(quality_methods, "FieldTrainer", Field)
    monkeypatch.setattr(rows_apart, "FEW", 500 if few else 0)
    backbone = tiny_model("llama", max_position_embeddings=512)
    found = measure(name, backbone, tokenizer, split, None, epochs=20, points=4, watched=12)[name]
    trainer, kept = made[0], {"one": 1, "average": 1, "vote": 2}[kind]
    P = AUTO[name]
    metrics = trainer.evaluate(adapted[0].ranker.encoder.encode_dataset(split.held_out, "test"))
    assert (found["accuracy"], found["f1"]) == (round(metrics["eval_accuracy"], 4), round(metrics["eval_f1"], 4))
    assert [tuple(prompt.shape) for prompt in adapted[0].prompts()] == [(P, 32)] * kept
    assert found["trained"] == kept * P * 32
    assert [(point[0], point[2], point[3]) for point in found["curve"]] == [
        (trainer.state.global_step, found["accuracy"], found["f1"])
    ]
    assert found["rows_seen"] == round(trainer.cost * 20 * (12 if few else 6))


def test_a_lora_is_ranked_as_the_model_that_it_is_merged_into(split, tokenizer, adapted, monkeypatch):
    made, get = [], peft.get_peft_model
    monkeypatch.setattr(peft, "get_peft_model", lambda *given: made.append(get(*given)) or made[-1])
    measure("lora", tiny_model("llama"), tokenizer, split, 0.1, epochs=2)
    rows = adapted[0].ranker.encoder.encode_dataset(split.held_out, "test")
    scores, ids = adapted[0].ranker.scores(rows, None), adapted[0].ranker.encoder.label_token_ids
    merged = made[0].merge_and_unload().eval()
    torch.testing.assert_close(scores, slow_scores(merged, rows, ids), rtol=1e-4, atol=1e-3)
    untouched = slow_scores(tiny_model("llama"), rows, ids)
    assert (scores - untouched).abs().max() > 0.1


def test_full_fine_tuning_is_ranked_with_the_weights_that_it_ends_with(split, tokenizer, adapted):
    found = measure("full", tiny_model("llama"), tokenizer, split, 1e-2, epochs=2)["full"]
    rows = adapted[0].ranker.encoder.encode_dataset(split.held_out, "test")
    scores = slow_scores(adapted[0].backbone.eval(), rows, adapted[0].ranker.encoder.label_token_ids)
    right = torch.tensor(rows["label"])
    assert found["loss"] == pytest.approx(float(-scores.gather(1, right[:, None]).mean()), abs=1e-3)


def test_the_articles_prompt_starts_as_peft_starts_one_from_a_text(split, tokenizer, adapted, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    measure("peft_article", tiny_model("llama"), tokenizer, split, 0.0, epochs=1)
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=8,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=split.task.text,
        tokenizer_name_or_path=str(tmp_path / "tokenizer"),
    )
    expected = peft.get_peft_model(tiny_model("llama"), config).prompt_encoder["default"].embedding.weight
    assert torch.equal(adapted[0].prompts()[0], expected)
    assert METHODS["peft_article"].adapt is of_article and METHODS["peft_article"].rates == (3e-2,)


def test_a_short_text_is_repeated_as_peft_repeats_it(split, tokenizer, adapted, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    object.__setattr__(split.task, "text", "complaint or not")
    measure("peft_article", tiny_model("llama"), tokenizer, split, 0.0, epochs=1)
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=8,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="complaint or not",
        tokenizer_name_or_path=str(tmp_path / "tokenizer"),
    )
    expected = peft.get_peft_model(tiny_model("llama"), config).prompt_encoder["default"].embedding.weight
    assert torch.equal(adapted[0].prompts()[0], expected)

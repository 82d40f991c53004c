"""The data's own column names, which are those of encoded rows as well."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_prompt_tuning import (
    EnsembleTrainer,
    MultiPromptTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
)
from hf_prompt_tuning.data.encoding import encode_data
from hf_prompt_tuning.data.tokenization import PromptTokenizer
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import arguments

TEXTS = ["never came", "thank you", "third time", "great help"]
WORDS = {"true": "complaint", "false": "no complaint"}
NAMES = ["Label", "label", "labels", "input_ids", "length", "attention_mask", "row", "idx", "was_cut", "label_ids"]


def template(text="text", label="Label", words=WORDS):
    return PromptTemplate(source=f"Message : {{{text}}} Label :", label_column=label, label_words=words)


def data(text="text", label="Label", values=(True, False, False, True)):
    return Dataset.from_dict({text: TEXTS, label: list(values)})


def encoded(rows, template, tokenizer, seq2seq=False):
    found = encode_data(rows, "training", PromptTokenizer(template, tokenizer, seq2seq), 64, True, 400)
    return [dict(row) for row in found]


@pytest.mark.parametrize("seq2seq", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_column_may_be_called_anything(name, seq2seq, tokenizer):
    expected = encoded(data(), template(), tokenizer, seq2seq)
    assert [row["label"] for row in expected] == [0, 1, 1, 0]
    assert type(expected[0]["label"]) is int and type(expected[0]["length"]) is int
    as_float = {"1": "complaint", "0": "no complaint"}
    for rows, made in (
        (data(label=name), template(label=name)),
        (data(text=name, label="gold"), template(text=name, label="gold")),
        (data(label=name, values=(1.0, 0.0, 0.0, 1.0)), template(label=name, words=as_float)),
        (data(label=name, values=("true", "false", "false", "true")), template(label=name)),
    ):
        assert encoded(rows, made, tokenizer, seq2seq) == expected
        assert encoded(list(rows), made, tokenizer, seq2seq) == expected
        assert encoded(rows.to_iterable_dataset(), made, tokenizer, seq2seq) == expected
    more = data().add_column(name, [["x"], ["y"], [], None]) if name != "Label" else data()
    assert encoded(more, template(), tokenizer, seq2seq) == expected


def test_rows_that_are_encoded_already_pass_as_they_are(tokenizer):
    for made in (template(), template(label="label"), template(text="length"), template(text="labels", label="label")):
        column = made.source_columns[0]
        rows = data(text=column, label=made.label_column)
        encoder = PromptTokenizer(made, tokenizer, False)
        once = encode_data(rows, "training", encoder, 64, True)
        twice = encode_data(once, "training", encoder, 64, True)
        assert twice.to_list() == once.to_list()
        stream = encode_data(rows.to_iterable_dataset(), "training", encoder, 64, True)
        assert list(encode_data(stream, "training", encoder, 64, True)) == list(stream)


def test_a_template_makes_text_of_rows_that_have_token_ids_beside_it(tokenizer):
    rows = data().add_column("input_ids", [[5, 6]] * 4)
    assert encoded(rows, template(), tokenizer) == encoded(data(), template(), tokenizer)
    alone = rows.remove_columns("text").add_column("labels", [[5, 6]] * 4)
    assert [row["input_ids"] for row in encoded(alone, template(), tokenizer)] == [[5, 6]] * 4


def test_a_column_length_of_token_ids_that_says_something_else():
    rows = Dataset.from_dict({"input_ids": [[5, 6], [7]], "labels": [[5, 6], [7]], "length": [900, 1]})
    found = encode_data(rows, "training", None, 64, True)
    assert found.column_names == ["input_ids", "labels"]
    with pytest.raises(PromptTuningError, match="has the columns 'input_ids' and no 'input_ids' of token ids"):
        encode_data(Dataset.from_dict({"input_ids": ["a"]}), "training", None, 64, True)


@pytest.mark.parametrize("own", [["a", "b"], [7, 9], [True, False], [None, None]])
def test_a_column_label_of_token_ids_is_the_datas_own(own, tokenizer, tmp_path):
    ids = {"input_ids": [[5, 6], [7]], "labels": [[5, 6], [7]]}
    plain, rows = Dataset.from_dict(ids), Dataset.from_dict(ids | {"label": own, "length": [9, 9]})
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM")
    found = []
    for data in (plain, rows, list(rows)):
        common = {"train_dataset": data, "eval_dataset": data, "processing_class": tokenizer}
        strategy = {"train_sampling_strategy": "group_by_length"}
        trainer = PromptTuningTrainer(
            tiny_model("llama"), arguments(tmp_path, **strategy), prompt_config=config, **common
        )
        trainer.train()
        found.append((trainer.model.prompt.tolist(), trainer.evaluate()["eval_loss"]))
    assert found[0] == found[1] == found[2]
    encoder = PromptTokenizer(template(), tokenizer, False)
    with pytest.raises(PromptTuningError, match="the evaluation data has token ids, and the template ranks labels"):
        encode_data(rows, "evaluation", encoder, 64, False)
    assert encode_data(rows, "training", encoder, 64, True).column_names == ["input_ids", "labels"]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_trainers_take_any_names(kind, tokenizer, tmp_path):
    expected = None
    for text, label in (("text", "Label"), ("input_ids", "label"), ("length", "labels"), ("labels", "input_ids")):
        rows, made = data(text, label), template(text, label)
        config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM")
        common = {"train_dataset": rows, "eval_dataset": {"a": rows, "b": list(rows)}, "processing_class": tokenizer}
        trainer = PromptTuningTrainer(
            tiny_model(kind), arguments(tmp_path), template=made, prompt_config=config, **common
        )
        trainer.train()
        metrics = trainer.evaluate()
        found = trainer.model.prompt.tolist(), metrics["eval_a_loss"], metrics["eval_b_loss"]
        expected = expected or found
        assert found == expected
    stream = data("input_ids", "label").to_iterable_dataset()
    trainer = PromptTuningTrainer(
        tiny_model(kind), arguments(tmp_path, max_steps=2), template=template("input_ids", "label"),
        prompt_config=config, train_dataset=stream, processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.train().global_step == 2


@pytest.mark.parametrize("label", ["Label", "label", "labels"])
@pytest.mark.parametrize("feature", [Value("string"), ClassLabel(names=["1", "0"])])
def test_an_ensemble_and_tasks_take_any_label_column(label, feature, tokenizer, tmp_path):
    values = ["1", "0", "0", "1"]
    features = Features({"text": Value("string"), label: feature})
    rows = Dataset.from_dict({"text": TEXTS, label: values}, features=features)
    words = None if isinstance(feature, ClassLabel) else {"0": "0", "1": "1"}
    made = template(label=label, words=words)
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM")
    members = [PromptTask(name, config, seed=i) for i, name in enumerate("ab")]
    trainer = EnsembleTrainer(tiny_model("llama"), arguments(tmp_path), members, rows, rows, tokenizer, made)
    assert [trainer.tasks["a"].template.label_words[str(i)] for i in (0, 1)] == (
        ["1", "0"] if words is None else ["0", "1"]
    )
    trainer.train()
    one = trainer.evaluate()
    tasks = [PromptTask(name, config, rows, rows, made, seed=i) for i, name in enumerate("ab")]
    several = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer)
    several.train()
    assert several.evaluate()["eval_a_loss"] == pytest.approx(one["eval_a_loss"], rel=1e-5)


def test_a_prompts_own_template_gets_its_words_from_the_data(tokenizer, tmp_path):
    features = Features({"text": Value("string"), "Label": ClassLabel(names=["1", "0"])})
    rows = Dataset.from_dict({"text": TEXTS, "Label": [0, 1, 1, 0]}, features=features)
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM")
    trainer = PromptTuningTrainer(
        tiny_model("llama"), arguments(tmp_path), template=template(words=None), prompt_config=config,
        train_dataset=rows, processing_class=tokenizer,
    )  # fmt: skip
    expected = trainer.model.info.template
    assert (expected.label_words, expected.label_names) == ({"0": "1", "1": "0"}, ["1", "0"])
    trainer.model.info.template = template(words=None)
    again = PromptTuningTrainer(trainer.model, arguments(tmp_path), train_dataset=rows, processing_class=tokenizer)
    assert again.model.info.template == expected
    again.save_model(str(tmp_path / "saved"))
    loaded = type(again.model).from_pretrained(tiny_model("llama"), tmp_path / "saved")
    assert loaded.info.template == expected
    third = PromptTuningTrainer(loaded, arguments(tmp_path), eval_dataset=rows, processing_class=tokenizer)
    assert third.model.info.template == expected
    assert third.eval_dataset["label"] == [0, 1, 1, 0]


def test_rows_without_their_target(tokenizer):
    for columns in ("{summary}", "{summary} {title}"):
        encoder = PromptTokenizer(PromptTemplate("Text : {text}", target=columns), tokenizer, False)
        full = {"text": TEXTS, "summary": ["a day", None, "a dog", None], "title": [None, None, "x", None]}
        found = encode_data(Dataset.from_dict(full), "test", encoder, 64, False)
        assert [any(token != -100 for token in row) for row in found["labels"]] == [True, False, True, False]
        with pytest.raises(PromptTuningError, match="row 2 of the training data: the row has no target"):
            encode_data(Dataset.from_dict(full), "training", encoder, 64, True)
        bare = Dataset.from_dict({"text": TEXTS, "title": ["x"] * 4})
        found = encode_data(bare, "test", encoder, 64, False)
        assert all(token == -100 for row in found["labels"] for token in row)
        with pytest.raises(PromptTuningError, match=r"field \{summary\} is no column of the training data"):
            encode_data(bare, "training", encoder, 64, True)

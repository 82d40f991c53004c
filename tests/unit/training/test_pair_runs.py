"""PromptTuningTrainer with pairs of texts: rows of every kind, what is saved and shown, and what is refused."""

import json
import re
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from hf_prompt_tuning import (
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    inspect_prompt,
    load_prompt,
)
from tests.shared.classifiers import tiny_classifier
from tests.shared.head_runs import head_of, require_same
from tests.shared.text_pairs import PAIR, pair_rows, pair_tokenizer
from tests.shared.tiny_models import make_tokenizer

NAMES = ["maybe", "no", "yes"]


def refused(message):
    return pytest.raises(PromptTuningError, match=message)


def pair_trainer(folder, rows=None, model=None, tokenizer=None, template=PAIR, **values):
    quiet = dict(use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no")
    config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
    return PromptTuningTrainer(
        tiny_classifier("bert", id2label=dict(enumerate(NAMES))) if model is None else model,
        PromptTuningArguments(str(folder), **quiet | values),
        train_dataset=pair_rows() if rows is None else rows,
        eval_dataset=pair_rows(),
        processing_class=pair_tokenizer() if tokenizer is None else tokenizer,
        template=template,
        prompt_config=config if model is None else None,
    )


def test_a_run_learns_pairs_and_goes_on_with_its_template(tmp_path):
    trainer = pair_trainer(tmp_path, num_train_epochs=40, head_learning_rate=3e-2)
    before = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate_untuned()["untuned_loss"] > 0
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.9 * before
    trainer.save_model()
    described = json.loads((tmp_path / "prompt_tuning.json").read_text())
    assert described["template"] | {"labels": NAMES, "pair": "{hypothesis}"} == described["template"]
    assert described["example"]["source"] == "<s> the parcel never came</s> why is my line down again</s>"
    backbone = tiny_classifier("bert", id2label=dict(enumerate(NAMES)))
    loaded = load_prompt(tmp_path, backbone=backbone, tokenizer=pair_tokenizer(), is_trainable=True)
    require_same(head_of(loaded.model), head_of(trainer.model))
    again = pair_trainer(tmp_path / "again", model=loaded.model, template=None)
    assert again.evaluate()["eval_loss"] == pytest.approx(after, rel=1e-5)


def test_rows_that_are_encoded_already_keep_their_token_types(tmp_path):
    """As they are given again, by a stream, and by a model that is made for each trial."""
    trainer = pair_trainer(tmp_path)
    expected = trainer.evaluate()["eval_loss"]
    encoded = trainer.rows.tokenizer.encode_dataset(Dataset.from_list(pair_rows()), "other")
    assert "token_type_ids" in encoded.column_names
    assert trainer.evaluate(encoded)["eval_loss"] == pytest.approx(expected, rel=1e-6)
    stream = Dataset.from_list(pair_rows()).to_iterable_dataset()
    assert trainer.evaluate(stream)["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.predict(encoded).metrics["test_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.evaluate_transfer({"b": pair_rows()})["transfer_b_loss"] == pytest.approx(expected, rel=1e-6)

    def make(trial=None):
        torch.manual_seed(0)
        config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
        return get_prompt_tuning_model(tiny_classifier("bert", id2label=dict(enumerate(NAMES))), config)

    args = PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1)
    options = dict(train_dataset=pair_rows(), processing_class=pair_tokenizer(), template=PAIR)
    made = PromptTuningTrainer(args=args, model_init=make, **options)
    made.train()
    assert "token_type_ids" in next(iter(made.get_train_dataloader()))


def test_the_card_tells_how_pairs_are_read(tmp_path, capsys):
    trainer = pair_trainer(tmp_path, template=replace(PAIR, max_source_length=20))
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert (
        "Second text, which the tokenizer joins to the first by its own special tokens:\n\n```\n{hypothesis}" in card
    )
    assert "The head reads this pair, cut to 20 tokens, the longer text first." in card
    code = re.search(r"## Use\n\n```python\n(.*?)```", card, re.DOTALL)[1].replace("'.'", repr(str(tmp_path)))
    code = code.replace('"..."', '"great film"')
    names = {"backbone": tiny_classifier("bert", id2label=dict(enumerate(NAMES))), "tokenizer": pair_tokenizer()}
    exec(code, names)
    row = {"premise": "great film", "hypothesis": "great film", "label": None}
    expected = torch.tensor(trainer.predict([row]).predictions)
    torch.testing.assert_close(names["logits"], expected, rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out == f"{[NAMES[int(expected.argmax())]]}\n"


def test_another_pair_is_another_template(tmp_path, caplog):
    trainer = pair_trainer(tmp_path)
    trainer.save_model()
    backbone = tiny_classifier("bert", id2label=dict(enumerate(NAMES)))
    model = load_prompt(tmp_path, backbone=backbone, is_trainable=True).model
    pair_trainer(tmp_path / "b", model=model, template=replace(PAIR, pair="Then: {hypothesis}"))
    assert (
        "with the source '{premise}' + '{hypothesis}', is replaced by the one that the trainer is given" in caplog.text
    )
    assert "'{premise}' + 'Then: {hypothesis}'" in caplog.text


def test_what_is_refused(tmp_path):
    for options, message in (
        ({"tokenizer": make_tokenizer()}, "writes nothing between the two texts of a pair"),
        (
            {"rows": [row | {"hypothesis": None} for row in pair_rows()]},
            r"row 1 of the training data: \{hypothesis\} is missing",
        ),
        ({"rows": [{"premise": "a", "label": "no"}] * 3}, "the template's column 'hypothesis' is no column of the tr"),
        ({"template": replace(PAIR, max_source_length=4)}, "give 5 or more"),
        (
            {"rows": [pair_rows()[0] | {"premise": "dog " * 70}, *pair_rows()]},
            "and behind the prompt the backbone has",
        ),
    ):
        with refused(message):
            pair_trainer(tmp_path, **options)


def test_the_inspector_names_both_texts(tmp_path):
    pair_trainer(tmp_path).save_model()
    backbone = tiny_classifier("bert", id2label=dict(enumerate(NAMES)))
    found = inspect_prompt(tmp_path, backbone=backbone, tokenizer=pair_tokenizer())
    assert found.prompts[0].source == "{premise} + {hypothesis}"

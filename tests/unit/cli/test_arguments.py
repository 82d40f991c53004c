"""A file, flags, or both; cast by the field; completed from the data that was given."""

import json
from dataclasses import replace

import pytest
import yaml

from hf_prompt_tuning import PromptTemplate, PromptTuningError
from hf_prompt_tuning.cli import arguments
from hf_prompt_tuning.cli.arguments import parse_arguments
from hf_prompt_tuning.cli.tasks import read_tasks
from tests.shared.reference import tiny_prompt_model
from tests.shared.repository import ROOT

EXAMPLES = ROOT / "examples"

BASE = {
    "model_name_or_path": "m",
    "train_file": "t.csv",
    "source_template": "{text} :",
    "label_column": "label",
    "output_dir": "out",
}


@pytest.fixture
def config(tmp_path):
    def write(name="config.yaml", **values):
        file = tmp_path / name
        file.write_text(
            (json if name.endswith("json") else yaml).dumps({**BASE, **values})
            if name.endswith("json")
            else yaml.safe_dump({**BASE, **values})
        )
        return str(file)

    return write


def test_yaml_numbers_are_cast_by_the_field(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ntrain_file: t.csv\nlearning_rate: 3e-1\nnum_virtual_tokens: '7'\n")
    *_, prompt, training = parse_arguments([str(file), "--output_dir", "o"])
    assert training.learning_rate == 0.3
    assert prompt.num_virtual_tokens == 7


def test_a_later_flag_overrides_the_file(config):
    *_, training = parse_arguments([config(learning_rate=0.1, seed=1), "--learning_rate", "0.2"])
    assert (training.learning_rate, training.seed) == (0.2, 1)


class TestRecipes:
    def test_flag_beats_recipe_beats_default_in_training_and_prompt(self, config):
        *_, prompt, training = parse_arguments([config(recipe="lester2021"), "--learning_rate", "0.03", "-P", "20"])
        assert (training.learning_rate, training.per_device_train_batch_size, training.optim) == (
            0.03,
            32,
            "adafactor",
        )
        assert (prompt.num_virtual_tokens, prompt.prompt_tuning_init) == (20, "CLASS_LABELS")
        *_, prompt, training = parse_arguments([config(recipe="lester2021"), "--recipe", "default"])
        assert (prompt.num_virtual_tokens, training.learning_rate) == (None, 3e-2)

    def test_words_to_start_from_are_a_start(self, config):
        *_, prompt, _ = parse_arguments([config(recipe="lester2021", prompt_tuning_init_text="Is it one?")])
        assert (prompt.prompt_tuning_init, prompt.num_virtual_tokens) == (None, 100)

    def test_a_start_from_words_needs_words(self, config):
        arguments = parse_arguments([config(recipe="peft")])
        with pytest.raises(PromptTuningError, match="prompt_tuning_init is TEXT and prompt_tuning_init_text is None"):
            arguments.prompt_config()

    def test_a_recipe_beats_the_defaults_of_teaching(self, config):
        flags = ["--teacher_text", "Be kind.", "--recipe"]
        *_, prompt, training = parse_arguments([config(), *flags, "lester2021"])
        assert (training.learning_rate, prompt.prompt_tuning_init) == (0.3, "CLASS_LABELS")
        *_, prompt, training = parse_arguments([config(), *flags, "few_shot"])
        assert (training.learning_rate, prompt.prompt_tuning_init) == (1e-2, "TEACHER")
        assert training.num_train_epochs == 15

    def test_a_recipe_that_there_is_not(self, config):
        with pytest.raises(PromptTuningError, match="recipe is 'quick'; give one of default"):
            parse_arguments([config(recipe="quick")])


def test_json_and_flags_alone(config):
    from_json = parse_arguments([config("c.json", label_words={"0": "bad", "1": "good"}, column_names=["a", "b"])])
    words = json.dumps({"0": "bad", "1": "good"})
    flags = [f"--{key}={value}" for key, value in BASE.items()]
    from_flags = parse_arguments([*flags, "--label_words", words, "--column_names", "a", "b"])
    assert from_json[:3] == from_flags[:3]
    assert from_json[1].template().label_words == {"0": "bad", "1": "good"}


def test_data_given_means_what_it_is_for(config):
    *_, training = parse_arguments([config()])
    assert (training.do_train, training.do_eval, training.eval_strategy) == (True, False, "no")
    *_, training = parse_arguments([config(validation_file="v.csv")])
    assert (training.do_train, training.do_eval, training.eval_on_start) == (True, True, True)
    assert (training.eval_strategy, training.save_strategy) == ("epoch", "epoch")
    *_, training = parse_arguments(
        [config(validation_split_percentage=10, eval_strategy="steps", eval_on_start=False)]
    )
    assert (training.eval_strategy, training.eval_on_start) == ("steps", False)
    *_, training = parse_arguments([config(validation_file="v.csv", do_train=False)])
    assert (training.do_train, training.eval_strategy) == (False, "no")


def test_defaults_that_learn(config):
    *_, prompt, training = parse_arguments([config(early_stopping_patience=3, validation_file="v.csv")])
    assert (training.learning_rate, training.weight_decay, training.lr_scheduler_type) == (3e-2, 0.0, "linear")
    assert training.load_best_model_at_end
    assert prompt.config(None).num_virtual_tokens == 20


def test_resume_true_is_a_truth_and_a_path_a_path(config):
    assert parse_arguments([config(resume_from_checkpoint=True)]).training.resume_from_checkpoint is True
    assert parse_arguments([config(), "--resume_from_checkpoint", "a/b"]).training.resume_from_checkpoint == "a/b"


@pytest.mark.parametrize(
    ("values", "flags", "message"),
    [
        ({"learning_rat": 1}, [], "the key 'learning_rat' is not known; did you mean 'learning_rate'"),
        (
            {},
            ["--num_virtual_token", "3"],
            "the argument '--num_virtual_token' is not known; did you mean 'num_virtual_tokens'",
        ),
        ({}, ["--seed", "many"], "--seed: invalid int value: 'many'. See --help."),
        ({}, ["--eval_strategy", "often"], "eval_strategy.*'often'"),
    ],
)
def test_what_is_not_understood_is_named(config, values, flags, message):
    with pytest.raises((PromptTuningError, ValueError), match=message):
        parse_arguments([config(**values), *flags])


def test_files_that_are_no_config(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "bad.json").write_text("{")
    for name, message in [
        ("none.yaml", "the config .* cannot be read: No such file"),
        ("list.yaml", "the config .* is no mapping"),
        ("bad.json", "the config .* is not json"),
        ("notes.txt", "neither a flag nor a .yaml or .json file"),
    ]:
        with pytest.raises(PromptTuningError, match=message):
            parse_arguments([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_words": "bad, good"}, "label_words is 'bad, good', not a JSON object"),
        ({"source_template": None}, "source_template is not given"),
    ],
)
def test_templates_that_cannot_be(config, values, message):
    with pytest.raises(PromptTuningError, match=message):
        parse_arguments([config(**values)])[1].template()


def test_the_template_of_the_prompt_to_start_from(config, tmp_path):
    """Without a source template; what is given replaces the prompt's own values."""
    own = PromptTemplate(source="{text} ?", label_column="y", label_words={"0": "no", "1": "yes"}, max_source_length=9)
    model = tiny_prompt_model("llama")
    model.info.template = own
    model.save_pretrained(tmp_path / "prompt")
    flags = ["--model_name_or_path", "m", "--output_dir", "o", "--init_prompt", str(tmp_path / "prompt")]
    assert parse_arguments(flags).template() == own
    words = ["--label_words", '{"0": "bad", "1": "good"}', "--label_column", "label"]
    changed = parse_arguments([*flags, *words, "--max_source_length", "8"]).template()
    assert changed == replace(own, label_column="label", label_words={"0": "bad", "1": "good"}, max_source_length=8)
    assert parse_arguments([*flags, "--source_template", "{a}", "--label_column", "b"]).template().source == "{a}"
    (tmp_path / "prompt/prompt_tuning.json").unlink()
    with pytest.raises(PromptTuningError, match="source_template is not given"):
        parse_arguments(flags).template()


def test_no_backbone_and_help(capsys):
    with pytest.raises(PromptTuningError, match="model_name_or_path is not given"):
        parse_arguments(["--output_dir", "o"])
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Hub id or folder of the backbone. --model_revision" in shown and "(default: 5000)" in shown


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_parse(example, monkeypatch):
    monkeypatch.setattr(arguments, "split_names", lambda name, *_: ["train", "test"] if name else [])
    said = yaml.safe_load(example.read_text())
    if "tasks" in said:
        found = read_tasks([str(example)])
        assert list(found.tasks) == [task["name"] for task in said["tasks"]] and found.training.do_train
        return
    missing = {
        "model_name_or_path": "m",
        "train_file": "t.csv",
        "validation_file": "v.csv",
        "source_template": "{t}",
        "label_column": "y",
    }
    chats = "messages_column" in said or "teacher_file" in said
    if "dataset_name" in said or chats:
        missing = {}
    flags = [f"--{key}={value}" for key, value in missing.items() if key not in said]
    _, data, _, prompt, training = parse_arguments([str(example), *flags])
    assert data.template().is_classification != chats
    assert prompt.config(None).num_virtual_tokens == said["num_virtual_tokens"]
    assert training.do_train

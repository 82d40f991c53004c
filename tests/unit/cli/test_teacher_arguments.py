"""What teaches a prompt, on the command line."""

import json

import pytest
from datasets import Dataset

from hf_prompt_tuning import ChatTemplate, PromptTuningError, Teacher
from hf_prompt_tuning.cli import teach
from hf_prompt_tuning.cli.arguments import parse_arguments
from hf_prompt_tuning.cli.tasks import read_tasks
from tests.shared.repository import ROOT

USER = {"role": "user", "content": "Hi"}
SHARED = ["--model", "x", "--output_dir", "y"]
EXAMPLE = ROOT / "examples" / "teaching"


def parsed(*flags):
    return parse_arguments([*SHARED, *map(str, flags)])


def test_each_kind_of_teacher(tmp_path):
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    (tmp_path / "system.txt").write_text("\nBe kind.\n\n", encoding="utf-8")
    (tmp_path / "turns.json").write_text(json.dumps(turns), encoding="utf-8")
    assert parsed("--teacher_text", "Be kind.").teacher.given() == Teacher(text="Be kind.")
    assert parsed("--teacher_file", tmp_path / "system.txt").teacher.given() == Teacher(text="Be kind.")
    assert parsed("--teacher_file", tmp_path / "turns.json").teacher.given() == Teacher(messages=turns)
    assert parsed("--teacher", "outputs/long").teacher.given() == Teacher(prompt="outputs/long")
    assert parsed("--teacher_column", "passage").teacher.given() == Teacher(column="passage")
    with_separator = parsed("--teacher_text", "x", "--teacher_separator", "\n").teacher.given()
    assert with_separator == Teacher(text="x", separator="\n")
    assert parsed("--messages_column", "messages").teacher.given() is None


def test_defaults_of_a_text_that_teaches_chats():
    arguments = parsed("--teacher_text", "Be kind.", "--train_file", "rows.jsonl", "-P", "16")
    assert arguments.template() == ChatTemplate(max_source_length=512)
    assert arguments.data.validation_split_percentage == 20 and arguments.training.do_eval
    assert arguments.training.learning_rate == 1e-2
    config = arguments.prompt_config()
    assert (config.num_virtual_tokens, config.prompt_position) == (16, "system")
    assert (config.prompt_tuning_init, config.prompt_tuning_init_text) == ("TEACHER", "Be kind.")


@pytest.mark.parametrize(
    ("flags", "position", "init"),
    [
        (["--teacher_text", "x", "--source_template", "{text}"], None, "TEACHER"),
        (["--teacher_text", "x", "--source_template", "{text}", "--chat", "true"], "system", "TEACHER"),
        (["--teacher_text", "x", "--source_template", "{text}", "--chat", "false"], None, "TEACHER"),
        (["--teacher_text", "x", "--prompt_tuning_init_text", "y"], "system", None),
        (["--teacher_text", "x", "--prompt_position", "start"], "start", "TEACHER"),
        (["--teacher_text", "x", "--init_prompt", "p"], None, None),
        (["--teacher_column", "x"], "system", None),
        (["--teacher", "x", "--source_template", "{text}"], None, None),
    ],
)
def test_a_value_that_is_given_stays(flags, position, init):
    prompt = parsed(*flags).prompt
    assert (prompt.prompt_position, prompt.prompt_tuning_init) == (position, init)


def test_given_values_go_before_the_defaults_of_teaching():
    flags = ["--teacher_text", "x", "--learning_rate", "0.5", "--messages_column", "chat"]
    arguments = parsed(*flags, "--train_file", "a.jsonl", "--validation_file", "b.jsonl")
    assert arguments.training.learning_rate == 0.5 and arguments.data.messages_column == "chat"
    assert arguments.data.validation_split_percentage is None


@pytest.mark.parametrize(
    ("flags", "row", "expected"),
    [
        ([], {"messages": [USER]}, 1),
        ([], {"messages": [USER, {"role": "assistant", "content": "Hello"}]}, None),
        (["--completion_column", "answer"], {"messages": "Hi", "answer": None}, 1),
        (["--source_template", "{text}", "--target_template", "{answer}"], {"text": "Hi"}, 1),
        (["--source_template", "{text}", "--target_template", "{answer}"], {"text": "Hi", "answer": "Hello"}, None),
        (["--source_template", "{text}", "--label_column", "label"], {"text": "Hi", "label": -1}, None),
        (["--teacher_writes", "3"], {"messages": [USER]}, 3),
        ([], {"messages": None}, None),
        ([], {"other": "Hi"}, None),
    ],
)
def test_rows_without_answers_are_answered(flags, row, expected):
    arguments = parsed("--teacher_text", "Be kind.", *flags)
    arguments.teacher.complete(arguments.training, arguments.template(), Dataset.from_list([row]))
    assert arguments.training.teacher_writes == expected


def test_without_a_teacher_nothing_is_written():
    arguments = parsed("--messages_column", "messages")
    arguments.teacher.complete(arguments.training, arguments.template(), Dataset.from_list([{"messages": [USER]}]))
    assert arguments.training.teacher_writes is None


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--teacher_text", "x", "--teacher", "y"], "teacher_text and teacher are given, and one of them teaches"),
        (["--teacher_file", "none.txt"], "teacher_file 'none.txt' cannot be read: No such file"),
        (["--teacher_text", "x", "--num_prompts", "2"], "num_prompts is given, and a teacher is for one prompt"),
        (["--teacher_text", " "], "the Teacher's text is ' '; give a text that is not empty"),
    ],
)
def test_refused_arguments(flags, match):
    with pytest.raises(PromptTuningError, match=match):
        parsed(*flags).teacher.given()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("empty.txt", b" \n", "teacher_file '.*empty.txt' is empty; write the text"),
        ("latin.txt", "naïve".encode("latin-1"), "teacher_file '.*latin.txt' cannot be read: .*utf-8"),
        ("turns.json", b"Be kind.", "teacher_file '.*turns.json' is not JSON"),
        ("turns.json", b'{"role": "user"}', "messages"),
    ],
)
def test_refused_files(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptTuningError, match=match):
        parsed("--teacher_file", tmp_path / name).teacher.given()


def test_tasks_have_no_teacher(tmp_path):
    config = tmp_path / "tasks.yaml"
    config.write_text("tasks:\n- name: a\n  messages_column: messages\nteacher_text: Be kind.\n", encoding="utf-8")
    with pytest.raises(PromptTuningError, match=r"teacher_text, .* are for one prompt; leave them out beside tasks"):
        read_tasks([str(config), *SHARED])


def test_teach_needs_a_teacher(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("train_file: rows.jsonl\n", encoding="utf-8")
    with pytest.raises(PromptTuningError, match="nothing teaches the prompt; give --teacher_file FILE"):
        teach.main([str(config), *SHARED])


def test_the_data_of_the_example():
    """The training and held-out questions are other ones, and each is one turn of the user."""
    rows = {
        name: [json.loads(line) for line in (EXAMPLE / f"questions_{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "test")
    }
    assert {name: len(each) for name, each in rows.items()} == {"train": 300, "test": 80}
    questions = [row["messages"][0]["content"] for each in rows.values() for row in each]
    assert len({question.lower() for question in questions}) == 380
    assert all(len(row["messages"]) == 1 for each in rows.values() for row in each)

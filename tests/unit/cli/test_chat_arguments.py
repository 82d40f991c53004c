"""Conversations, and templates that are told as chats, on the command line."""

import json

import pytest

from hf_prompt_tuning import ChatFormat, ChatTemplate, PromptTemplate, PromptTuningError
from hf_prompt_tuning.cli.arguments import parse_arguments
from tests.shared.chat_templates import CHATML, chat_tokenizer
from tests.shared.command import command
from tests.shared.conversations import ROWS, SYSTEM
from tests.shared.tiny_models import tiny_model

TEXT = ["--source_template", "Message : {message}", "--target_template", "{answer}"]


def template_of(*flags):
    return parse_arguments(["--model_name_or_path", "x", "--output_dir", "y", *flags]).template()


def test_templates_of_arguments(tmp_path):
    (tmp_path / "own.jinja").write_text(CHATML, encoding="utf-8")
    assert template_of("--messages_column", "messages") == ChatTemplate(max_source_length=512)
    pair = template_of(
        "--messages_column", "prompt", "--completion_column", "completion", "--assistant_loss", "last",
        "--chat_template", str(tmp_path / "own.jinja"), "--max_source_length", "9", "--max_target_length", "7",
    )  # fmt: skip
    chat = ChatFormat(chat_template=CHATML, assistant_loss="last")
    assert pair == ChatTemplate("prompt", "completion", chat, 9, 7)
    told = template_of(
        *TEXT, "--chat", "true", "--system_message", "Be kind.", "--chat_template_kwargs", '{"enable_thinking": false}'
    )
    chat = ChatFormat(system_message="Be kind.", chat_template_kwargs={"enable_thinking": False})
    assert told == PromptTemplate("Message : {message}", "{answer}", max_source_length=512, chat=chat)
    assert template_of(*TEXT, "--chat", "false") == template_of(*TEXT)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ([*TEXT, "--system_message", "x"], "system_message is given, and the rows are no chats; give chat true"),
        ([*TEXT, "--completion_column", "x"], "completion_column is given without messages_column"),
        (["--messages_column", "m", *TEXT], "source_template is given for conversations"),
        (["--messages_column", "m", "--chat", "true"], "chat is given for conversations"),
        (["--messages_column", "m", "--label_column", "l"], "label_column is given for conversations"),
        (["--messages_column", "m", "--chat_template", "none.jinja"], "chat_template 'none.jinja' cannot be read"),
        (["--messages_column", "m", "--chat_template_kwargs", "[1]"], "chat_template_kwargs is .* not a JSON object"),
        (["--messages_column", "m", "--assistant_loss", "first"], "assistant_loss is 'first'; give 'all'"),
        ([], "source_template is not given; .* or for conversations --messages_column messages"),
    ],
)
def test_refused_arguments(flags, match):
    with pytest.raises(PromptTuningError, match=match):
        template_of(*flags)


def test_a_run_on_conversations_and_one_that_starts_from_it(tmp_path):
    """The second run brings its template from the first one's prompt, and changes a part of it."""
    tiny_model("llama").save_pretrained(tmp_path / "backbone")
    chat_tokenizer("chatml").save_pretrained(tmp_path / "backbone")
    rows = [{**row, "chat_template_kwargs": {"unused": 1}} for row in ROWS]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shared = ["--model_name_or_path", tmp_path / "backbone", "--validation_file", data, "--do_predict"]
    done = command(
        "-m", "hf_prompt_tuning", *shared, "--train_file", data, "--messages_column", "messages",
        "--system_message", "Be kind.", "--num_virtual_tokens", "4", "--max_steps", "1", "--save_strategy", "no",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "out/prompt_tuning.json").read_text(encoding="utf-8"))["template"]
    assert saved["messages_column"] == "messages" and saved["chat"]["chat_template"] == CHATML
    lines = [
        json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["input"] for line in lines] == [[SYSTEM, *row["messages"][:-1]] for row in ROWS]
    assert [line["reference"] for line in lines] == [row["messages"][-1]["content"] for row in ROWS]
    results = json.loads((tmp_path / "out/all_results.json").read_text())
    again = command(
        "-m", "hf_prompt_tuning", *shared, "--do_train", "false", "--init_prompt", tmp_path / "out",
        "--output_dir", tmp_path / "again",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    later = json.loads((tmp_path / "again/all_results.json").read_text())
    assert later["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)
    wrong = command(
        "-m", "hf_prompt_tuning", *shared, "--train_file", data, "--messages_column", "chat",
        "--output_dir", tmp_path / "wrong",
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "error: messages_column 'chat' is no column of the training data, which has 'messages'" in wrong.stderr

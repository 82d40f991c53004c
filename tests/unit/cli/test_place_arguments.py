"""Where the command puts a new prompt."""

import json

import pytest

from hf_prompt_tuning.cli.arguments import parse_arguments

DATA = ["--train_file", "rows.jsonl", "--source_template", "{message}", "--model", "model", "--output_dir", "out"]


@pytest.mark.parametrize(
    ("flags", "position"),
    [
        ([], "auto"),
        (["--prompt_position", "start"], "start"),
        (["--init_prompt", "other"], None),
        (["--init_prompt", "other", "--prompt_position", "auto"], "auto"),
        (["--teacher_text", "Be kind."], "auto"),
        (["--teacher_text", "Be kind.", "--chat", "true"], "system"),
    ],
)
def test_the_command_chooses_a_new_prompts_place_unless_it_is_given(flags, position):
    assert parse_arguments([*DATA, *flags]).prompt_config().prompt_position == position


def test_the_command_takes_the_token_to_stand_behind():
    flags = ["--prompt_position", "after_bos", "--sink_token", "<|endoftext|>"]
    config = parse_arguments([*DATA, *flags]).prompt_config()
    assert (config.prompt_position, config.sink_token) == ("after_bos", "<|endoftext|>")
    # PEFT reads this, and does not know of places.
    assert "prompt_position" not in json.dumps(config.to_dict())

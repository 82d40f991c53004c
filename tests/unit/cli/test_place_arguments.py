"""Where the command puts a new prompt."""

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

"""How messages of other libraries stand in ours."""

import pytest

from hf_prompt_tuning.errors import first_line, sentence


@pytest.mark.parametrize(("text", "ended"), [("no file", "no file."), ("No file.", "No file."), ("why?", "why?")])
def test_another_message_is_a_sentence_before_ours(text, ended):
    assert sentence(text) == ended


def test_of_an_error_without_a_message_its_name_is_told():
    assert (first_line(ValueError("one\ntwo")), first_line(KeyError())) == ("one", "KeyError()")

"""Templates that write a turn otherwise if another follows: the last answer stands behind what it is given in use."""

import pytest

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    ChatTokenizer,
    PromptTemplate,
    PromptTokenizer,
    PromptTuningError,
)
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.conversations import SYSTEM, TURNS

LAST_ALONE = (  # as Mistral's own: the system text in the last message, if that is a user's
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% endif %}{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if loop.last and system is defined else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def tokenizer_of(template):
    tokenizer = chat_tokenizer("mistral")
    tokenizer.chat_template = template
    return tokenizer


def coder(tokenizer, **values):
    return ChatTokenizer(ChatTemplate(chat=ChatFormat(**values)), tokenizer, False)


@pytest.mark.parametrize(
    ("turns", "which", "answer"),
    [(TURNS[:2], "all", " thank you</s>"), (TURNS[:2], "last", " thank you</s>"), (TURNS, "last", " quick help</s>")],
)
def test_the_last_answer_stands_behind_its_source_with_the_system_text(turns, which, answer):
    tokenizer = tokenizer_of(LAST_ALONE)
    encoded = coder(tokenizer, assistant_loss=which).encode({"messages": [SYSTEM, *turns]})
    source = tokenizer.apply_chat_template([SYSTEM, *turns[:-1]], tokenize=False, add_generation_prompt=True)
    assert "Be kind." in source and source == source.rstrip()
    assert tokenizer.decode(encoded["input_ids"]) == source + answer
    target = [label for label in encoded["labels"] if label != -100]
    assert tokenizer.decode(target) == answer and encoded["input_ids"][-len(target) :] == target
    # What the model is given in use.
    before = encoded["input_ids"][: -len(target)]
    assert coder(tokenizer).content_ids([SYSTEM, *turns[:-1]]) == before
    by_message = coder(tokenizer, assistant_loss=which, system_message="Be kind.").encode({"messages": turns})
    assert by_message == encoded


def test_a_template_of_columns_has_its_target_there_too():
    tokenizer = tokenizer_of(LAST_ALONE)
    template = PromptTemplate("{q}", target="{a}", chat=ChatFormat(system_message="Be kind."))
    encoded = PromptTokenizer(template, tokenizer, False).encode({"q": "why", "a": "so"})
    assert tokenizer.decode(encoded["input_ids"]) == "<s>[INST] Be kind.\n\nwhy[/INST] so</s>"
    assert tokenizer.decode([label for label in encoded["labels"] if label != -100]) == " so</s>"


def test_several_targets_and_other_changes_are_refused_as_before():
    with pytest.raises(PromptTuningError, match=r"otherwise than within the whole.*assistant_loss 'last'"):
        coder(tokenizer_of(LAST_ALONE)).encode({"messages": [SYSTEM, *TURNS]})
    empty = {"role": "assistant", "content": " "}
    with pytest.raises(PromptTuningError, match="message 3, the assistant's, is empty"):
        coder(tokenizer_of(LAST_ALONE)).encode({"messages": [SYSTEM, TURNS[0], empty]})
    # The system turn changes what is written of the answer, so it is not known what the model would write.
    shouting = LAST_ALONE.replace("' ' + m.content", "' ' + (m.content | upper if system is defined else m.content)")
    with pytest.raises(PromptTuningError, match="otherwise than within the whole"):
        coder(tokenizer_of(shouting), assistant_loss="last").encode({"messages": [SYSTEM, *TURNS]})


@pytest.mark.parametrize("name", ["qwen3", "chatml", "mistral"])
def test_a_row_that_ends_with_a_question_teaches_its_last_answer(name):
    """What comes after it is left out: Qwen 3's template writes the answer without its thinking block there."""
    tokenizer = chat_tokenizer(name)
    last = coder(tokenizer, assistant_loss="last")
    assert last.encode({"messages": [SYSTEM, *TURNS[:3]]}) == last.encode({"messages": [SYSTEM, *TURNS[:2]]})
    asked = last.encode({"messages": [SYSTEM, *TURNS[:3]]}, require_target=False)
    assert set(asked["labels"]) == {-100}
    if name == "qwen3":
        with pytest.raises(PromptTuningError, match="Give assistant_loss 'last'"):
            coder(tokenizer).encode({"messages": TURNS[:3]})

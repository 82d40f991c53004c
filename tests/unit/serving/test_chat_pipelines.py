"""Pipelines on chats: a list of messages, or a batch of them, as transformers' text-generation takes them."""

import pandas as pd
import pytest
import torch
from transformers import pipeline

from hf_prompt_tuning import ChatFormat, ChatTemplate, PromptTemplate, PromptTuningError
from hf_prompt_tuning.serving.pipelines import answered
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.conversations import CHATS
from tests.shared.prompt_pipelines import TEXT, made
from tests.shared.reference import greedy
from tests.shared.tiny_models import tiny_model

ASKED = [chat[:-1] for chat in CHATS]
OPTIONS = {"max_new_tokens": 5, "do_sample": False}


def alone(model, tokenizer, ids, coder, steps=5, adapter=None):
    """The text behind one row, token by token, up to its end."""
    ends = {tokenizer.eos_token_id, model.generation_config.eos_token_id, *coder.end_ids}
    new = greedy(model, torch.tensor(ids), steps, adapter)
    end = next((i for i, token in enumerate(new) if token in ends), len(new))
    return tokenizer.decode(new[:end], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "phi"])
def test_a_chat_comes_back_with_the_assistants_message(name):
    tokenizer = chat_tokenizer(name)
    model = made(tokenizer, ChatTemplate())
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    coder = model.row_encoder(tokenizer)
    expected = [
        alone(model, tokenizer, tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"], coder)
        for chat in ASKED
    ]
    for size in (1, 3):
        found = pipe(ASKED, batch_size=size, **OPTIONS)
        assert found == [
            [{"generated_text": [*chat, {"role": "assistant", "content": text}]}]
            for chat, text in zip(ASKED, expected, strict=True)
        ]
    assert pipe(ASKED[0], **OPTIONS) == found[0]
    assert list(pipe((chat for chat in ASKED), **OPTIONS)) == found
    assert pipe(ASKED[0], return_full_text=False, **OPTIONS) == [{"generated_text": expected[0]}]
    # rows of data: what comes before the last turn of the assistant is answered
    rows = [{"messages": chat} for chat in CHATS]
    assert pipe(rows, batch_size=2, **OPTIONS) == [{"generated_text": text.strip()} for text in expected]
    assert pipe(pd.DataFrame(rows), **OPTIONS) == pipe(rows, **OPTIONS)
    assert pipe("why", **OPTIONS) == pipe({"messages": [{"role": "user", "content": "why"}]}, **OPTIONS)


def test_tools_and_variables_are_given_in_a_row():
    tokenizer = chat_tokenizer("tools")
    model = made(tokenizer, ChatTemplate())
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    tools = [{"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}]
    for name, value in (("tools", tools), ("chat_template_kwargs", {"a": 1})):
        with pytest.raises(PromptTuningError, match=rf'{name} is .* give \{{"messages": …, "{name}": …\}}'):
            pipe(ASKED[0], **{name: value}, **OPTIONS)
    ids = tokenizer.apply_chat_template(ASKED[0], tools=tools, add_generation_prompt=True)["input_ids"]
    expected = alone(model, tokenizer, ids, model.row_encoder(tokenizer))
    row = {"messages": ASKED[0], "tools": tools, "chat_template_kwargs": {"a": 1}}
    assert pipe(row, **OPTIONS) == {"generated_text": expected.strip()}


def test_the_shape_is_that_of_text_generation():
    tokenizer = chat_tokenizer("chatml")
    model = made(tokenizer, ChatTemplate())
    ours = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    theirs = pipeline("text-generation", model=tiny_model("llama"), tokenizer=tokenizer)

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items() if key != "content"}
        return [shape(item) for item in value] if isinstance(value, list) else value

    for asked, options in (
        (ASKED[0], {}),
        (ASKED[:2], {}),
        (ASKED[0], {"num_return_sequences": 2, "do_sample": True}),
        (CHATS[0], {}),
    ):
        options = {"max_new_tokens": 3, "pad_token_id": 0} | options
        assert shape(ours(asked, **options)) == shape(theirs(asked, **options))


def test_the_assistants_last_message_is_continued():
    tokenizer = chat_tokenizer("llama3")
    model = made(tokenizer, ChatTemplate())
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    ids = tokenizer.apply_chat_template(CHATS[0], continue_final_message=True)["input_ids"]
    text = alone(model, tokenizer, ids, model.row_encoder(tokenizer))
    (found,) = pipe(CHATS[0], **OPTIONS)
    assert found["generated_text"] == [*ASKED[0], {"role": "assistant", "content": "quick help" + text}]
    sharegpt = [{"from": "human", "value": "why"}, {"from": "gpt", "value": "day"}]
    (found,) = pipe(sharegpt, **OPTIONS)
    assert found["generated_text"][1]["value"].startswith("day") and len(found["generated_text"]) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["human"], "gpt"),
        (["system", "human"], "gpt"),
        (["human", "gpt", "human"], "gpt"),
        (["user"], "assistant"),
        (["human", "assistant", "human"], "assistant"),
    ],
)
def test_an_answer_has_the_chats_own_name_for_the_assistant(names, expected):
    chat = [{"from": name, "value": "why"} for name in names]
    assert answered(chat, "day") == [*chat, {"from": expected, "value": "day"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("why", " now")]}]
    assert answered(parts, "day") == [*parts, {"role": "assistant", "content": "day"}]
    begun = [*parts, {**parts[0], "role": "assistant"}]
    assert answered(begun, "?") == [*parts, {"role": "assistant", "content": "why now?"}]


def test_prompts_for_chats_and_for_texts_in_one_batch():
    """A text does not end at the end of a turn, nor a chat later because a text is with it."""
    tokenizer = chat_tokenizer("gemma")
    model = made(tokenizer, ChatTemplate(), TEXT)
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    names = ["default", "p1", "default"]
    together = pipe([ASKED[0], {"message": "never came"}, ASKED[2]], adapter_names=names, batch_size=3, **OPTIONS)
    apart = [pipe(ASKED[0], **OPTIONS), pipe("never came", adapter_names="p1", **OPTIONS), pipe(ASKED[2], **OPTIONS)]
    assert together == apart


def test_rows_of_a_template_that_is_told_as_a_chat():
    tokenizer = chat_tokenizer("chatml")
    words = {"1": "complaint", "2": "no complaint"}
    chat = ChatFormat(system_message="Be kind.")
    template = PromptTemplate("Message : {message}", label_column="label", label_words=words, chat=chat)
    plain = PromptTemplate("Message : {message}", label_column="label", label_words=words)
    model = made(tokenizer, template, plain)
    pipe = pipeline("prompt-classification", model=model, tokenizer=tokenizer, top_k=None)
    coder = model.row_encoder(tokenizer)
    texts = ["never came", "thank you for the quick help"]
    found = pipe(texts, batch_size=2)
    for text, labels in zip(texts, found, strict=True):
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Message : {text}"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        scores = []
        for answer in coder.label_token_ids:
            row = torch.tensor([ids + answer])
            with torch.no_grad():
                loss = model(input_ids=row, labels=torch.tensor([[-100] * len(ids) + answer])).loss
            scores.append(-loss.item() * len(answer))
        expected = dict(zip(words.values(), torch.tensor(scores).softmax(0).tolist(), strict=True))
        assert {label["label"]: label["score"] for label in labels} == pytest.approx(expected, abs=1e-4)
    mixed = pipe(texts, adapter_names=["default", "p1"], batch_size=2)
    assert mixed[0] == [pytest.approx(label) for label in found[0]]


def left_out(caplog):
    """What was told of rows of which the chat template leaves something out."""
    messages, start = [text for text in caplog.messages if "the chat template does not write" in text], "sees it: "
    caplog.clear()
    return [text.partition(start)[2].partition(". Give")[0] for text in messages]


def test_one_warning_a_call_names_the_first_row_of_which_the_template_leaves_something_out(caplog):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = (
        tokenizer.chat_template.replace("{{ '<|im_start|>'", "{% if m.role != 'tool' %}{{ '<|im_start|>'")
        .replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
        .replace("message in", "m in")
        .replace("message[", "m[")
    )
    model = made(tokenizer, ChatTemplate(), TEXT)
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    dropped = [*CHATS[0], {"role": "tool", "content": "7"}, {"role": "user", "content": "day"}]
    what = "the text of message 5, the tool's"
    for inputs in ([ASKED[0], dropped, ASKED[1], dropped], [{"messages": ASKED[0]}, {"messages": dropped}]):
        for size in (1, 2):
            pipe(inputs, batch_size=size, **OPTIONS)
            assert left_out(caplog) == [f"first row 2, {what}"]
    with_other = pipe(["never came", dropped], adapter_names=["p1", "default"], batch_size=2, **OPTIONS)
    assert left_out(caplog) == [f"first row 2, {what}"] and len(with_other) == 2
    for single in (dropped, {"messages": dropped}):
        pipe(single, **OPTIONS)
        assert left_out(caplog) == [what]
    several = (pipe((chat for chat in (dropped, dropped)), **OPTIONS) for _ in range(2))
    for pair in zip(*several, strict=True):
        assert len(pair) == 2
    assert left_out(caplog) == [f"first row 1, {what}"] * 2  # two calls, whose rows come by turns
    pipe(ASKED, **OPTIONS)
    assert left_out(caplog) == []


def test_a_classification_warns_of_what_its_chat_template_leaves_out(caplog):
    tokenizer = chat_tokenizer("chatml")
    loop = "{% for message in messages if message['role'] != 'system' %}"
    chat = ChatFormat(tokenizer.chat_template.replace("{% for message in messages %}", loop), "Be kind.")
    words = {"1": "complaint", "2": "no complaint"}
    model = made(tokenizer, PromptTemplate("{message}", label_column="label", label_words=words, chat=chat))
    pipe = pipeline("prompt-classification", model=model, tokenizer=tokenizer)
    pipe(["never came", "why"], batch_size=2)
    assert left_out(caplog) == ["first row 1, the text of the message in front of the row's own, the system's"]


def test_a_refusal_names_the_row_and_the_message():
    tokenizer = chat_tokenizer("chatml")
    pipe = pipeline("prompt-generation", model=made(tokenizer, ChatTemplate()), tokenizer=tokenizer)
    wrong = [*CHATS[1], {"role": "bot", "content": "well"}]
    for inputs in ([ASKED[0], wrong], (chat for chat in [ASKED[0], wrong])):
        with pytest.raises(PromptTuningError, match=r"^row 2: message 3 has the role 'bot'"):
            list(pipe(inputs, **OPTIONS))
    with pytest.raises(PromptTuningError, match=r"^message 3 has the role 'bot'"):
        pipe(wrong, **OPTIONS)


def test_refused():
    tokenizer = chat_tokenizer("chatml")
    model = made(tokenizer, ChatTemplate(), TEXT)
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    with pytest.raises(PromptTuningError, match="inputs hold a chat"):
        pipe([ASKED[0]], adapter_names="p1")
    with pytest.raises(PromptTuningError, match="give a list of messages, a row with the column 'messages'"):
        pipe({"message": "never came"})
    with pytest.raises(PromptTuningError, match="return_full_text is True"):
        pipe(ASKED[0], return_full_text=True)

"""Conversations become the token ids of `apply_chat_template`, and labels of what the assistant writes."""

from importlib.resources import files

import numpy as np
import pytest
from datasets import Dataset

from hf_prompt_tuning import ChatFormat, ChatTemplate, ChatTokenizer, PromptTokenizer, PromptTuningError
from hf_prompt_tuning.data import chat_targets
from tests.shared.chat_templates import CHATML, FAMILIES, MARKED, chat_tokenizer
from tests.shared.conversations import SYSTEM, TURNS
from tests.shared.versions import WITHOUT_TRL

ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "qwen3": "<|im_end|>",
    "phi": "<|end|>",
    "tools": "<|im_end|>",
}


def encoder(tokenizer, template=None, **values):
    return ChatTokenizer(template or ChatTemplate(chat=ChatFormat(**values)), tokenizer, False)


def said(tokenizer, encoded):
    """The labelled runs of a row, as texts."""
    runs, last = [], -2
    for place, label in enumerate(encoded["labels"]):
        if label != -100:
            assert label == encoded["input_ids"][place]
            runs = [*runs, []] if place != last + 1 else runs
            runs[-1].append(label)
            last = place
    return [tokenizer.decode(run) for run in runs]


def conversation(name):
    return [SYSTEM, *TURNS] if FAMILIES[name].has_system else TURNS


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_turn_is_what_the_template_writes(name):
    tokenizer = chat_tokenizer(name)
    messages = conversation(name)
    encoded = encoder(tokenizer, assistant_loss="last").encode({"messages": messages})
    assert encoded["input_ids"] == tokenizer.apply_chat_template(messages)["input_ids"]
    answer = {"mistral": " quick help", "qwen3": "<think>\n\n</think>\n\nquick help"}.get(name, "quick help")
    assert said(tokenizer, encoded) == [answer + ENDS[name]]
    before = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert encoder(tokenizer).source_ids({"messages": messages}) == (before, False)
    assert encoded["labels"][: len(before)] == [-100] * len(before)
    assert encoded["labels"][len(before)] != -100


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "phi", "tools"])
def test_all_turns_are_what_the_template_writes(name):
    tokenizer = chat_tokenizer(name)
    encoded = encoder(tokenizer).encode({"messages": conversation(name)})
    assert encoded["input_ids"] == tokenizer.apply_chat_template(conversation(name))["input_ids"]
    assert said(tokenizer, encoded) == ["thank you" + ENDS[name], "quick help" + ENDS[name]]
    assert encoded["length"] == len(encoded["input_ids"]) and not encoded["was_cut"]


@pytest.mark.parametrize(("name", "messages"), [("mistral", [SYSTEM, *TURNS]), ("qwen3", TURNS)])
def test_a_template_that_writes_earlier_turns_anew_is_refused_by_name(name, messages):
    tokenizer = chat_tokenizer(name)
    with pytest.raises(PromptTuningError, match="otherwise than within the whole"):
        encoder(tokenizer).encode({"messages": messages})
    assert len(said(tokenizer, encoder(tokenizer, assistant_loss="last").encode({"messages": messages}))) == 1


def test_what_stands_the_same_alone_is_not_refused():
    """Mistral's template without a system text, Qwen 3's with one turn."""
    tokenizer = chat_tokenizer("mistral")
    assert said(tokenizer, encoder(tokenizer).encode({"messages": TURNS})) == [" thank you</s>", " quick help</s>"]
    tokenizer = chat_tokenizer("qwen3")
    one = said(tokenizer, encoder(tokenizer).encode({"messages": TURNS[:2]}))
    assert one == ["<think>\n\n</think>\n\nthank you<|im_end|>"]
    reasoning = [TURNS[0], {"role": "assistant", "content": "thank you", "reasoning_content": "Be kind"}]
    one = said(tokenizer, encoder(tokenizer).encode({"messages": reasoning}))
    assert one == ["<think>\nBe kind\n</think>\n\nthank you<|im_end|>"]


def test_variables_of_the_template():
    """Without thinking, the empty thinking block is before what the model writes. A row's own value counts."""
    tokenizer = chat_tokenizer("qwen3")
    plain = encoder(tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert said(tokenizer, plain.encode({"messages": TURNS[:2]})) == ["thank you<|im_end|>"]
    row = {"messages": TURNS[:2], "chat_template_kwargs": {"enable_thinking": True, "other": None}}
    assert said(tokenizer, plain.encode(row)) == ["<think>\n\n</think>\n\nthank you<|im_end|>"]


CALL = {"type": "function", "function": {"name": "lines", "arguments": {"town": "old", "day": None}}}
TOOLS = [{"type": "function", "function": {"name": "lines", "description": "Lines that are down"}}]
WITH_TOOLS = [
    TURNS[0],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "down"},
    {"role": "assistant", "content": "line down", "tool_calls": None},
    TURNS[2],
    {"role": "assistant", "content": "help", "tool_calls": []},
]
CALLED = '<tool_call>\n{"name": "lines", "arguments": {"town": "old"}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize("tools", [TOOLS, '[{"type": "function", "function": {"name": "lines"}}]'])
def test_tools_and_calls(tools):
    tokenizer = chat_tokenizer("tools")
    encoded = encoder(tokenizer).encode({"messages": WITH_TOOLS, "tools": tools})
    assert said(tokenizer, encoded) == [CALLED, "line down<|im_end|>", "help<|im_end|>"]
    text = tokenizer.decode(encoded["input_ids"])
    assert text.startswith('<|im_start|>system\n# Tools\n{"type": "function", "function": {"name": "lines"')
    assert "<|im_start|>tool\ndown<|im_end|>\n" in text and "None" not in text and "null" not in text
    thinking = chat_tokenizer("qwen3")
    row = {"messages": WITH_TOOLS[:2], "tools": tools}
    assert said(thinking, encoder(thinking).encode(row)) == ["<think>\n\n</think>\n\n" + CALLED]


@pytest.mark.parametrize("which", ["all", "last"])
@pytest.mark.parametrize("name", MARKED)
def test_markers_are_those_that_transformers_reads(name, which):
    tokenizer = chat_tokenizer(name, marked=True)
    rows = [conversation(name), TURNS[:2], [*TURNS, *TURNS[:3]]]
    for messages in rows:
        encoded = encoder(tokenizer, assistant_loss=which).encode({"messages": messages})
        if which == "last" and messages[-1]["role"] == "user":
            messages = messages[:-1]  # what comes after the last turn is left out
        expected = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
        assert encoded["input_ids"] == expected["input_ids"]
        mask = np.array(expected["assistant_masks"])
        if which == "last":
            last = np.flatnonzero(np.diff([0, *mask]) == 1)[-1]
            mask[:last] = 0
        assert [label != -100 for label in encoded["labels"]] == mask.astype(bool).tolist()


@pytest.mark.parametrize(
    ("trl", "name", "which"),
    [
        ("llama3", "llama3", "all"),
        ("gemma", "gemma", "all"),
        ("phi3", "phi", "all"),
        ("phi3", "phi", "last"),
        ("qwen2_5", "qwen3", "all"),
        ("qwen3", "qwen3", "last"),
    ],
)
def test_trl_marks_the_same_in_its_own_templates(trl, name, which):
    """TRL ships templates of models, and beside each the same one with markers."""
    pytest.importorskip("trl", reason=WITHOUT_TRL)
    folder = files("trl") / "chat_templates"
    tokenizer = chat_tokenizer(name)
    tokenizer.chat_template = (folder / f"{trl}.jinja").read_text(encoding="utf-8")
    messages = conversation(name)
    ours = encoder(tokenizer, assistant_loss=which).encode({"messages": messages})
    marked = (folder / f"{trl}_training.jinja").read_text(encoding="utf-8")
    theirs = encoder(tokenizer, chat_template=marked, assistant_loss=which).encode({"messages": messages})
    # TRL's templates mark the white space around a turn, too, and Phi's end of the text.
    assert said(tokenizer, ours) == [
        text.strip("\n").removesuffix("<|endoftext|>").strip("\n") for text in said(tokenizer, theirs)
    ]


def test_trl_marks_the_same_calls_of_tools():
    pytest.importorskip("trl", reason=WITHOUT_TRL)
    folder = files("trl") / "chat_templates"
    plain, marked = ((folder / f"qwen2_5{kind}.jinja").read_text(encoding="utf-8") for kind in ("", "_training"))
    tokenizer = chat_tokenizer("qwen3")
    row = {"messages": WITH_TOOLS, "tools": TOOLS}
    ours = encoder(tokenizer, chat_template=plain).encode(row)
    theirs = encoder(tokenizer, chat_template=marked).encode(row)
    assert ours["input_ids"] == theirs["input_ids"]
    assert said(tokenizer, ours) == [text.strip("\n") for text in said(tokenizer, theirs)]
    assert len(said(tokenizer, ours)) == 3


def test_a_marked_template_that_writes_a_prompts_own_answers_anew_is_refused():
    """The prompt's last answer keeps its reasoning until a user's turn follows, so its place is not the same."""
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.reasoning if loop.index0 > ns.last else '' }}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    answers = [{"role": "assistant", "content": text, "reasoning": "so "} for text in ("call", "one", "two")]
    prompt = [TURNS[0], answers[0], {"role": "tool", "content": "3"}]
    coder = encoder(tokenizer, ChatTemplate("prompt", completion_column="completion"))
    assert said(tokenizer, coder.encode({"prompt": prompt, "completion": [answers[1]]})) == ["so one<|im_end|>"]
    with pytest.raises(PromptTuningError, match=r"before message 4 otherwise than within the whole .*'last'"):
        coder.encode({"prompt": prompt, "completion": [answers[1], TURNS[2], answers[2]]})
    last = encoder(tokenizer, assistant_loss="last").encode({"messages": [*prompt, answers[1], TURNS[2], answers[2]]})
    assert said(tokenizer, last) == ["so two<|im_end|>"]


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_bos_stands_once(name):
    """Where the tokenizer writes one in front of a text as well."""
    tokenizer = chat_tokenizer(name)
    assert tokenizer("never")["input_ids"][0] == tokenizer.bos_token_id
    encoded = encoder(tokenizer, assistant_loss="last").encode({"messages": conversation(name)})
    assert (
        encoded["input_ids"].count(tokenizer.bos_token_id) == 1 and encoded["input_ids"][0] == tokenizer.bos_token_id
    )
    ids, _ = encoder(tokenizer).source_ids({"messages": conversation(name)})
    assert ids.count(tokenizer.bos_token_id) == 1


def rendered(tokenizer, messages, **values):
    return tokenizer.apply_chat_template(messages, **values)["input_ids"]


def test_rows_in_every_form():
    tokenizer = chat_tokenizer("chatml")
    expected = encoder(tokenizer).encode({"messages": TURNS})
    parts = [{**m, "content": [{"type": "text", "text": m["content"][:3]}, {"text": m["content"][3:]}]} for m in TURNS]
    assert encoder(tokenizer).encode({"messages": parts}) == expected
    assert encoder(tokenizer).encode({"messages": np.array(TURNS, dtype=object)}) == expected
    arrays = [m | {"content": np.array(m["content"], dtype=object)} for m in parts]  # as pandas reads parquet
    assert encoder(tokenizer).encode({"messages": np.array(arrays, dtype=object)}) == expected
    calls = [{"function": {"name": name, "arguments": {}}} for name in "ab"]
    row = [TURNS[0], {"role": "assistant", "tool_calls": np.array(calls, dtype=object)}]
    assert ChatTemplate().conversation({"messages": row}).messages[1]["tool_calls"] == calls
    roles = {"user": "human", "assistant": "gpt"}
    sharegpt = [{"from": roles[m["role"]], "value": m["content"]} for m in TURNS]
    template = ChatTemplate("conversations")
    assert encoder(tokenizer, template).encode({"conversations": sharegpt}) == expected
    # A prompt's own answers are no targets.
    template = ChatTemplate("prompt", completion_column="completion")
    pair = encoder(tokenizer, template).encode({"prompt": TURNS[:3], "completion": TURNS[3:]})
    assert pair["input_ids"] == expected["input_ids"]
    assert said(tokenizer, pair) == ["quick help<|im_end|>"]
    text = encoder(tokenizer, template).encode({"prompt": "never came", "completion": "thank you"})
    assert text == encoder(tokenizer).encode({"messages": TURNS[:2]})


def test_the_system_turn():
    tokenizer = chat_tokenizer("chatml")
    kind = encoder(tokenizer, system_message="Be kind.")
    assert kind.encode({"messages": TURNS})["input_ids"] == rendered(tokenizer, [SYSTEM, *TURNS])
    other = [{"role": "system", "content": "Be quick."}, *TURNS]
    assert kind.encode({"messages": other})["input_ids"] == rendered(tokenizer, other)
    always = ChatTokenizer(ChatTemplate(), tokenizer, False, always_system=True)
    empty = [{"role": "system", "content": ""}, *TURNS]
    assert always.encode({"messages": TURNS})["input_ids"] == rendered(tokenizer, empty)
    assert always.source_ids({"messages": TURNS})[0] == rendered(tokenizer, empty[:-1], add_generation_prompt=True)
    assert encoder(tokenizer, system_message="").encode({"messages": TURNS})["input_ids"] == rendered(tokenizer, empty)
    with pytest.raises(PromptTuningError, match="conversation of system, user, assistant: System role not supported"):
        encoder(chat_tokenizer("gemma"), system_message="Be kind.")
    with pytest.raises(PromptTuningError, match="system_message is ' '; give a text"):
        encoder(tokenizer, system_message=" ")


def test_whole_turns_are_left_out_from_the_front(caplog):
    tokenizer = chat_tokenizer("chatml")
    long = [SYSTEM, *TURNS, TURNS[0], {"role": "assistant", "content": "great help"}]
    lengths = [len(rendered(tokenizer, [SYSTEM, *long[i:-1]], add_generation_prompt=True)) for i in (1, 3, 5)]
    for kept, limit in ((1, lengths[0]), (3, lengths[0] - 1), (3, lengths[1]), (5, lengths[1] - 1), (5, lengths[2])):
        cut = encoder(tokenizer, ChatTemplate(max_source_length=limit))
        encoded = cut.encode({"messages": long})
        assert encoded["input_ids"] == rendered(tokenizer, [SYSTEM, *long[kept:]])
        assert encoded["was_cut"] == (kept > 1)
        source = rendered(tokenizer, [SYSTEM, *long[kept:-1]], add_generation_prompt=True)
        assert cut.source_ids({"messages": long}) == (source, kept > 1)
        assert cut.content_ids(long[:-1]) == source  # a chat as a caller holds it
    rows = Dataset.from_list([{"messages": long}, {"messages": TURNS[:2]}])
    data = cut.encode_dataset(rows, "training")
    assert data.column_names == ["input_ids", "labels", "length"]
    assert "Of 1 of 2 training rows the first turns were left out, to max_source_length" in caplog.text
    told_of_calls = caplog.text
    caplog.clear()
    assert len(list(cut.encode_dataset(rows.to_iterable_dataset(), "streamed"))) == 2
    (told,) = caplog.messages
    assert told.startswith("Row 1 is the first of the streamed stream whose first turns are left out, to max_source_l")
    assert f"4 turns of a chat were left out, to max_source_length={lengths[2]} tokens." in told_of_calls
    short = encoder(tokenizer, ChatTemplate(max_source_length=lengths[2] - 1))
    with pytest.raises(PromptTuningError, match=f"the last turn of the conversation takes {lengths[2]} tokens"):
        short.content_ids(long[:-1])
    match = f"row 1 of the training data: the last turn of the conversation takes {lengths[2]} tokens"
    with pytest.raises(PromptTuningError, match=match):
        short.encode_dataset(rows, "training")


def test_a_row_without_an_answer():
    """It is one to answer; training needs one."""
    tokenizer = chat_tokenizer("chatml")
    for messages in (TURNS[:1], TURNS[:3]):  # an earlier answer is not judged in place of the one that is asked for
        encoded = encoder(tokenizer).encode({"messages": messages}, require_target=False)
        assert encoded["input_ids"] == rendered(tokenizer, messages, add_generation_prompt=True)
        assert set(encoded["labels"]) == {-100}
        assert ChatTemplate().shown({"messages": messages}) == messages
    assert ChatTemplate().shown({"messages": TURNS}) == TURNS[:3]
    encoded = encoder(tokenizer).encode({"messages": TURNS[:3]})  # in training they are what is there to learn
    assert said(tokenizer, encoded) == ["thank you<|im_end|>"]
    with pytest.raises(PromptTuningError, match=r"the row has no turn of the assistant \(roles: user\)"):
        encoder(tokenizer).encode({"messages": TURNS[:1]})


def test_rows_that_get_an_answer_are_counted(caplog):
    coder = encoder(chat_tokenizer("chatml"))
    rows = [{"messages": TURNS[:n]} for n in (2, 3, 4, 1)]
    encoded = coder.encode_dataset(Dataset.from_list(rows), "evaluation", require_target=False)
    assert [max(labels) > -100 for labels in encoded["labels"]] == [True, False, True, False]
    assert caplog.messages == [
        "2 of 4 evaluation rows have no answer at their end: they get one, and are compared with nothing."
    ]
    caplog.clear()
    for some, wants in ((rows[:1] + rows[2:3], False), (rows[1:2], False), (rows[:3], True)):
        coder.encode_dataset(Dataset.from_list(some), "some", require_target=wants)
    assert not caplog.messages


def test_chats_to_answer_or_to_continue():
    tokenizer = chat_tokenizer("llama3")
    coder = encoder(tokenizer)
    asked = rendered(tokenizer, TURNS[:3], add_generation_prompt=True)
    assert coder.content_ids(TURNS[:3]) == asked
    assert coder.content_ids({"messages": TURNS}) == asked
    assert coder.content_ids({"messages": TURNS[:3]}) == asked  # its last turn, not the assistant's before it
    assert coder.content_ids("why") == rendered(tokenizer, TURNS[2:3], add_generation_prompt=True)
    assert coder.content_ids(TURNS) == rendered(tokenizer, TURNS, continue_final_message=True)
    with pytest.raises(PromptTuningError, match="give a list of messages, a row with the column 'messages'"):
        coder.content_ids({"text": "why"})


def test_an_answer_that_begins_within_a_token_is_warned_of(caplog):
    """As TRL warns: in use the space stands alone."""
    tokenizer = chat_tokenizer("chatml")
    spaced = CHATML.replace("assistant\n", "assistant ").replace("message['role'] + '\n'", "message['role'] + ' '")
    coder = encoder(tokenizer, chat_template=spaced)
    assert "'im_start|>assistant ' before the assistant's text" in caplog.text
    assert "ends with a special token there" in caplog.text and "line break" not in caplog.text
    encoder(tokenizer, chat_template=spaced, assistant_loss="last")  # a run makes several, and is warned once
    assert len(caplog.records) == 1
    encoded = coder.encode({"messages": TURNS[:2]})
    assert encoded["input_ids"] == rendered(tokenizer, TURNS[:2], chat_template=spaced)
    assert said(tokenizer, encoded) == [" thank you<|im_end|>"]
    caplog.clear()
    for name in FAMILIES:
        encoder(chat_tokenizer(name))
    assert not caplog.records


def test_a_system_message_that_the_template_refuses_is_to_be_left_out():
    with pytest.raises(
        PromptTuningError, match=r"System role not supported\. Leave out system_message if the template"
    ):
        encoder(chat_tokenizer("gemma"), system_message="Be kind.")
    with pytest.raises(PromptTuningError, match=r"System role not supported\. Correct the messages, or give another"):
        encoder(chat_tokenizer("gemma")).encode({"messages": [SYSTEM, *TURNS]})
    kind = CHATML + "{% if messages[0].content == 'Be rude.' %}{{ raise_exception('no') }}{% endif %}"
    with pytest.raises(PromptTuningError, match=r"no\. Correct the messages, or give another"):
        rude = {"role": "system", "content": "Be rude."}
        encoder(chat_tokenizer("chatml"), chat_template=kind, system_message="Be kind.").encode(
            {"messages": [rude, *TURNS]}
        )


def test_a_tokenizer_with_several_templates():
    """transformers takes the one for tools where there are tools."""
    tokenizer = chat_tokenizer("tools")
    tokenizer.chat_template = {"default": CHATML, "tool_use": FAMILIES["tools"].template}
    coder = encoder(tokenizer)
    assert coder.template.chat.chat_template is None
    for row in ({"messages": TURNS}, {"messages": WITH_TOOLS, "tools": TOOLS}):
        messages = [{key: value for key, value in turn.items() if value is not None} for turn in row["messages"]]
        expected = rendered(tokenizer, messages, tools=row.get("tools"))
        if "tools" not in row:
            assert coder.encode(row)["input_ids"] == expected
        else:
            assert tokenizer.decode(coder.encode(row)["input_ids"]).startswith("<|im_start|>system\n# Tools")


def test_a_turn_may_end_with_several_special_tokens():
    """Those that stand there whether a turn follows or not."""
    tokenizer = chat_tokenizer("chatml")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|done|>", "<|over|>"]})
    several = CHATML.replace("'<|im_end|>\n'", "'<|done|><|im_end|>'")
    several = several.removesuffix("{% endif %}") + "{% else %}{{ '<|over|>' }}{% endif %}"
    coder = encoder(tokenizer, chat_template=several)
    encoded = coder.encode({"messages": TURNS})
    assert said(tokenizer, encoded) == ["thank you<|done|><|im_end|>", "quick help<|done|><|im_end|>"]
    assert coder.end_ids == [tokenizer.eos_token_id]


def test_a_tokenizer_without_offsets_gives_the_same():
    tokenizer = chat_tokenizer("chatml")
    chats = encoder(tokenizer).chats
    text = tokenizer.apply_chat_template([SYSTEM, *TURNS], tokenize=False)
    spans = [(text.index("thank"), text.index("thank") + 19), (text.index("quick"), len(text) - 1)]
    assert chat_targets._tokens_by_parts(chats, text, spans) == chat_targets.tokens(chats, text, spans)
    assert sum(chat_targets.tokens(chats, text, spans)[1]) == len(
        tokenizer.encode("thank you<|im_end|>quick help<|im_end|>")
    )


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        (None, r"\{messages\} is missing; give a list of messages"),
        ("why", r"\{messages\} is 'why'; give a list of messages"),
        ([], r"\{messages\} is \[\]"),
        (["why"], r"message 1 of \{messages\} is 'why'; give a mapping with 'role' and 'content'"),
        ([{"content": "why"}], "message 1 .* give a mapping with 'role'"),
        ([{"role": None, "content": "why"}], "has the role None; give a text"),
        ([{"from": ["x"], "value": "why"}], r"message 1 .* has the role \['x'\]; give a text"),
        ([{"from": {"x": 1}, "value": "why"}], r"message 1 .* has the role \{'x': 1\}; give a text"),
        ([{"role": ["x"], "content": "why"}], r"message 1 .* has the role \['x'\]; give a text"),
        ([{"role": "user", "content": None}], "message 1 .* has no content"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a prompt is tuned on text"),
        ([{"role": "user", "content": 3}], "a prompt is tuned on text"),
        ([TURNS[0], {"role": "assistant", "content": " "}], "message 2, the assistant's, is empty"),
        ([TURNS[0], {"role": "assistant"}], "message 2, the assistant's, is empty|cannot render"),
        (TURNS[1:], "the conversation begins with the assistant's turn"),
    ],
)
def test_refused_rows(messages, match):
    with pytest.raises(PromptTuningError, match=match):
        encoder(chat_tokenizer("tools")).encode({"messages": messages})


def test_refused_otherwise():
    tokenizer = chat_tokenizer("chatml")
    with pytest.raises(PromptTuningError, match="roles must alternate"):
        encoder(chat_tokenizer("gemma")).encode({"messages": [TURNS[0], TURNS[0], TURNS[1]]})
    with pytest.raises(PromptTuningError, match=r"\{tools\} is 'lines', not JSON"):
        encoder(tokenizer).encode({"messages": TURNS, "tools": "lines"})
    with pytest.raises(PromptTuningError, match="chat_template_kwargs has 'messages', which is set by this package"):
        encoder(tokenizer).encode({"messages": TURNS, "chat_template_kwargs": {"messages": 1}})
    with pytest.raises(PromptTuningError, match="the last target takes 5 tokens and max_target_length is 2"):
        encoder(tokenizer, ChatTemplate(max_target_length=2)).encode({"messages": TURNS})
    with pytest.raises(PromptTuningError, match="messages_column 'messages' is no column of the training data"):
        encoder(tokenizer).encode_dataset(Dataset.from_list([{"chat": TURNS}]), "training")
    with pytest.raises(PromptTuningError, match="chats are given to an encoder-decoder model"):
        ChatTokenizer(ChatTemplate(), tokenizer, True)
    with pytest.raises(PromptTuningError, match=r"behind the assistant's turn, and no special token"):
        encoder(tokenizer, chat_template="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    with pytest.raises(
        PromptTuningError, match="cannot render a conversation of user, assistant: Unexpected end of template"
    ):
        encoder(tokenizer, chat_template="{% for m in messages %}")
    tokenizer.chat_template = None
    with pytest.raises(PromptTuningError, match="has no chat template; give one as chat_template"):
        encoder(tokenizer)
    for values, match in (
        ({"chat_template": ""}, "chat_template is ''; give a text"),
        ({"system_message": 3}, "system_message is 3; give a text"),
        ({"assistant_loss": "first"}, "assistant_loss is 'first'; give 'all'"),
        ({"chat_template_kwargs": {"tokenize": False}}, "has 'tokenize', which is set"),
        ({"chat_template_kwargs": {"a": {1}}}, "which JSON cannot hold"),
        ({"chat_template_kwargs": [1]}, "give variables by name"),
    ):
        with pytest.raises(PromptTuningError, match=match):
            ChatFormat(**values)
    for values, match in (
        ({"messages_column": ""}, "messages_column is ''; give a column's name"),
        ({"max_source_length": 0}, "max_source_length is 0; give 1 or more"),
        ({"chat": "all"}, "chat is a str; give a ChatFormat"),
    ):
        with pytest.raises(PromptTuningError, match=match):
            ChatTemplate(**values)


def test_a_chat_template_of_texts_is_for_the_other_tokenizer():
    with pytest.raises(PromptTuningError, match="template is a ChatTemplate, and PromptTokenizer takes a PromptT"):
        PromptTokenizer(ChatTemplate(), chat_tokenizer("chatml"), False)

"""A prompt that starts from training rows starts as these rows, written as they are read in training."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value

from hf_prompt_tuning import (
    ChatFormat,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.data.examples import example_ids
from hf_prompt_tuning.data.tokenization import PromptTokenizer
from hf_prompt_tuning.models.create import add_prompt
from tests.shared.start_rows import EXAMPLES, TEMPLATE
from tests.shared.tiny_models import make_tokenizer, tiny_model

FREE = PromptTemplate("{message} =>", target="{answer}")


def texts_of(rows, length=120, seed=0, template=TEMPLATE, kind="gpt2"):
    """The examples as texts. The first one lacks its beginning."""
    tokenizer = make_tokenizer(kind)
    torch.manual_seed(seed)
    ids = example_ids(rows, template, tokenizer, length)
    assert len(ids) == length
    assert not set(ids) & set(tokenizer.all_special_ids)
    return tokenizer.decode(ids).split("\n\n")


def whole(row, words={"1": "sad", "2": "glad"}):  # noqa: B006
    return f"Message : {row['message']} Label : {words[row['label']]}"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_examples_are_the_tokens_of_training_rows(messages, kind):
    """The tokens are those of a row in training, but for BOS and EOS, whatever tokenizer writes them."""
    tokenizer = make_tokenizer(kind)
    encoder = PromptTokenizer(TEMPLATE, tokenizer, is_encoder_decoder=False)
    known = {
        tuple(i for i in encoder.encode(row)["input_ids"] if i not in tokenizer.all_special_ids) for row in messages
    }
    torch.manual_seed(1)
    ids = example_ids(messages, TEMPLATE, tokenizer, 400)
    found = 0
    for row in known:
        found += any(tuple(ids[i : i + len(row)]) == row for i in range(len(ids)))
    assert found >= 6


def test_each_label_in_turn_and_the_last_turn_is_complete(messages):
    first, *examples, end = texts_of(messages, 240)
    assert end == ""  # the line between the last example and the row
    by_text = {whole(row): row["label"] for row in messages}
    labels = [by_text[text] for text in examples]  # all but the first are whole, and as in the data
    assert len(labels) >= 6
    turns = labels[len(labels) % 2 :]
    assert all({one, other} == {"1", "2"} for one, other in zip(turns[::2], turns[1::2], strict=True))
    assert len(set(examples[-6:])) == 6  # no row twice while there are others
    assert any(text.endswith(first) for text in by_text)


THREE = PromptTemplate("Message : {message} Label :", label_column="label")


@pytest.mark.parametrize("seed", range(20))
def test_every_label_is_there_if_there_is_room(messages, seed):
    rows = [row | {"label": ("sad", "glad", "odd")[i % 3]} for i, row in enumerate(messages)]
    *examples, end = texts_of(rows, 130, seed, THREE)
    assert end == ""
    labels = [text.split(" ")[-1] for text in examples]
    assert set(labels[-3:]) == {"sad", "glad", "odd"}


def test_the_log_says_what_it_starts_from(messages, caplog):
    caplog.set_level("INFO", "hf_prompt_tuning")
    known = {whole(row) for row in messages}
    examples = [text for text in texts_of(messages, 141) if text in known]
    assert f"The prompt starts from training rows: {len(examples)} examples are whole." in caplog.text
    assert "num_virtual_tokens is" not in caplog.text
    rows = [{"message": f"never came {'again ' * 20}{i}", "label": str(1 + i % 2)} for i in range(4)]
    last = texts_of(rows, 50)[-2]
    missing = "glad" if last.endswith("sad") else "sad"
    assert f"is 50, and of the examples that the prompt starts from none of '{missing}' is whole" in caplog.text
    assert "Give so many, or shorter rows (max_source_length)." in caplog.text
    texts_of(rows, 20)
    assert "is 20, and of the examples that the prompt starts from none of 'sad', 'glad' is whole" in caplog.text


@pytest.mark.parametrize("seed", range(6))
def test_rows_for_which_there_is_no_room_are_passed_over(messages, seed, caplog):
    """A few long rows would fill the prompt with parts of them; a label whose rows are all long has one of them."""
    long = [{"message": "never came again " * 60, "label": label} for label in "1212"]
    *examples, end = texts_of([*long, *messages], 141, seed)
    assert end == "" and set(examples[1:]) <= {whole(row) for row in messages} and caplog.text == ""
    short = [row for row in messages if row["label"] == "1"]
    examples = texts_of([*long, *short], 141, seed)[1:-1]
    assert {text for text in examples if text.endswith("sad")} <= {whole(row) for row in short}
    assert "'glad' is whole" in caplog.text


def test_an_unequal_class_has_its_turn(messages):
    rows = [row for row in messages if row["label"] == "1"] + [messages[1]]
    labels = [text.rsplit(" ", 1)[1] for text in texts_of(rows, 200)[1:-1]]
    assert abs(labels.count("sad") - labels.count("glad")) <= 2  # the first row may be a part of its turn


def test_few_rows_follow_again(messages):
    rows = messages[:2]
    examples = texts_of(rows, 150)[1:-1]
    assert set(examples) == {whole(row) for row in rows}
    assert len(examples) > 2


def test_the_seed_decides(messages):
    assert texts_of(messages, seed=3) == texts_of(messages, seed=3)
    assert texts_of(messages, seed=3) != texts_of(messages, seed=4)


def test_a_short_prompt_has_the_end_of_one_row(messages):
    rows = [{"message": "why is my line down again and again and again", "label": "1"}]
    (text, end) = texts_of(rows, 6)
    assert whole(rows[0]).endswith(text) and text.endswith("sad") and end == ""


def test_a_text_stands_before_them(tokenizer, messages):
    torch.manual_seed(0)
    ids = example_ids(messages, TEMPLATE, tokenizer, 90, "How does it sound?")
    assert len(ids) == 90
    text, first, *examples, end = tokenizer.decode(ids).split("\n\n")
    assert (text, end) == ("How does it sound?", "")
    assert examples and set(examples) <= {whole(row) for row in messages}
    assert any(whole(row).endswith(first) for row in messages)
    with pytest.raises(PromptTuningError, match=r"the text before them, 'How does it sound\?', takes .* tokens of 4"):
        example_ids(messages, TEMPLATE, tokenizer, 4, "How does it sound?")


def test_free_text_and_rows_without_a_target(messages):
    rows = [{"message": row["message"], "answer": "yes" if i % 3 else None} for i, row in enumerate(messages)]
    examples = texts_of(rows, 200, template=FREE)[1:-1]
    known = {f"{row['message']} => yes" for row in rows if row["answer"]}
    assert set(examples) <= known and len(set(examples)) > 4


def test_numbers_of_a_class_label_column(messages):
    features = Features({"message": Value("string"), "label": ClassLabel(names=["sad_one", "glad_one"])})
    rows = Dataset.from_list([row | {"label": int(row["label"]) - 1} for row in messages], features=features)
    template = PromptTemplate("Message : {message} Label :", label_column="label")  # the words are read from the data
    examples = texts_of(rows, 240, template=template)[1:-1]
    assert set(examples) <= {whole(row, {"1": "sad one", "2": "glad one"}) for row in messages}


def test_long_fields_are_cut_as_in_training(messages):
    rows = [{"message": "again " * 50 + str(i), "label": "1"} for i in range(3)]
    template = PromptTemplate(TEMPLATE.source, label_column="label", label_words={"1": "sad"}, max_source_length=20)
    examples = texts_of(rows, 80, template=template)[1:-1]
    assert examples and all(0 < text.count("again") < 20 and text.endswith("Label : sad") for text in examples)


def test_a_chat_is_written_as_plain_text(messages):
    """Rows that are told as chats have their texts in the prompt, without the marks of turns."""
    template = PromptTemplate(
        "{message}", label_column="label", label_words={"1": "sad", "2": "glad"}, chat=ChatFormat()
    )
    examples = texts_of(messages, 200, template=template)[1:-1]
    assert set(examples) <= {f"{row['message']} {TEMPLATE.label_words[row['label']]}" for row in messages}


def test_the_vectors_are_what_the_model_sees_of_them(tokenizer, messages):
    """Behind the prompt, a row has the logits that it has behind these tokens."""
    torch.manual_seed(5)
    ids = example_ids(messages, TEMPLATE, tokenizer, 40)
    torch.manual_seed(5)
    config = PromptTuningConfig(num_virtual_tokens=40, **EXAMPLES)
    backbone = tiny_model("gemma")
    torch.manual_seed(5)
    model = get_prompt_tuning_model(backbone, config, tokenizer, TEMPLATE, train_dataset=messages).eval()
    row = tokenizer("why is my line down")["input_ids"]
    with torch.no_grad():
        behind = model(input_ids=torch.tensor([row])).logits
        expected = tiny_model("gemma").eval()(input_ids=torch.tensor([ids + row])).logits[:, -len(row) :]
    torch.testing.assert_close(behind[:, -len(row) :], expected, rtol=1e-5, atol=1e-5)
    assert config.example_token_ids is None  # the caller's config stays as it was


def test_an_encoder_decoder_starts_from_them_too(messages):
    """Its examples are the same plain text: source and target, without the end that the encoder puts behind a row."""
    tokenizer, config = make_tokenizer("t5"), PromptTuningConfig(num_virtual_tokens=40, **EXAMPLES)
    backbone = tiny_model("t5")
    torch.manual_seed(5)
    model = get_prompt_tuning_model(backbone, config, tokenizer, TEMPLATE, train_dataset=messages)
    torch.manual_seed(5)
    ids = torch.tensor(example_ids(messages, TEMPLATE, tokenizer, 40))
    assert torch.equal(model.prompt, tiny_model("t5").get_input_embeddings()(ids))


def test_the_default_length():
    assert PromptTuningConfig(**EXAMPLES).num_virtual_tokens == 160
    assert PromptTuningConfig(num_virtual_tokens=7, **EXAMPLES).num_virtual_tokens == 7


def test_a_second_prompt(tokenizer, messages):
    model = get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=2), tokenizer)
    torch.manual_seed(2)
    ids = example_ids(messages, TEMPLATE, tokenizer, 9)
    torch.manual_seed(2)
    add_prompt(model, "second", PromptTuningConfig(num_virtual_tokens=9, **EXAMPLES), tokenizer, TEMPLATE, messages)
    embed = tiny_model("llama").get_input_embeddings()
    assert torch.equal(model.prompt_encoder["second"].embedding.weight, embed(torch.tensor(ids)))


@pytest.mark.parametrize("format", ["torch", "numpy", "pandas", "arrow"])
def test_rows_of_any_format(messages, format):
    """As in training, rows are read as plain values, whatever they are formatted as."""
    rows = Dataset.from_list([row | {"label": int(row["label"]), "other": [1, 2]} for row in messages])
    assert texts_of(rows.with_format(format)) == texts_of(rows) == texts_of(messages)
    assert texts_of(rows.with_format(None, columns=["message"])) == texts_of(messages)


def test_other_columns_are_not_read(messages):
    """A column that the template does not name may be pictures: none is decoded."""
    features = Features({"message": Value("string"), "label": Value("string"), "seen": Image()})
    rows = Dataset.from_list([row | {"seen": {"path": "missing.png", "bytes": None}} for row in messages], features)
    assert texts_of(rows) == texts_of(messages)
    template = PromptTemplate("{message} {seen}", label_column="label")
    with pytest.raises(PromptTuningError, match=r"\{seen\} has pictures; examples are texts"):
        example_ids(rows, template, make_tokenizer("gpt2"), 20)


def test_token_ids_beside_the_columns_are_left(messages):
    rows = [row | {"input_ids": [5, 6], "labels": [5, 6]} for row in messages]
    assert texts_of(rows) == texts_of(messages)


def test_a_limit_of_targets_is_not_of_examples(messages):
    """A separator is a token here, and none in an encoder-decoder's target."""
    template = PromptTemplate("{message}", label_column="label", label_words=TEMPLATE.label_words, max_target_length=1)
    free = PromptTemplate("{message}", label_column="label", label_words=TEMPLATE.label_words)
    assert texts_of(messages, template=template) == texts_of(messages, template=free)


STREAM = IterableDataset.from_generator(lambda: iter([{"message": "a", "label": "1"}]))


@pytest.mark.parametrize(
    ("rows", "template", "message"),
    [
        (None, TEMPLATE, "there are no rows to start from. Give train_dataset"),
        (STREAM, TEMPLATE, "the training data is of the type IterableDataset; examples are drawn from a D"),
        ([{"input_ids": [1, 2], "labels": [1, 2]}], TEMPLATE, "the training data is rows of token ids"),
        ([{"message": "a", "label": None}], TEMPLATE, "no training row has a target"),
        ([], FREE, "the training data has no rows; give some"),
        ([{"text": "a", "label": "1"}], TEMPLATE, r"field \{message\} is no column of the training data"),
        ([{"message": "a", "label": "3"}], TEMPLATE, "row 1 of the training data: the label '3' .* has no words"),
        ([{"message": "a", "label": "1"}], None, "the training data has no template; examples are made of rows"),
        ({"train": []}, TEMPLATE, "the training data is a dict"),
    ],
)
def test_what_examples_cannot_be_made_of(tokenizer, rows, template, message):
    backbone = tiny_model("llama")
    with pytest.raises(PromptTuningError, match=message):
        get_prompt_tuning_model(backbone, PromptTuningConfig(**EXAMPLES), tokenizer, template, train_dataset=rows)
    assert all(parameter.requires_grad for parameter in backbone.parameters())  # nothing was changed


def test_a_tokenizer_is_needed(messages):
    with pytest.raises(PromptTuningError, match="prompt_tuning_init is EXAMPLES, which needs a tokenizer"):
        get_prompt_tuning_model(
            tiny_model("llama"), PromptTuningConfig(**EXAMPLES), None, TEMPLATE, train_dataset=messages
        )

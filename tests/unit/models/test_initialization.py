"""A prompt started from tokens behaves exactly like those tokens prepended."""

import numpy as np
import pytest
import torch

from hf_prompt_tuning import PromptTemplate, PromptTuningConfig, PromptTuningError, get_prompt_tuning_model
from hf_prompt_tuning.models.initialization import common_token_ids
from hf_prompt_tuning.prompts.card import start_in_words
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import DECODERS, tiny_model

TEXT = "Classify if the message is a complaint"


def make(name="llama", tokenizer=None, template=None, **config):
    return get_prompt_tuning_model(tiny_model(name), PromptTuningConfig(**config), tokenizer, template)


@pytest.mark.parametrize("name", DECODERS)
def test_text_gives_the_logits_of_the_text_prepended(name, tokenizer):
    text_ids = tokenizer(TEXT)["input_ids"]
    model = make(name, tokenizer, prompt_tuning_init_text=TEXT, num_virtual_tokens=len(text_ids)).eval()
    ids = torch.tensor([tokenizer("why is my line down")["input_ids"]])
    with torch.no_grad():
        behind_prompt = model(input_ids=ids).logits
        prepended = tiny_model(name)(input_ids=torch.cat([torch.tensor([text_ids]), ids], dim=1)).logits
    torch.testing.assert_close(behind_prompt, prepended, rtol=1e-5, atol=1e-5)


def test_a_text_is_repeated_or_cut_to_p(tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    embed = tiny_model("llama").get_input_embeddings()
    long = make("llama", tokenizer, prompt_tuning_init_text=TEXT, num_virtual_tokens=2 * len(ids) + 1)
    assert torch.equal(long.prompt, embed(torch.tensor(ids + ids + ids[:1])))
    short = make("llama", tokenizer, prompt_tuning_init_text=TEXT, num_virtual_tokens=2)
    assert torch.equal(short.prompt, embed(torch.tensor(ids[:2])))


def test_first_vocab_is_the_first_rows():
    model = make(prompt_tuning_init="FIRST_VOCAB", num_virtual_tokens=7)
    assert torch.equal(model.prompt, tiny_model("llama").get_input_embeddings().weight[:7])


def test_sample_vocab_draws_different_common_tokens_by_the_seed(tokenizer):
    def sample(seed):
        torch.manual_seed(seed)
        config = PromptTuningConfig(num_virtual_tokens=20, vocab_sample_size=50)
        backbone = tiny_model("llama")
        torch.manual_seed(seed)
        return get_prompt_tuning_model(backbone, config, tokenizer).prompt.detach()

    rows = tiny_model("llama").get_input_embeddings().weight
    drawn = [int((rows == vector).all(1).nonzero()[0]) for vector in sample(3)]
    assert len(set(drawn)) == 20
    assert set(drawn) <= set(common_token_ids(tokenizer, len(rows), 50))
    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))


def test_common_tokens_leave_out_special_and_byte_tokens(tokenizer):
    ids = common_token_ids(tokenizer, 400, 400)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert not set(tokens) & {"<pad>", "<s>", "</s>", "<unk>", "Ġ", "Ċ", "Ã"}
    assert {"a", "Ġcomplaint"} <= set(tokens)
    assert ids == sorted(ids)
    assert common_token_ids(None, 400, 9) == list(range(9))


def test_class_labels_are_means_of_their_tokens_then_samples(tokenizer):
    template = PromptTemplate(
        source="{message}", label_column="label", label_words={"1": "complaint", "2": "no complaint"}
    )
    model = make("gemma", tokenizer, template, prompt_tuning_init="CLASS_LABELS", num_virtual_tokens=5)
    embed = tiny_model("gemma").get_input_embeddings()
    for row, words in zip(model.prompt, [" complaint", " no complaint"], strict=False):
        mean = embed(torch.tensor(tokenizer(words)["input_ids"])).mean(0)
        torch.testing.assert_close(row, mean)
    rows = embed(torch.arange(400))
    assert all(bool((rows == vector).all(1).any()) for vector in model.prompt[2:])
    assert model.info.initialization["label_words"] == ["complaint", "no complaint"]


def test_labels_beyond_the_vectors_are_told(tokenizer, tmp_path, caplog):
    """A label that no vector starts from is named, and the record and the card have those that vectors start from."""
    words = ["day", "night", "dog", "cat"]
    template = PromptTemplate("{message}", label_column="label", label_words=dict(zip("1234", words, strict=True)))
    of_labels = {"prompt_tuning_init": "CLASS_LABELS"}
    make("gemma", tokenizer, template, num_virtual_tokens=4, **of_labels)
    assert caplog.text == ""
    model = make("gemma", tokenizer, template, num_virtual_tokens=2, **of_labels)
    assert caplog.messages == [
        "CLASS_LABELS starts a vector from each label, and 2 of 4 labels have none: 'dog', 'cat'. Give "
        "num_virtual_tokens=4, or another start."
    ]
    assert model.info.initialization["label_words"] == ["day", "night"]
    assert start_in_words(model.info) == "the label words"
    longer = make("gemma", tokenizer, template, num_virtual_tokens=5, **of_labels)
    assert start_in_words(longer.info) == "the label words, and words drawn from the vocabulary"


def test_random_is_uniform_in_the_range():
    prompt = make(prompt_tuning_init="RANDOM", random_range=0.1, num_virtual_tokens=100).prompt
    assert prompt.abs().max() <= 0.1
    assert prompt.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


def test_another_prompt_from_a_folder_and_from_npy(tmp_path):
    source = tiny_prompt_model("llama", num_virtual_tokens=6)
    source.save_pretrained(tmp_path / "prompt")
    np.save(tmp_path / "prompt.npy", source.prompt.detach().numpy())
    for path in ("prompt", "prompt.npy"):
        model = make(init_prompt=str(tmp_path / path))
        assert torch.equal(model.prompt, source.prompt)
        assert model.peft_config["default"].num_virtual_tokens == 6
        assert model.info.initialization["num_virtual_tokens"] == 6


def test_defaults():
    assert PromptTuningConfig().prompt_tuning_init == "SAMPLE_VOCAB"
    assert PromptTuningConfig().num_virtual_tokens == 20
    assert PromptTuningConfig(prompt_tuning_init_text="x").prompt_tuning_init == "TEXT"
    assert PromptTuningConfig(init_prompt="x").prompt_tuning_init == "PROMPT"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0; a prompt has at least 1"),
        ({"num_virtual_tokens": 2.5}, "num_virtual_tokens is 2.5"),
        ({"prompt_tuning_init": "WORDS"}, "prompt_tuning_init is 'WORDS'; use one of TEXT"),
        ({"prompt_tuning_init": "TEXT"}, "prompt_tuning_init_text is None. Give the words"),
        ({"prompt_tuning_init": "PROMPT"}, "init_prompt is not given"),
        (
            {"init_prompt": "p", "prompt_tuning_init": "EXAMPLES"},
            "'p', and prompt_tuning_init is EXAMPLES; a prompt has",
        ),
        (
            {"init_prompt": "p", "prompt_tuning_init_text": "x"},
            "is TEXT, because prompt_tuning_init_text is given; a prompt has one start: leave init_prompt or the text",
        ),
        ({"prompt_tuning_init_text": "x"}, "which needs a tokenizer"),
        ({"prompt_tuning_init": "CLASS_LABELS"}, "there are no label words"),
        ({"prompt_tuning_init": "FIRST_VOCAB", "num_virtual_tokens": 401}, "rows of a vocabulary of 400"),
        ({"vocab_sample_size": 3}, "draws 20 different tokens from 3"),
        ({"init_prompt": "/nowhere.npy"}, "'/nowhere.npy' is neither a folder on this machine nor a Hub id"),
        ({"init_prompt": "./outpts/x"}, r"'\./outpts/x' is neither .*: there is no such file or folder"),
        (
            {"init_prompt": "outpts/x"},
            "there is no file or folder 'outpts/x' on this machine, and the prompt 'outpts/x'",
        ),
    ],
)
def test_refusals(config, message):
    with pytest.raises(PromptTuningError, match=message):
        make(**config)


def test_a_prompt_of_another_size_is_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.zeros((3, 32), dtype=np.float32))
    with pytest.raises(PromptTuningError, match="holds 3 vectors of width 32; this prompt has 4 of width 32"):
        make(init_prompt=str(tmp_path / "p.npy"), num_virtual_tokens=4)
    np.save(tmp_path / "n.npy", np.full((3, 32), np.nan, dtype=np.float32))
    with pytest.raises(PromptTuningError, match="NaN"):
        make(init_prompt=str(tmp_path / "n.npy"))


def test_a_text_of_nothing_is_refused(tokenizer):
    tokenizer_of_nothing = lambda text, **_: {"input_ids": []}  # noqa: E731
    with pytest.raises(PromptTuningError, match=r"prompt_tuning_init_text .* tokenizes to nothing"):
        make(tokenizer=tokenizer_of_nothing, prompt_tuning_init_text="\u200b")

"""What is asked of the pipelines: the caller's word before our defaults, wherever it is said; or a refusal."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig, pipeline

from hf_prompt_tuning import PromptTemplate, PromptTokenizer, PromptTuningError
from tests.shared.prompt_pipelines import ROWS, TEXT, made
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE, make

OPEN = PromptTemplate("Message : {message} Answer :", target="{answer}")
LONG = PromptTemplate("Message : {message} Answer :", target="{answer}", max_target_length=9)


def counted(pipe, inputs=ROWS[0], **options):
    """How many tokens each text has."""
    seen = []
    decode = pipe.tokenizer.batch_decode

    def batch_decode(sequences, **kwargs):
        seen.extend(len(row) for row in sequences)
        return decode(sequences, **kwargs)

    pipe.tokenizer.batch_decode = batch_decode
    try:
        pipe(inputs, **options)
    finally:
        del pipe.tokenizer.batch_decode
    return seen


@pytest.fixture(params=["llama", "gpt2", "t5", "bart"])
def pipe_of(request, tokenizers):
    """Makes a pipeline of one family; no row ends by itself."""
    kind = "t5" if request.param in ("t5", "bart") else "gpt2"
    tokenizer = copy.deepcopy(tokenizers[kind])

    def make(*templates, **options):
        model = made(tokenizer, *templates, name=request.param)
        model.base_model.generation_config.eos_token_id = None
        ends = {"eos_token_id": 10**6}
        return pipeline("prompt-generation", model=model, tokenizer=tokenizer, **ends | options)

    return make


class TestLengths:
    def test_in_the_call(self, pipe_of):
        pipe = pipe_of(OPEN)
        assert counted(pipe) == [64]
        config = {"eos_token_id": 10**6}
        assert counted(pipe, generation_config=GenerationConfig(max_new_tokens=90, **config)) == [90]
        assert counted(pipe, max_new_tokens=70) == [70]
        decoder = pipe.model.config.is_encoder_decoder
        coder = PromptTokenizer(OPEN, pipe.tokenizer, decoder)
        before = 1 if decoder else len(coder.source_ids({"message": ROWS[0]})[0])
        assert counted(pipe, max_length=before + 5) == [5]
        assert counted(pipe, generation_config=GenerationConfig(max_length=before + 70, **config)) == [70]
        assert counted(
            pipe, max_length=before + 3, generation_config=GenerationConfig(max_new_tokens=9, **config)
        ) == [3]
        with pytest.raises(PromptTuningError, match=f"max_length is {before}, and a row has {before} tokens already"):
            pipe(ROWS[0], max_length=before)
        with pytest.raises(PromptTuningError, match=r"max_new_tokens is 0; give 1 or more\."):
            pipe(ROWS[0], max_new_tokens=0)

    def test_when_the_pipeline_is_made(self, pipe_of):
        pipe = pipe_of(TEXT, max_new_tokens=7)
        assert counted(pipe) == [7]
        assert counted(pipe, max_length=40) != [7] and counted(pipe, max_new_tokens=3) == [3]
        config = GenerationConfig(max_new_tokens=8, eos_token_id=10**6)
        assert counted(pipe, generation_config=config) == [8]
        assert counted(pipe_of(TEXT, generation_config=config)) == [8]
        assert counted(pipe_of(TEXT, generation_config=config), max_new_tokens=2) == [2]
        assert config.max_new_tokens == 8

    def test_of_the_template_and_the_model(self, pipe_of):
        pipe = pipe_of(TEXT, OPEN, LONG)
        assert counted(pipe) == [6]
        names = ["default", "p1", "p2"]
        for size in (1, 3):
            assert counted(pipe, ROWS[:3], adapter_names=names, batch_size=size, max_new_tokens=5) == [5] * 3
        pipe.model.base_model.generation_config.max_new_tokens = 11
        assert counted(pipe) == [6] and counted(pipe, adapter_names="p1") == [11]
        pipe.model.generation_config = GenerationConfig(max_new_tokens=12, eos_token_id=10**6)
        assert counted(pipe, adapter_names="p1") == [12]
        assert counted(pipe, adapter_names="p1", max_new_tokens=2) == [2]

    @pytest.mark.parametrize("asked", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
    def test_each_row_in_a_batch_as_if_alone(self, pipe_of, asked):
        """Limits of several templates, and a `max_length` that counts each row's own tokens."""
        pipe = pipe_of(TEXT, OPEN, LONG)
        names = ["default", "p2", "default", "p2", "default"]
        for length in ({}, {"max_length": 20}):
            alone = [pipe(row, adapter_names=name, **asked, **length) for row, name in zip(ROWS, names, strict=True)]
            for size in (2, 5):
                assert pipe(ROWS, adapter_names=names, batch_size=size, **asked, **length) == alone


def test_an_encoder_decoders_last_token(pipe_of):
    """The text that generate gives with that many new tokens."""
    pipe = pipe_of(TEXT)
    coder = PromptTokenizer(TEXT, pipe.tokenizer, pipe.model.config.is_encoder_decoder)
    ids = torch.tensor([coder.source_ids({"message": ROWS[0]})[0]])
    new = pipe.model.generate(ids, max_new_tokens=6, eos_token_id=10**6, pad_token_id=0)[0, -6:]
    text = pipe.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert pipe(ROWS[0]) == {"generated_text": text}


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_an_end_that_the_caller_says(name, tokenizers):
    tokenizer = tokenizers["t5" if name == "t5" else "gpt2"]
    model = made(tokenizer, TEXT, name=name)
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer, max_new_tokens=6)
    coder = PromptTokenizer(TEXT, tokenizer, model.config.is_encoder_decoder)
    ids = torch.tensor([coder.source_ids({"message": ROWS[0]})[0]])
    new = model.generate(ids, max_new_tokens=6, eos_token_id=10**6, pad_token_id=0)[0, -6:].tolist()
    for said in (
        {"eos_token_id": new[2]},
        {"generation_config": GenerationConfig(eos_token_id=[new[2]], max_new_tokens=6)},
        {"stop_strings": tokenizer.decode(new[:3])} if name == "llama" else {"eos_token_id": [new[2]]},
    ):
        first = new.index(new[2]) + 1
        expected = tokenizer.decode(new[:first], skip_special_tokens=True).strip()
        assert pipe(ROWS[0], **said)["generated_text"] == expected


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_each_end_of_the_backbones_own_ends_a_text(name, tokenizers, tmp_path):
    """Llama 3's has three, of which its tokenizer names one; the trainer's texts end there, too."""
    tokenizer = tokenizers["t5" if name == "t5" else "gpt2"]
    model = made(tokenizer, TEXT, name=name)
    coder = PromptTokenizer(TEXT, tokenizer, model.config.is_encoder_decoder)
    ids = torch.tensor([coder.source_ids({"message": ROWS[0]})[0]])
    new = model.generate(ids, max_new_tokens=6, eos_token_id=10**6, pad_token_id=0)[0, -6:].tolist()
    model.get_base_model().generation_config.eos_token_id = [2, new[2]]
    expected = tokenizer.decode(new[: new.index(new[2]) + 1], skip_special_tokens=True).strip()
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    assert pipe(ROWS[0]) == {"generated_text": expected}
    rows = [{"message": ROWS[0], "answer": "a dog"}]
    trainer = make(tmp_path, tokenizer, rows, TEXT, model=model)
    assert trainer.predict(Dataset.from_list(rows)).predictions == [expected]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_backbones_config_that_asks_for_more_than_one_text(name, tokenizers, tmp_path):
    """An output in a dict, stop strings, which need a tokenizer, several texts of a search."""
    tokenizer = tokenizers["t5" if name == "t5" else "gpt2"]
    model = made(tokenizer, TEXT, name=name)
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer, eos_token_id=10**6)
    rows = [{"message": ROWS[0], "answer": "a dog"}]
    trainer = make(tmp_path, tokenizer, rows, TEXT, model=model)
    config = model.get_base_model().generation_config
    config.eos_token_id = None
    asked = {"repetition_penalty": 3.0}  # by which T5's text, too, has several tokens
    text, config.repetition_penalty = pipe(ROWS[0], **asked)["generated_text"], 3.0
    written = trainer.predict(Dataset.from_list(rows)).predictions
    config.return_dict_in_generate = True
    assert pipe(ROWS[0]) == {"generated_text": text}
    assert trainer.predict(Dataset.from_list(rows)).predictions == written
    stop = text.split()[0] if name == "t5" else text[:2]
    assert stop and not text.endswith(stop)
    config.stop_strings = [stop]
    assert pipe(ROWS[0])["generated_text"] == stop
    assert trainer.predict(Dataset.from_list(rows)).predictions == [stop]
    config.stop_strings, stops = None, GenerationConfig(stop_strings=stop, max_new_tokens=6)
    assert pipe(ROWS[0], generation_config=stops)["generated_text"] == stop
    config.num_beams = config.num_return_sequences = 2
    assert len(pipe(ROWS[0])) == 2
    assert trainer.predict(Dataset.from_list(rows)).predictions == written


def test_how_tokens_become_text(tokenizer):
    model = made(tokenizer, TEXT)
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    model.base_model.generation_config.eos_token_id = None
    forced = dict(max_new_tokens=2, suppress_tokens=[i for i in range(400) if i != 1], eos_token_id=None)
    assert pipe(ROWS[0], **forced) == {"generated_text": ""}
    assert pipe(ROWS[0], **forced, skip_special_tokens=False) == {"generated_text": "<s><s>"}
    assert pipe(ROWS[0], **forced, return_full_text=False, return_text=True) == {"generated_text": ""}


def test_inputs_of_every_kind(tokenizer):
    from datasets import Dataset

    model = made(tokenizer, TEXT)
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer, batch_size=2)
    expected = pipe(ROWS)
    rows = [{"message": text} for text in ROWS]
    assert pipe(rows) == expected == list(pipe(Dataset.from_list(rows))) == list(pipe(row for row in rows))
    assert list(pipe(tuple(ROWS))) == expected == list(pipe(iter(ROWS)))
    several = pipe(ROWS, num_beams=2, num_return_sequences=2, batch_size=5)
    assert [len(texts) for texts in several] == [2] * 5
    assert several == [pipe(row, num_beams=2, num_return_sequences=2) for row in ROWS]


def test_columns_called_as_those_of_a_message(tokenizer):
    template = PromptTemplate("{role} {content} :", target="{answer}", max_target_length=4)
    pipe = pipeline("prompt-generation", model=made(tokenizer, template), tokenizer=tokenizer)
    rows = [{"role": "user", "content": text} for text in ROWS]
    expected = [pipe(row) for row in rows]
    assert pipe(rows) == pipe(rows, batch_size=5) == list(pipe(row for row in rows)) == expected


class TestRefusals:
    @pytest.mark.parametrize("task, template", [("prompt-generation", TEXT), ("prompt-classification", TEMPLATE)])
    def test_chats(self, task, template, tokenizer):
        pipe = pipeline(task, model=made(tokenizer, template), tokenizer=tokenizer)
        chat = [{"role": "user", "content": "hello"}]
        for inputs in (chat, [chat, chat], {"messages": chat}, [{"messages": chat}], (row for row in chat)):
            with pytest.raises(PromptTuningError, match=r"inputs hold a chat .*, and a prompt's template makes"):
                list(pipe(inputs))

    @pytest.mark.parametrize("task, template", [("prompt-generation", TEXT), ("prompt-classification", TEMPLATE)])
    def test_other_inputs(self, task, template, tokenizer):
        pipe = pipeline(task, model=made(tokenizer, template), tokenizer=tokenizer)
        with pytest.raises(PromptTuningError, match="inputs is a int; give a row"):
            pipe(5)
        for row in (5, None, 2.5):
            with pytest.raises(PromptTuningError, match=r"inputs hold a row that is a .*; give a dict of 'message', "):
                pipe([row])

    def test_what_other_pipelines_take(self, tokenizer):
        model = made(tokenizer, TEXT)
        pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
        message = ".*, which the prompt-generation pipeline does not take"
        for name, value in [
            ("return_full_text", True),
            ("return_tensors", True),
            ("return_text", False),
            ("prefix", "x"),
            ("handle_long_generation", "hole"),
            ("truncation", True),
            ("tools", []),
            ("return_dict_in_generate", True),
            ("output_scores", True),
            ("decoder_input_ids", torch.ones(1, 1)),
            ("input_ids", torch.ones(1, 1)),
            ("attention_mask", torch.ones(1, 1)),
        ]:
            with pytest.raises(PromptTuningError, match=f"{name} is {message}"):
                pipe(ROWS[0], **{name: value})
            with pytest.raises(PromptTuningError, match=f"{name} is {message}"):
                pipeline("prompt-generation", model=model, tokenizer=tokenizer, **{name: value})
        with pytest.raises(PromptTuningError, match="generation_config asks for more than text"):
            pipe(ROWS[0], generation_config=GenerationConfig(return_dict_in_generate=True))
        with pytest.raises(PromptTuningError, match="generation_config is a dict; give the pipeline a transformers"):
            pipe(ROWS[0], generation_config={})
        for length in ("3", 2.0):
            with pytest.raises(
                PromptTuningError, match=f"max_new_tokens is {length!r}; give a whole number of tokens"
            ):
                pipe(ROWS[0], max_new_tokens=length)
        with pytest.raises(PromptTuningError, match="max_new_token is given to generate, which Llama"):
            pipe(ROWS[0], max_new_token=3)
        classify = pipeline("prompt-classification", model=made(tokenizer, TEMPLATE), tokenizer=tokenizer)
        with pytest.raises(PromptTuningError, match="function_to_apply is given, which the prompt-classification"):
            classify(ROWS, function_to_apply="none")
        for top_k in ("2", 2.0, True, 0):
            with pytest.raises(PromptTuningError, match=f"top_k is {top_k!r}; give 1 or more labels, None for all"):
                classify(ROWS, top_k=top_k)
        for made_of in (pipe, classify):
            with pytest.raises(PromptTuningError, match="adapter_names is given to the pipeline; give it"):
                type(made_of)(model=made_of.model, tokenizer=tokenizer, adapter_names="default")


def test_a_config_on_the_model_and_not_on_its_backbone():
    for name in ("llama", "t5"):
        backbone = tiny_model(name)
        model = tiny_prompt_model(name, backbone=backbone).eval()
        ids = torch.tensor([[5, 6, 7]])
        model.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=10**6, pad_token_id=0)
        width = 1 if name == "t5" else 3
        assert model.generate(ids).shape[1] == width + 3
        assert model.generate(ids, max_new_tokens=5).shape[1] == width + 5
        assert model.generate(ids, generation_config=GenerationConfig(max_new_tokens=2)).shape[1] == width + 2
        assert backbone.generation_config.max_new_tokens is None

"""transformers' `pipeline` on prompts: rows in, labels and texts out, whatever the batches."""

import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_prompt_tuning import PromptTokenizer, PromptTuningError
from tests.shared.prompt_pipelines import ROWS, TEXT, THREE, made
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE


def ranked_alone(model, tokenizer, row, adapter="default"):
    """The labels' log-likelihoods of one row, the labels' own tokens appended by hand."""
    model.set_adapter(adapter)
    coder = PromptTokenizer(model.info.template, tokenizer, model.config.is_encoder_decoder)
    source, scores = coder.source_ids(row)[0], []
    for words in coder.label_token_ids:
        with torch.no_grad():
            if coder.is_encoder_decoder:
                labels = torch.tensor([words])
                loss = model(input_ids=torch.tensor([source]), labels=labels).loss
            else:
                labels = torch.tensor([[-100] * len(source) + words])
                loss = model(input_ids=torch.tensor([source + words]), labels=labels).loss
        scores.append(-loss.item() * len(words))
    model.set_adapter("default")
    return dict(zip(coder.template.label_words.values(), torch.tensor(scores).softmax(0).tolist(), strict=True))


@pytest.mark.parametrize("name", ["llama", "bloom", "t5"])
def test_labels_with_scores_that_sum_to_one(name, tokenizers):
    tokenizer = tokenizers["t5" if name == "t5" else "gpt2"]
    model = made(tokenizer, TEMPLATE, name=name)
    pipe = pipeline("prompt-classification", model=model, tokenizer=tokenizer)
    expected = [ranked_alone(model, tokenizer, {"message": text}) for text in ROWS]
    for size in (1, 2, 5):
        found = pipe(ROWS, batch_size=size, top_k=2)
        for row, scores in zip(found, expected, strict=True):
            assert {f["label"]: f["score"] for f in row} == pytest.approx(scores, abs=1e-4)
            assert row[0]["score"] >= row[1]["score"] and sum(f["score"] for f in row) == pytest.approx(1)
    best = [max(scores, key=scores.get) for scores in expected]
    assert [row["label"] for row in pipe(ROWS, batch_size=3)] == best
    assert pipe(ROWS[0])["label"] == pipe({"message": ROWS[0]})["label"] == best[0]
    assert pipe(ROWS[0], top_k=None) == pipe(ROWS[0], top_k=2)
    all_labels = pipeline("prompt-classification", model=model, tokenizer=tokenizer, top_k=None)
    assert all_labels(ROWS[0]) == pipe(ROWS[0], top_k=2) and len(all_labels(ROWS[0], top_k=1)) == 1
    assert [row["label"] for row in pipe(({"message": text} for text in ROWS), batch_size=2)] == best
    assert pipe([]) == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_several_prompts_in_one_batch(side, tokenizer):
    tokenizer.padding_side = side
    model = made(tokenizer, TEMPLATE, THREE, TEMPLATE)
    pipe = pipeline("prompt-classification", model=model, tokenizer=tokenizer)
    rows = [{"title": "so", "message": text} for text in ROWS]
    names = ["default", "p1", "p2", "p1", "default"]
    found = pipe(rows, adapter_names=names, batch_size=5, top_k=3)
    for row, name, labels in zip(rows, names, found, strict=True):
        expected = ranked_alone(model, tokenizer, row, name)
        assert {f["label"]: f["score"] for f in labels} == pytest.approx(expected, abs=1e-4)
    assert pipe(rows[1], adapter_names="p1")["label"] == found[1][0]["label"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_texts(name, tokenizers):
    tokenizer = tokenizers["t5" if name == "t5" else "gpt2"]
    model = made(tokenizer, TEXT, TEXT, name=name)
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    coder = PromptTokenizer(TEXT, tokenizer, model.config.is_encoder_decoder)

    def alone(text, adapter):
        model.set_adapter(adapter)
        ids = torch.tensor([coder.source_ids({"message": text})[0]])
        new = model.generate(input_ids=ids, max_new_tokens=6, eos_token_id=2, pad_token_id=0)
        model.set_adapter("default")
        return tokenizer.decode(new[0, 0 if name == "t5" else ids.shape[1] :], skip_special_tokens=True).strip()

    names = ["default", "p1", "default", "default", "p1"]
    expected = [alone(text, adapter) for text, adapter in zip(ROWS, names, strict=True)]
    for size in (1, 5):
        found = pipe(ROWS, adapter_names=names, batch_size=size)
        assert [row["generated_text"] for row in found] == expected
    assert pipe(ROWS[0]) == {"generated_text": expected[0]}
    several = pipe(ROWS[:2], num_beams=2, num_return_sequences=2, batch_size=2)
    assert [len(row) for row in several] == [2, 2]
    assert len(tokenizer(pipe(ROWS[0], max_new_tokens=1)["generated_text"])["input_ids"]) <= 2


def test_a_tokenizer_without_a_pad_token(tokenizer):
    tokenizer.pad_token = None
    model = made(tokenizer, TEMPLATE)
    pipe = pipeline("prompt-classification", model=model, tokenizer=tokenizer)
    assert [r["label"] for r in pipe(ROWS, batch_size=5)] == [r["label"] for r in pipe(ROWS)]
    assert tokenizer.pad_token is None


class Polars:
    """A table that iterates as polars' do, over columns, and has their method for rows."""

    def __init__(self, columns):
        self.columns = columns

    def __iter__(self):
        return iter(self.columns.values())

    def to_dicts(self):
        return Dataset.from_dict(self.columns).to_list()


@pytest.mark.parametrize("task, template", [("prompt-generation", TEXT), ("prompt-classification", TEMPLATE)])
def test_a_table_is_its_rows(task, template, tokenizer):
    pipe = pipeline(task, model=made(tokenizer, template, template), tokenizer=tokenizer)
    columns = {"message": ROWS, "mood": ["a"] * len(ROWS)}
    frame, expected = pd.DataFrame(columns, index=list("vwxyz")), pipe(ROWS)
    for rows in (frame, pa.table(columns), Polars(columns), Dataset.from_dict(columns)):
        assert list(pipe(rows, batch_size=2)) == expected
    for texts in (frame["message"], pa.array(ROWS), KeyDataset(Dataset.from_dict(columns), "message")):
        assert list(pipe(texts)) == expected
    names = ["p1", "default", "p1", "default", "p1"]
    assert pipe(frame, adapter_names=names) == pipe(ROWS, adapter_names=names)
    assert pipe(frame.iloc[1]) == pipe([frame.iloc[1]])[0] == expected[1]
    assert pipe(frame[:0]) == []
    for missing in (None, float("nan"), pd.NaT, pd.NA):
        with pytest.raises(PromptTuningError, match=r"\{message\} is missing"):
            pipe(pd.DataFrame({"message": [missing]}, dtype=object))
    with pytest.raises(PromptTuningError, match=r"\{message\} is not in the row, which has 'text'"):
        pipe(frame.rename(columns={"message": "text"}))
    with pytest.raises(PromptTuningError, match=r"\{message\} is a list"):
        pipe(columns)


class TestRefusals:
    def test_a_prompt_of_the_other_kind(self, tokenizer):
        with pytest.raises(PromptTuningError, match=r"'default' writes text, .* Use pipeline\('prompt-generation'\)"):
            pipeline("prompt-classification", model=made(tokenizer, TEXT), tokenizer=tokenizer)
        with pytest.raises(PromptTuningError, match=r"'default' classifies, .* Use pipeline\('prompt-classification"):
            pipeline("prompt-generation", model=made(tokenizer, TEMPLATE), tokenizer=tokenizer)

    def test_a_prompt_without_a_template(self, tokenizer):
        model = made(tokenizer, TEMPLATE)
        model.info.template = None
        with pytest.raises(PromptTuningError, match="the prompt 'default' has no template, and"):
            pipeline("prompt-classification", model=model, tokenizer=tokenizer)

    def test_a_model_without_a_prompt(self, tokenizer):
        with pytest.raises(PromptTuningError, match="model is a LlamaForCausalLM; give a prompt's Hub id"):
            pipeline("prompt-classification", model=tiny_model("llama"), tokenizer=tokenizer)
        for task in ("prompt-classification", "prompt-generation"):
            with pytest.raises(PromptTuningError, match="model is not given, and prompts have no default one; give"):
                pipeline(task)

    def test_rows_and_names(self, tokenizer):
        pipe = pipeline("prompt-classification", model=made(tokenizer, TEMPLATE, THREE), tokenizer=tokenizer)
        for inputs, options, message in [
            (ROWS, {"adapter_names": ["default"]}, "adapter_names has 1 names for 5 rows"),
            (ROWS[0], {"adapter_names": ["default"]}, "adapter_names is a list, and inputs are none"),
            (ROWS, {"adapter_names": "x"}, "adapter_names has 'x'; this model's prompts are 'default', 'p1'"),
            (ROWS, {"adapter_names": "p1"}, "got a text, and the template has the columns 'title', 'message'"),
            ([{"text": "x"}], {}, r"field \{message\} is not in the row, which has 'text'"),
            (ROWS, {"top_k": 0}, "top_k is 0; give 1 or more"),
        ]:
            with pytest.raises(PromptTuningError, match=message):
                pipe(inputs, **options)

"""Token ids that the backbone has no embedding of: a tokenizer with added tokens, above all."""

import pytest
import torch
from datasets import Dataset

from hf_prompt_tuning import (
    EnsembleTrainer,
    MultiPromptTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import arguments

TEMPLATE = PromptTemplate("Message : {message}", label_column="label", label_words={"1": "bad", "2": "good"})
UNKNOWN = "the token id 400, and the backbone's embedding has rows 0 to 399.*resize_token_embeddings"
KINDS = ["llama", "gpt2", "t5", "bart"]


@pytest.fixture
def larger():
    """A tokenizer that knows one word more than the backbones."""
    tokenizer = make_tokenizer("gpt2")
    tokenizer.add_tokens([f"<{i}>" for i in range(400 - len(tokenizer))] + ["<new>"])
    assert tokenizer.convert_tokens_to_ids("<new>") == 400
    return tokenizer


def config(**values):
    return PromptTuningConfig(num_virtual_tokens=3, **values)


@pytest.mark.parametrize("kind", KINDS)
def test_initialisations(kind, larger):
    text = config(prompt_tuning_init="TEXT", prompt_tuning_init_text="<new> never")
    with pytest.raises(PromptTuningError, match=UNKNOWN):
        get_prompt_tuning_model(tiny_model(kind), text, larger)
    words = config(prompt_tuning_init="CLASS_LABELS", label_words=["good", "<new> bad"])
    with pytest.raises(PromptTuningError, match=UNKNOWN):
        get_prompt_tuning_model(tiny_model(kind), words, larger)
    for model in (tiny_prompt_model(kind), tiny_prompt_model(kind)):
        with pytest.raises(PromptTuningError, match=UNKNOWN):
            text.tokenizer = larger
            model.add_adapter("b", text)
        assert list(model.peft_config) == ["default"]
    backbone = tiny_model(kind)
    backbone.resize_token_embeddings(len(larger))
    assert get_prompt_tuning_model(backbone, text, larger).prompt.shape == (3, 32)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("where", ["text", "label words", "ids", "labels", "negative"])
def test_every_trainer_looks_before_it_trains(kind, where, larger, tmp_path):
    messages = [{"message": "never came", "label": "1"}, {"message": "great <new>", "label": "2"}]
    template, rows, message = TEMPLATE, messages, "row 2 of the .*data has in input_ids " + UNKNOWN
    if where == "label words":
        rows = [{"message": "never came", "label": "1"}]
        template = PromptTemplate("Message : {message}", label_column="label", label_words={"1": "<new>", "2": "good"})
        message = "row 1 of the .*data has in (input_ids|labels) " + UNKNOWN
    if where in ("ids", "labels", "negative"):
        template = None
        bad = {"ids": [400, 6], "labels": [5, 6], "negative": [5, -2]}[where]
        labels = [400, -100] if where == "labels" else [-100, 5]
        rows = Dataset.from_list([{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": bad, "labels": labels}])
        message = UNKNOWN if where != "negative" else "the token id -2, and the backbone's embedding has rows 0 to 399"
    prompt = config(prompt_tuning_init="RANDOM")
    for data in ({"train_dataset": rows}, {"eval_dataset": rows}):
        with pytest.raises(PromptTuningError, match=message):
            PromptTuningTrainer(
                tiny_model(kind), arguments(tmp_path), processing_class=larger, template=template,
                prompt_config=prompt, **data,
            )  # fmt: skip
        with pytest.raises(PromptTuningError, match=message):
            MultiPromptTrainer(
                tiny_model(kind), arguments(tmp_path), [PromptTask("a", prompt, template=template, **data)], larger
            )
        if template is not None:
            with pytest.raises(PromptTuningError, match=message):
                members = [PromptTask(name, prompt, seed=i) for i, name in enumerate("ab")]
                EnsembleTrainer(
                    tiny_model(kind), arguments(tmp_path), members, processing_class=larger, template=template, **data
                )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [400, -1, -100])
def test_calls(kind, bad):
    model = tiny_prompt_model(kind)
    message = f"input_ids have the token id {bad}, and the backbone's embedding has rows 0 to 399"
    ids = torch.tensor([[5, bad, 6]])
    for call in (
        lambda: model(input_ids=ids),
        lambda: model(input_ids=ids, labels=torch.tensor([[5, 6, 7]])),
        lambda: model.generate(input_ids=ids, max_new_tokens=2),
    ):
        with pytest.raises(PromptTuningError, match=message):
            call()
    with pytest.raises(PromptTuningError, match=f"a candidate has the token id {bad}, and"):
        model(input_ids=torch.tensor([[5, 6]]), candidates=[[5], [6, bad]])
    if bad != -100:
        for only in (True, False):
            with pytest.raises(PromptTuningError, match=f"labels have the token id {bad}, and"):
                model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, bad]]), only_labelled=only)

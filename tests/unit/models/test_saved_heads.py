"""Each head of each family: a step moves prompt and head, which reload bit for bit, and PEFT reads them alike."""

from copy import deepcopy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hf_prompt_tuning import PromptLoadError, PromptTuningConfig, get_prompt_tuning_model, load_prompt
from tests.shared.classifiers import tiny_classifier
from tests.shared.head_rows import P, adds_to_all_columns, with_prompt
from tests.shared.tiny_models import make_tokenizer

FAMILIES = ("bert", "roberta", "deberta-v2", "modernbert", "llama", "qwen3", "gpt2", "t5")
CASES = [
    (task_type, name)
    for task_type in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
    for name in FAMILIES
    if (task_type, name) != ("QUESTION_ANS", "t5")  # which is refused
]
IDS = torch.tensor([[1, 17, 30, 2], [1, 44, 8, 2]])
LABELS = {
    "SEQ_CLS": {"labels": torch.tensor([2, 0])},
    "TOKEN_CLS": {"labels": torch.tensor([[0, 1, 2, 1], [-100, 0, 2, 1]])},
    "QUESTION_ANS": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 3])},
}


def scores_of(model, ids=IDS):
    """[B, L] of texts; [B, T, L] of tokens, of an answer's start and end."""
    with torch.no_grad():
        outputs = model.eval()(input_ids=ids)
    if "logits" in outputs:
        return outputs.logits
    return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)


@pytest.mark.parametrize(("task_type", "name"), CASES)
def test_a_step_is_saved_bit_for_bit_and_read_by_peft(task_type, name, tmp_path):
    # An encoder's classifier reads the first column in PEFT, so the prompt stands behind the text's first token there.
    reads_first = task_type == "SEQ_CLS" and name not in ("llama", "qwen3", "gpt2", "t5")
    backbone = tiny_classifier(name, task_type)
    model = with_prompt(backbone, "after_bos" if reads_first else "start").train()
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    before = {key: value.clone() for key, value in model.prompt_encoder.state_dict().items()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    model(input_ids=IDS, **LABELS[task_type]).loss.backward()
    optimizer.step()
    for key, value in model.prompt_encoder.state_dict().items():
        assert adds_to_all_columns(model, value) or key.endswith("head_ids") or not torch.equal(value, before[key]), (
            key
        )
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    model.save_pretrained(tmp_path)
    again = load_prompt(tmp_path, backbone=tiny_classifier(name, task_type)).model
    assert torch.equal(scores_of(again), scores_of(model))
    for key, value in model.prompt_encoder.state_dict().items():
        assert torch.equal(again.prompt_encoder.state_dict()[key], value)
    theirs = PeftModel.from_pretrained(tiny_classifier(name, task_type), tmp_path)
    if (task_type, name) == ("SEQ_CLS", "t5"):
        with pytest.raises(NotImplementedError, match="input embeddings"):  # the decoder needs the text
            scores_of(theirs)
        return
    found = scores_of(theirs, IDS[:1, int(reads_first) :])
    found = found if task_type == "SEQ_CLS" else found[:, P:]
    torch.testing.assert_close(found, scores_of(model, IDS[:1]))


def with_another_head(folder):
    """A folder whose head has a class less than its labels say: one that was copied together from two."""
    file = folder / "adapter_model.safetensors"
    tensors = {name: value[:2] if "score" in name else value for name, value in load_file(file).items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata={"format": "pt"})
    return folder


def state_of(model):
    """What a call that is refused must leave as it was."""
    vectors = {name: value.clone() for name, value in model.prompt_encoder.state_dict().items()}
    trains = {name: weight.requires_grad for name, weight in model.named_parameters()}
    infos = {name: deepcopy(info) for name, info in model.prompt_info.items()}
    return (
        list(model.peft_config),
        model.active_adapter,
        model.training,
        trains,
        infos,
        list(model.prompt_tokens),
        vectors,
    )


def assert_as_before(model, before):
    *kept, vectors = state_of(model)
    assert kept == list(before[:-1]) and vectors.keys() == before[-1].keys()
    assert all(torch.equal(value, before[-1][name]) for name, value in vectors.items())


@pytest.mark.parametrize("name", ["default", "another"])
def test_a_refused_head_leaves_the_model_as_it_was(name, tmp_path):
    other = with_prompt(tiny_classifier("llama", "SEQ_CLS"), "start")
    torch.nn.init.normal_(other.prompt)
    other.save_pretrained(tmp_path)
    model = with_prompt(tiny_classifier("llama", "SEQ_CLS"), "start").train()
    before = state_of(model)
    with pytest.raises(
        PromptLoadError, match=r"another classification head than the backbone's: score\.weight is \[2"
    ):
        model.load_adapter(with_another_head(tmp_path), name)
    assert_as_before(model, before)


def test_a_start_with_another_head_leaves_the_model_as_it_was(tmp_path):
    with_prompt(tiny_classifier("llama", "SEQ_CLS"), "start").save_pretrained(tmp_path)
    model = with_prompt(tiny_classifier("llama", "SEQ_CLS"), "start").train()
    before = state_of(model)
    with pytest.raises(PromptLoadError, match=r"another classification head than the backbone's"):
        model.add_adapter("another", PromptTuningConfig(init_prompt=str(with_another_head(tmp_path))))
    assert_as_before(model, before)


@pytest.mark.parametrize("length", [P + 1, P])
def test_a_refused_length_or_place_leaves_the_model_as_it_was(length, tmp_path):
    position = "start" if length != P else "after_bos"
    other = get_prompt_tuning_model(
        tiny_classifier("llama", "SEQ_CLS"),
        PromptTuningConfig(num_virtual_tokens=length, prompt_position=position),
        tokenizer=make_tokenizer(),
    )
    other.save_pretrained(tmp_path)
    model = with_prompt(tiny_classifier("llama", "SEQ_CLS"), "start").train()
    before = state_of(model)
    with pytest.raises(PromptLoadError, match="Load it under another adapter_name"):
        model.load_adapter(tmp_path, "default")
    assert_as_before(model, before)

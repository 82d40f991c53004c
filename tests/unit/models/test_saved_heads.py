"""Each head of each family: a step moves prompt and head, which reload bit for bit, and PEFT reads them alike."""

from copy import deepcopy

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft import PromptTuningConfig as PeftConfig
from safetensors.torch import load_file, save_file

from hf_prompt_tuning import (
    ClassTemplate,
    PromptLoadError,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
    load_prompt,
)
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


def test_a_folder_of_peft_replaces_all_that_was_of_the_former_prompt(tmp_path):
    """Its description is that of a folder which is loaded under a new name, and so is its head: the backbone's."""
    peft = get_peft_model(
        tiny_classifier("llama", "SEQ_CLS"), PeftConfig(task_type="SEQ_CLS", num_virtual_tokens=P, modules_to_save=[])
    )
    peft.save_pretrained(tmp_path / "peft")
    file = tmp_path / "peft/adapter_model.safetensors"
    save_file({"prompt_embeddings": load_file(file)["prompt_embeddings"]}, file)
    backbone = tiny_classifier("llama", "SEQ_CLS")
    model = with_prompt(backbone, "start")
    with torch.no_grad():
        model.prompt_encoder["default"].classifier["score"].weight.add_(1)
    info = model.info
    info.template, info.example = ClassTemplate("{a}", "b"), {"source": "a", "target": "b"}
    info.metrics = info.untuned_metrics = {"eval_accuracy": 0.9}
    info.training, info.data, info.transfer = {"learning_rate": 1}, {"training_rows": 1}, {"mails": {"rows": 1}}
    info.history, info.nearest_words = {"loss": [[1, 0.5]]}, [[["x", 0.5]]] * P
    info.calibration, info.confusion_matrix = {"temperature": 2.0}, {"labels": ["a"], "counts": [[1]]}
    info.teacher, info.classifier = {"kind": "text", "text": "t"}, info.classifier | {"id2label": {"0": "other"}}
    info.backbone = info.backbone | {"name_or_path": "of/another", "vocab_size": 1}
    model.load_adapter(tmp_path / "peft", "default")
    model.load_adapter(tmp_path / "peft", "new")
    assert model.prompt_info["default"] == model.prompt_info["new"]
    assert model.prompt_encoder["default"].start is None and model.info.metrics == {}
    assert model.info.classifier["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert torch.equal(model.prompt_encoder["default"].classifier["score"].weight, backbone.score.weight)


def test_a_prompt_that_is_loaded_over_another_names_its_own_backbone(tmp_path):
    """A revision is one of the repository that is named beside it."""
    names = ("name/one", "name/other")
    models = [with_prompt(tiny_classifier("llama", "SEQ_CLS"), "start", base_model_name_or_path=n) for n in names]
    models[1].save_pretrained(tmp_path)
    models[0].load_adapter(tmp_path, "default")
    config, info = models[0].peft_config["default"], models[0].info
    assert (config.base_model_name_or_path, info.backbone["name_or_path"]) == ("name/other", "name/other")


@pytest.mark.parametrize(
    "call",
    [
        lambda model, folder: model.set_requires_grad(["default", "absent"], requires_grad=False),
        lambda model, folder: model.save_pretrained(folder / "out", selected_adapters=["default", "absent"]),
    ],
)
def test_a_name_that_is_no_prompts_is_refused_before_anything_changes(call, tmp_path):
    model = with_prompt(tiny_classifier("llama", "SEQ_CLS"), "start").train()
    before = state_of(model)
    with pytest.raises(PromptTuningError, match=r"this model has no prompt 'absent'; its prompts are 'default'\."):
        call(model, tmp_path)
    assert_as_before(model, before)
    assert not (tmp_path / "out").exists()

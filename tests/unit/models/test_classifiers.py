"""Prompts with a classification head: training, saving, loading, other users of the backbone, and refusals."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

from hf_prompt_tuning import (
    EnsembleTrainer,
    FieldTrainer,
    MultiPromptTrainer,
    PromptLoadError,
    PromptMismatchError,
    PromptTask,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningModelForSequenceClassification,
    PromptTuningModelForTokenClassification,
    export_tokens,
    get_prompt_tuning_model,
    load_prompt,
    restore_prompt,
)
from hf_prompt_tuning.training.callbacks import FrozenBackboneCallback, PromptCheckpointCallback
from tests.shared.classifiers import tiny_classifier, tokenizer_with_cls
from tests.shared.ensembles import TEMPLATE
from tests.shared.resumed_runs import ROWS
from tests.shared.tiny_models import BART_LIKE

IDS = torch.tensor([[1, 17, 30, 2], [1, 44, 8, 2]])
NAMES = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}


def with_prompt(backbone, position="start", seed=1, **config):
    torch.manual_seed(seed)
    values = dict(num_virtual_tokens=4, prompt_tuning_init="RANDOM", prompt_position=position)
    tokenizer = tokenizer_with_cls() if position != "start" else None
    return get_prompt_tuning_model(backbone, PromptTuningConfig(**values | config), tokenizer)


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def head_of(model, name="default"):
    return model.prompt_encoder[name].classifier.state_dict()


def state_of(backbone):
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def require_same_state(here, there):
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def trained(model, folder, labels=(0, 2, 1, 1, 0, 2), **options):
    """The trainer of six steps of transformers' Trainer."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": [1, *torch.randint(4, 400, (5,), generator=generator).tolist()]} for _ in labels]
    for row, label in zip(rows, labels, strict=True):
        row["input_ids"][-1] = 2  # EOS, which T5's head reads
        row["labels"] = label if model.task_type == "SEQ_CLS" else [-100, label, 0, 1, label, 2]
    plain = dict(use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, report_to="none")
    usual = dict(learning_rate=1e-2, max_steps=6, per_device_train_batch_size=2)
    trainer = Trainer(
        model, TrainingArguments(str(folder), **plain | usual | options), train_dataset=rows, eval_dataset=rows
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize(
    ("name", "position"),
    [("bert", "after_bos"), ("deberta-v2", "start"), ("llama", "start"), ("t5", "start")],
)
def test_trainer_trains_prompt_and_head_which_reload_bit_for_bit(name, position, task_type, tmp_path):
    backbone = tiny_classifier(name, task_type, **NAMES)
    state, model = state_of(backbone), with_prompt(backbone, position)
    kind = {
        "SEQ_CLS": PromptTuningModelForSequenceClassification,
        "TOKEN_CLS": PromptTuningModelForTokenClassification,
    }
    assert type(model) is kind[task_type]
    before = {key: value.clone() for key, value in head_of(model).items()}
    vectors = model.prompt.detach().clone()
    trainer = trained(model, tmp_path / "run", save_strategy="steps", save_steps=3)
    assert set(trainer.evaluate()) >= {"eval_loss"}
    assert not torch.equal(model.prompt, vectors)
    assert not any(torch.equal(before[key], value) for key, value in head_of(model).items())
    require_same_state(state_of(backbone), state)
    trainer.save_model(str(tmp_path / "saved"))
    again = load_prompt(tmp_path / "saved", backbone=tiny_classifier(name, task_type, **NAMES)).model
    assert type(again) is kind[task_type] and again.config.id2label == NAMES["id2label"]
    assert torch.equal(again.prompt, model.prompt)
    require_same_state(head_of(again), head_of(model))
    assert torch.equal(logits_of(again), logits_of(model))
    checkpoint = load_prompt(tmp_path / "run" / "checkpoint-6", backbone=backbone).model
    require_same_state(head_of(checkpoint), head_of(model))
    described = json.loads((tmp_path / "saved" / "prompt_tuning.json").read_text())["classifier"]
    labels = {"0": "bad", "1": "fair", "2": "good"}
    assert ("pooler" in described) == (name == "bert" and task_type == "SEQ_CLS")
    described.pop("pooler", None)
    assert described == {"id2label": labels, "problem_type": None, "is_trained": True}


def test_a_run_resumes_with_its_head(tmp_path):
    options = dict(save_strategy="steps", save_steps=3, lr_scheduler_type="constant", data_seed=3)
    whole = with_prompt(tiny_classifier("bert"))
    trained(whole, tmp_path / "run", **options)
    again = with_prompt(tiny_classifier("bert"), seed=9)
    trained_again = trained(again, tmp_path / "other", **options)
    trained_again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert torch.equal(again.prompt, whole.prompt)
    require_same_state(head_of(again), head_of(whole))


def test_gradient_accumulation_is_one_batch(tmp_path):
    models = [with_prompt(tiny_classifier("roberta")) for _ in range(2)]
    options = dict(optim="sgd", learning_rate=1.0, max_steps=1, save_strategy="no")
    trained(models[0], tmp_path / "a", gradient_accumulation_steps=3, **options)
    trained(models[1], tmp_path / "b", per_device_train_batch_size=6, **options)
    start = with_prompt(tiny_classifier("roberta")).prompt
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(models[0].prompt, start)


def test_a_backbone_that_is_loaded_by_name_gets_the_labels(tmp_path):
    backbone = tiny_classifier("bert", **NAMES, problem_type="single_label_classification")
    backbone.base_model.save_pretrained(tmp_path / "bert")
    tokenizer_with_cls().save_pretrained(tmp_path / "bert")
    model = with_prompt(backbone)
    model.save_pretrained(tmp_path / "prompt")
    again, tokenizer, template = load_prompt(tmp_path / "prompt", backbone=tmp_path / "bert")
    assert again.config.id2label == NAMES["id2label"] and again.config.problem_type == "single_label_classification"
    assert template is None and tokenizer("a")["input_ids"][0] == 1
    with torch.no_grad():
        # The pooler is the base model's, and is saved with it.
        torch.testing.assert_close(logits_of(again), logits_of(model))


def test_peft_writes_a_folder_that_is_read(tmp_path):
    import peft

    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    theirs = peft.get_peft_model(tiny_classifier("llama"), config)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    ours = load_prompt(tmp_path, backbone=tiny_classifier("llama")).model
    torch.testing.assert_close(logits_of(ours, IDS[:1]), logits_of(theirs, IDS[:1]))


def test_a_trained_head_may_stay_as_it_is(tmp_path):
    model = with_prompt(tiny_classifier("bert"), train_head=False)
    before = {key: value.clone() for key, value in head_of(model).items()}
    trained(model, tmp_path / "run", save_strategy="no")
    require_same_state(head_of(model), before)
    model.save_pretrained(tmp_path / "saved")
    other = tiny_classifier("bert")
    torch.nn.init.normal_(other.classifier.weight)
    again = load_prompt(tmp_path / "saved", backbone=other, is_trainable=True).model
    assert torch.equal(logits_of(again), logits_of(model))
    assert [name for name, weight in again.named_parameters() if weight.requires_grad] == [
        "prompt_encoder.default.embedding.weight"
    ]


def test_two_prompts_share_a_backbone_and_nothing_else(tmp_path):
    backbone = tiny_classifier("bert")
    bare, state = logits_of(backbone), state_of(backbone)
    model = with_prompt(backbone)
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM")
    model.add_adapter("other", config)
    first = logits_of(model)
    model.set_adapter("other")
    with torch.no_grad():
        model.prompt_encoder["other"].classifier["classifier"].weight.mul_(-3)
    second = logits_of(model)
    assert not torch.allclose(first, second)
    model.set_adapter("default")
    assert torch.equal(logits_of(model), first)
    alone = model(input_ids=IDS, adapter_names=["other", "other"]).logits
    assert torch.equal(alone, second)
    assert torch.equal(model(input_ids=IDS, adapter_names="__base__").logits, bare)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), bare)
    assert torch.equal(logits_of(backbone), bare)
    require_same_state(state_of(backbone), state)
    model.save_pretrained(tmp_path)
    again = load_prompt(tmp_path, backbone=tiny_classifier("bert")).model
    again.load_adapter(tmp_path / "other", "other")
    require_same_state(head_of(again, "other"), head_of(model, "other"))
    with pytest.raises(PromptTuningError, match="'default' and 'other', and this model reads rows of one prompt"):
        model(input_ids=IDS, adapter_names=["default", "other"])


def test_a_prompt_that_was_loaded_to_be_used_does_not_train(tmp_path):
    with_prompt(tiny_classifier("bert")).save_pretrained(tmp_path)
    model = load_prompt(tmp_path, backbone=tiny_classifier("bert")).model
    loss = model.train()(input_ids=IDS, labels=torch.tensor([0, 1])).loss
    with pytest.raises(PromptTuningError, match="was loaded without is_trainable=True"):
        loss.backward()


def test_the_card_tells_of_the_head(tmp_path):
    with_prompt(tiny_classifier("bert", **NAMES)).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| classification head | 3 labels (bad, fair, good), trained with the vectors |" in card
    assert "pipeline_tag: text-classification" in card and "logits.argmax(-1)" in card
    assert "With PEFT alone" not in card  # it reads the prompt's first vector in place of [CLS]
    with_prompt(tiny_classifier("llama", "TOKEN_CLS")).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "With PEFT alone" in card and "Its logits have columns of the prompt in front." in card


def refused(message, error=PromptTuningError):
    return pytest.raises(error, match=message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.tensor([0, 3])}, "labels hold 3, and the head has 3 labels; give 0 to 2"),
        ({"labels": torch.tensor([[0], [1], [2]])}, r"labels has shape \[3, 1\].*give whole numbers .* of \[2\]"),
        ({"labels": torch.tensor([0.5, 1.0])}, r"labels has shape \[2\].*multi_label_classification with 3 labels"),
        ({"labels": torch.full((2, 3), 7.0)}, "labels hold 7, and the problem type is multi_label_classification"),
        ({"position_ids": torch.arange(4)[None]}, "position_ids are given"),
        ({"use_cache": True}, "use_cache is given"),
        ({"attention_mask": torch.tensor([[0] * 4, [1] * 4])}, "a row holds only pads"),
        ({"only_labelled": True}, "only_labelled"),
        ({"past_key_values": object()}, "past_key_values is given"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1], [1] * 4]), "output_attentions": True}, "output_attentions is"),
    ],
)
def test_calls_that_are_refused(arguments, message):
    model = with_prompt(tiny_classifier("bert"))
    with refused(message):
        model(input_ids=IDS, **arguments)


def test_rows_that_are_refused():
    model = with_prompt(tiny_classifier("bert"), "after_bos")
    with refused("stands behind the tokens .1., and row 0 does not begin with them"):
        model(input_ids=IDS[:, 1:])
    with refused("token_type_ids is not 0 on a row's first token"):
        model(input_ids=IDS, token_type_ids=torch.ones_like(IDS))
    with refused("a row has 65 tokens with its prompt, and BertForSequenceClassification has positions for 64"):
        model(input_ids=torch.cat([IDS[:1], torch.full((1, 57), 9)], dim=1))
    roberta = with_prompt(tiny_classifier("roberta"))
    assert roberta(input_ids=torch.full((1, 58), 9)).logits.shape == (1, 3)
    with refused("has positions for 62; shorten texts to 58 tokens"):
        roberta(input_ids=torch.full((1, 59), 9))
    tagger = with_prompt(tiny_classifier("bert", "TOKEN_CLS"))
    with refused(r"labels has shape \[2\].* of \[2, 4\]"):
        tagger(input_ids=IDS, labels=torch.tensor([0, 1]))


def test_rows_that_a_decoder_cannot_read():
    model, ids = with_prompt(tiny_classifier("t5")), torch.tensor([[5, 6, 2], [5, 2, 6]])
    assert model(ids).logits.shape == (2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    for arguments, message in (
        ({"input_ids": ids, "attention_mask": mask}, r"row 0 has no EOS \(the token id 2\), whose state the head"),
        ({"inputs_embeds": torch.ones(2, 3, 32)}, "inputs_embeds are given, and the decoder of T5.* reads token ids"),
        ({"input_ids": ids, "decoder_input_ids": ids}, "decoder_input_ids is given, and the decoder of T5"),
        ({"input_ids": ids, "output_hidden_states": True}, "output_hidden_states is given, and the decoder of T5"),
    ):
        with refused(message):
            model(**arguments)
    with refused("decoder_start_token_id is None in the config of T5ForSequenceClassification"):
        model.get_base_model().config.decoder_start_token_id = None
        model(ids)
    bart = with_prompt(tiny_classifier("bart", max_position_embeddings=16))
    row = torch.full((1, 12), 2)
    assert bart(row).logits.shape == (1, 3)
    with refused("has positions for 16; shorten texts to 12 tokens"):
        bart(torch.cat([row, row[:, :1]], dim=1))


def test_backbones_that_are_refused():
    albert = AutoConfig.for_model("albert", vocab_size=20, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    mbart = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("mbart", **BART_LIKE))
    backbones = {
        "MBartForSequenceClassification, an encoder-decoder whose head is not known": mbart,
        "T5ForQuestionAnswering, an encoder-decoder whose head is not known": tiny_classifier("t5", "QUESTION_ANS"),
        "which neither writes text nor classifies it": AutoModelForMultipleChoice.from_config(
            tiny_classifier("bert").config
        ),
        "is not known to read the same behind a prompt": AutoModelForSequenceClassification.from_config(albert),
        "classifier.weight of the backbone's head is not in memory": tiny_classifier("bert").to("meta"),
    }
    for message, backbone in backbones.items():
        with refused(message):
            with_prompt(backbone)
    compiled = tiny_classifier("bert")
    model = with_prompt(compiled)
    compiled.forward = lambda **arguments: None
    with refused("its forward was replaced"):
        model(input_ids=IDS)


def test_configs_that_are_refused():
    for config, message in (
        ({"task_type": "CAUSAL_LM"}, "BertForSequenceClassification is a SEQ_CLS model"),
        ({"task_type": "TOKEN_CLS"}, "BertForSequenceClassification is a SEQ_CLS model"),
        ({"prompt_position": "system"}, "prompt_position is system, and this model reads rows of tokens"),
    ):
        with refused(message):
            get_prompt_tuning_model(tiny_classifier("bert"), PromptTuningConfig(num_virtual_tokens=2, **config))
    config = PromptTuningConfig(num_virtual_tokens=2)
    config.modules_to_save = ["encoder"]  # an argument in newer versions of PEFT
    with refused("modules_to_save has 'encoder'"):
        get_prompt_tuning_model(tiny_classifier("bert"), config)
    config.modules_to_save = ["classifier", "score"]
    model = get_prompt_tuning_model(tiny_classifier("bert"), config)
    assert type(model.get_base_model().classifier) is torch.nn.Linear


def test_folders_that_are_refused(tmp_path):
    with_prompt(tiny_classifier("bert", **NAMES)).save_pretrained(tmp_path)
    with refused("has 3 labels, and the backbone's head 2; load the backbone with num_labels=3", PromptMismatchError):
        load_prompt(tmp_path, backbone=tiny_classifier("bert", num_labels=2))
    turned = {"id2label": {0: "good", 1: "fair", 2: "bad"}}
    with refused("calls label 0 'bad', and the backbone's config 'good'", PromptMismatchError):
        load_prompt(tmp_path, backbone=tiny_classifier("bert", **turned))
    assert load_prompt(tmp_path, backbone=tiny_classifier("bert", **turned), ignore_mismatch=True)
    assert load_prompt(tmp_path, backbone=tiny_classifier("bert"))  # whose names are the default ones
    with refused("is a prompt of task type SEQ_CLS", PromptMismatchError):
        load_prompt(tmp_path, backbone=tiny_classifier("bert", "TOKEN_CLS"))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor, message in (
        ("base_model.classifier.bias", torch.zeros(5), r"classifier.bias is \[5\] there and \[3\] here"),
        ("base_model.other", torch.zeros(1), r"other is \[1\] there and missing here"),
        (
            "base_model.classifier.bias",
            torch.full((3,), torch.nan),
            "holds NaN or infinite numbers in classifier.bias",
        ),
        ("base_model.classifier.bias", torch.zeros(3).long(), "numbers of a classification head, of the types"),
    ):
        save_file(tensors | {name: tensor}, file)
        with refused(message, PromptLoadError):
            load_prompt(tmp_path, backbone=tiny_classifier("bert", **NAMES))


def test_a_backbone_with_another_pooler_is_refused(tmp_path, caplog):
    """Files without a pooler give another in each load; the head reads it, and it is not saved with the prompt."""
    AutoModelForMaskedLM.from_config(tiny_classifier("bert").config).save_pretrained(tmp_path / "backbone")
    torch.manual_seed(0)
    first, second = (AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone") for _ in range(2))
    assert not torch.equal(first.bert.pooler.dense.weight, second.bert.pooler.dense.weight)
    with_prompt(first).save_pretrained(tmp_path / "prompt")
    with refused("the backbone's pooler, which its head reads, has other weights than", PromptMismatchError):
        load_prompt(tmp_path / "prompt", backbone=second)
    load_prompt(tmp_path / "prompt", backbone=second, ignore_mismatch=True)
    assert "the backbone's pooler, which its head reads, has other weights" in caplog.text
    load_prompt(tmp_path / "prompt", backbone=copy.deepcopy(first).to(torch.bfloat16))
    taggers = [AutoModelForTokenClassification.from_pretrained(tmp_path / "backbone") for _ in range(2)]
    with_prompt(taggers[0]).save_pretrained(tmp_path / "tagger")
    load_prompt(tmp_path / "tagger", backbone=taggers[1])


@pytest.mark.parametrize(
    ("trained", "given", "is_told"),
    [
        (NAMES, {}, True),
        ({}, {}, False),
        (NAMES, NAMES, False),
        ({"problem_type": "multi_label_classification"}, {}, True),
        ({"problem_type": "single_label_classification"}, {}, False),
        (NAMES | {"problem_type": "regression"}, NAMES | {"problem_type": "regression"}, False),
    ],
)
def test_a_config_that_does_not_name_what_the_prompt_names_is_told(trained, given, is_told, tmp_path, caplog):
    with_prompt(tiny_classifier("bert", **trained)).save_pretrained(tmp_path)
    load_prompt(tmp_path, backbone=tiny_classifier("bert", **given))
    assert ("transformers' pipelines read the config: let load_prompt load" in caplog.text) == is_told


def test_a_folder_without_a_head_takes_the_backbones_with_a_warning(tmp_path, caplog):
    with_prompt(tiny_classifier("bert")).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({"prompt_embeddings": load_file(file)["prompt_embeddings"]}, file)
    load_prompt(tmp_path, backbone=tiny_classifier("bert"))
    assert "holds no classification head, so the backbone's own is used" in caplog.text


def test_what_is_for_language_models_refuses_a_head(tmp_path):
    tokenizer, rows = tokenizer_with_cls(), [{"input_ids": [1, 5], "labels": 0}]
    args = PromptTuningArguments(str(tmp_path / "out"), report_to="none")
    field = PromptTuningArguments(str(tmp_path / "out"), report_to="none", recipe="auto")
    config = PromptTuningConfig(num_virtual_tokens=2)
    members = [PromptTask(name, config) for name in "ab"]
    message = "with a classification head, and this is for language models"
    backbone = tiny_classifier("bert")
    state, model = state_of(backbone), with_prompt(tiny_classifier("bert"))
    for call in (
        lambda: MultiPromptTrainer(model, args, [PromptTask(name, config, rows) for name in "ab"], tokenizer),
        lambda: export_tokens(model, tmp_path / "out", tokenizer=tokenizer),
        lambda: MultiPromptTrainer(backbone, args, [PromptTask(name, config, rows) for name in "ab"], tokenizer),
        lambda: EnsembleTrainer(backbone, args, members, ROWS, None, tokenizer, TEMPLATE),
        lambda: FieldTrainer(backbone, field, config, ROWS, None, tokenizer, TEMPLATE),
    ):
        with refused(message):
            call()
    require_same_state(state_of(backbone), state)
    with refused("its template is missing; rankings and pipelines of this package are for language models"):
        model.row_encoder(tokenizer)


def test_callbacks_that_watch_a_prompt(tmp_path):
    model = with_prompt(tiny_classifier("bert"))
    trainer = trained(model, tmp_path / "run", save_strategy="no")
    for callback in (PromptCheckpointCallback(), FrozenBackboneCallback()):
        trainer.add_callback(callback)
    trainer.train()
    trainer.evaluate()
    with refused("holds vectors alone, and the prompt 'default' has a classification head", PromptLoadError):
        restore_prompt(model, tmp_path / "run", 6)

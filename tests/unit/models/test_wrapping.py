"""What can stand behind a prompt, and that a refusal leaves it as it was."""

import copy
import json
import pickle

import peft
import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn

from hf_prompt_tuning import (
    EnsembleTrainer,
    MultiPromptTrainer,
    PromptTask,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningModelForCausalLM,
    PromptTuningModelForSeq2SeqLM,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.models import held_prompts
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model, with_prompts
from tests.shared.tiny_models import LLAMA_LIKE, VOCAB, tiny_model
from tests.shared.trainers import arguments
from tests.shared.versions import checkpoint_activations

DROPOUT = {
    "llama": {"attention_dropout": 0.25},
    "gpt2": {"resid_pdrop": 0.5, "attn_pdrop": 0.25},
    "bart": {"dropout": 0.5, "decoder_layerdrop": 0.25},
    "t5": {"dropout_rate": 0.5},
}
CLASSES = {"SEQ_2_SEQ_LM": PromptTuningModelForSeq2SeqLM, "CAUSAL_LM": PromptTuningModelForCausalLM}
ROWS = [{"text": "never came", "label": "1"}, {"text": "thank you", "label": "2"}]
WORDS = {"1": "complaint", "2": "no complaint"}


def dropping(kind):
    """A backbone with dropout, in train mode, half of it frozen, with a hook of its caller's."""
    backbone = tiny_model(kind, **DROPOUT[kind]).train()
    backbone.config.pretraining_tp = 2
    checkpoint_activations(backbone)
    for parameter in list(backbone.parameters())[::2]:
        parameter.requires_grad = False
    backbone.register_forward_hook(nothing)
    return backbone


def nothing(*_):
    return None


def state_of(backbone):
    """All that can be seen of a backbone: every attribute of every module, weights, config, generation config."""
    plain = (str, int, float, bool, type(None), torch.dtype)
    modules = {}
    for path, module in backbone.named_modules():
        values = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
        hooks = {
            name: list(value) for name, value in vars(module).items() if "hooks" in name and isinstance(value, dict)
        }
        modules[path] = (type(module), sorted(vars(module)), values, hooks, id(vars(module).get("config")))
    weights = {name: value.numpy().tobytes() for name, value in backbone.state_dict().items()}
    trained = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    generation = getattr(backbone, "generation_config", backbone.config)
    return modules, weights, trained, backbone.config.to_dict(), generation.to_dict()


def config(**values):
    return PromptTuningConfig(**{"num_virtual_tokens": 3, "prompt_tuning_init": "RANDOM"} | values)


def refused_configs(folder):
    """Each with a part of its message."""
    wide = folder / "wide.pt"
    torch.save({"prompt_embeddings": torch.zeros(3, 7)}, wide)
    return [
        (config(prompt_tuning_init="TEXT", prompt_tuning_init_text="never"), "needs a tokenizer"),
        (config(prompt_tuning_init="CLASS_LABELS"), "there are no label words"),
        (config(prompt_tuning_init="CLASS_LABELS", label_words=["x"]), "needs a tokenizer"),
        (config(prompt_tuning_init="FIRST_VOCAB", num_virtual_tokens=VOCAB + 1), "FIRST_VOCAB takes the first"),
        (
            config(prompt_tuning_init="SAMPLE_VOCAB", vocab_sample_size=2),
            "SAMPLE_VOCAB draws 3 different tokens from 2",
        ),
        (
            config(prompt_tuning_init="PROMPT", init_prompt=str(folder / "none")),
            "neither a folder on this machine nor",
        ),
        (config(prompt_tuning_init="PROMPT", init_prompt=str(wide), num_virtual_tokens=3), "of width 7"),
        (config(token_dim=99), "token_dim is 99, and the backbone's embeddings have width 32; leave it out"),
        (config(task_type="TOKEN_CLS"), "task_type is TOKEN_CLS, and"),
        (peft.PrefixTuningConfig(num_virtual_tokens=3), "got a PrefixTuningConfig; this model holds soft prompts"),
        (peft.PromptEncoderConfig(num_virtual_tokens=3), "got a PromptEncoderConfig; this model holds soft prompts"),
        (peft.LoraConfig(), "got a LoraConfig; this model holds soft prompts"),
        (
            peft.MultitaskPromptTuningConfig(num_virtual_tokens=3, num_tasks=2),
            "got a MultitaskPromptTuningConfig",
        ),
        ({"num_virtual_tokens": 3}, "got a dict; this model holds soft prompts: give a PromptTuningConfig"),
        (None, "got a NoneType; this model holds soft prompts"),
    ]


NAME = "adapter_name is .*; a prompt's name is a text without|adapter_name is .*, a name that PyTorch or PEFT needs"
NAMES = [
    "a.b",
    "",
    " ",
    "train",
    "keys",
    "forward",
    "training",
    "__base__",
    "a/b",
    "..",
    "a\\b",
    "a\nb",
    3,
    None,
    ("a",),
]


@pytest.mark.parametrize("kind", DROPOUT)
def test_refusals_leave_the_backbone_as_it_was(kind, tokenizer, tmp_path):
    backbone = dropping(kind)
    seq2seq = backbone.config.is_encoder_decoder
    ours = CLASSES["SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM"]
    other = CLASSES["CAUSAL_LM" if seq2seq else "SEQ_2_SEQ_LM"]
    before = state_of(backbone)

    def refuse(call, message):
        with pytest.raises(PromptTuningError, match=message):
            call()
        assert state_of(backbone) == before

    for made, message in refused_configs(tmp_path):
        refuse(lambda made=made: get_prompt_tuning_model(backbone, made), message)
        refuse(lambda made=made: ours(backbone, made), message)
        if getattr(made, "prompt_tuning_init", None) not in ("TEXT", "CLASS_LABELS"):
            common = {"processing_class": tokenizer, "train_dataset": [{"input_ids": [5], "labels": [5]}]}
            refuse(
                lambda made=made, common=common: PromptTuningTrainer(
                    backbone, arguments(tmp_path), prompt_config=made, **common
                ),
                message if made is not None else "model is a .*; give one from get_prompt_tuning_model",
            )
    for name in NAMES:
        refuse(lambda name=name: get_prompt_tuning_model(backbone, config(), adapter_name=name), NAME)
    refuse(lambda: other(backbone, config()), "task_type is .*; leave task_type out, or load the backbone")
    refuse(lambda: config(num_virtual_tokens=0), "a prompt has at least 1 virtual token")
    _saved(kind).save_pretrained(tmp_path / "saved")
    refuse(
        lambda: ours.from_pretrained(backbone, tmp_path / "saved"), "is not a prompt of this backbone: the embedding"
    )
    refuse(
        lambda: load_prompt(tmp_path / "saved", backbone=backbone), "is not a prompt of this backbone: the embedding"
    )
    refuse(lambda: ours.from_pretrained(backbone, tmp_path / "none"), "neither a folder on this machine nor a Hub id")
    refuse(lambda: other.from_pretrained(backbone, tmp_path / "saved"), "is a prompt of task type")


def _saved(kind):
    return get_prompt_tuning_model(tiny_model(kind, seed=5), config())


@pytest.mark.parametrize("kind", DROPOUT)
def test_trainers_that_refuse_leave_the_backbone_as_it_was(kind, tokenizer, tmp_path):
    backbone = dropping(kind)
    before = state_of(backbone)
    template = PromptTemplate("{text} :", label_column="label", label_words=WORDS)
    unnamed = PromptTemplate("{text} :", label_column="label")
    wrong = [
        ({"train_dataset": []}, "the .*training data has no rows"),
        ({"train_dataset": [{"text": None, "label": "1"}]}, "is missing; give the row a text"),
        ({"train_dataset": [{"text": "x", "label": "3"}]}, "has no words"),
        ({"train_dataset": [{"text": "x" * 4000, "label": "1"}]}, "tokens" if kind not in ("t5",) else None),
        ({"train_dataset": ROWS, "eval_dataset": [{"other": "x"}]}, "no column of the .*evaluation data"),
        ({"train_dataset": ROWS, "template": unnamed}, "which say nothing to a language model"),
        ({"train_dataset": ROWS, "args": {"layout": "sideways"}}, "layout is 'sideways'"),
        ({"train_dataset": ROWS, "config": {"prompt_tuning_init": "PROMPT", "init_prompt": "a/b/c"}}, "a/b/c"),
    ]
    for values, message in wrong:
        if message is None:
            continue
        values = dict(values)
        args, made = arguments(tmp_path, **values.pop("args", {})), config(**values.pop("config", {}))
        used = values.pop("template", template)
        data = {"train_dataset": values["train_dataset"], "eval_dataset": values.get("eval_dataset")}
        with pytest.raises(PromptTuningError, match=message):
            PromptTuningTrainer(backbone, args, prompt_config=made, template=used, processing_class=tokenizer, **data)
        assert state_of(backbone) == before
        with pytest.raises(PromptTuningError, match=message):
            tasks = [PromptTask(name, made, template=used, **data) for name in "ab"]
            MultiPromptTrainer(backbone, args, tasks, tokenizer)
        assert state_of(backbone) == before
        with pytest.raises(PromptTuningError, match=message):
            members = [PromptTask(name, made, seed=i) for i, name in enumerate("ab")]
            EnsembleTrainer(backbone, args, members, processing_class=tokenizer, template=used, **data)
        assert state_of(backbone) == before
    with pytest.raises(PromptTuningError, match="got a LoraConfig"):
        tasks = [PromptTask("a", config(), ROWS, template=template), PromptTask("b", peft.LoraConfig(), ROWS)]
        MultiPromptTrainer(backbone, arguments(tmp_path), tasks, tokenizer)
    assert state_of(backbone) == before


@pytest.mark.parametrize("kind", DROPOUT)
def test_refusals_of_another_prompt_leave_the_model_as_it_was(kind, tmp_path):
    model = get_prompt_tuning_model(dropping(kind), config())
    before = state_of(model)

    def refuse(call, message):
        with pytest.raises(PromptTuningError, match=message):
            call()
        assert state_of(model) == before and list(model.peft_config) == ["default"]
        assert list(model.prompt_info) == list(model.prompt_encoder) == list(model.prompt_tokens) == ["default"]

    for made, message in refused_configs(tmp_path):
        refuse(lambda made=made: model.add_adapter("b", made), message)
    _saved(kind).save_pretrained(tmp_path / "saved")
    for name in NAMES:
        refuse(lambda name=name: model.add_adapter(name, config()), NAME)
        refuse(lambda name=name: model.load_adapter(tmp_path / "saved", name, ignore_mismatch=True), NAME)
    refuse(lambda: model.add_adapter("default", config()), "there is a prompt 'default' already; give another name")
    refuse(
        lambda: model.add_adapter("b", config(backbone_dropout=True)),
        "backbone_dropout is True, and this backbone has a prompt",
    )
    refuse(lambda: model.load_adapter(tmp_path / "saved", "b"), "is not a prompt of this backbone")
    refuse(lambda: model.load_adapter(tmp_path / "none", "b"), "neither a folder on this machine nor a Hub id")
    refuse(lambda: model.set_adapter("b"), "this model has no prompt 'b'; its prompts are 'default'")
    refuse(lambda: model.set_adapter(["default"]), r"this model has no prompt \['default'\]")
    refuse(lambda: model.delete_adapter("b"), "this model has no prompt 'b'")


def classifier(name, auto, **values):
    return auto.from_config(transformers.AutoConfig.for_model(name, **values))


BERT = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
LLAMA = dict(LLAMA_LIKE, pad_token_id=0)
T5 = dict(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)


@pytest.mark.parametrize(
    ("name", "auto", "values"),
    [
        ("bert", transformers.AutoModelForMaskedLM, BERT),
        ("bert", transformers.AutoModelForMultipleChoice, BERT),
        ("t5", transformers.AutoModel, T5),
    ],
)
@pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "CAUSAL_LM"])
def test_models_that_write_no_text(name, auto, values, task_type, tokenizer, tmp_path):
    backbone = classifier(name, auto, **values).train()
    _refused_everywhere(backbone, "which neither writes text nor classifies it", tokenizer, tmp_path, task_type)


def _refused_everywhere(backbone, message, tokenizer, folder, task_type=None):
    before = state_of(backbone) if isinstance(backbone, transformers.PreTrainedModel) else None
    made = config(task_type=task_type)
    tasks = [PromptTask(name, made, [{"input_ids": [5], "labels": [5]}]) for name in "ab"]
    members = [PromptTask(name, made, seed=i) for i, name in enumerate("ab")]
    template = PromptTemplate("{text} :", label_column="label", label_words=WORDS)
    tiny_prompt_model("llama").save_pretrained(folder / "saved")
    for call in (
        lambda: get_prompt_tuning_model(backbone, made),
        lambda: PromptTuningModelForCausalLM(backbone, made),
        lambda: PromptTuningModelForSeq2SeqLM(backbone, made),
        lambda: PromptTuningModelForCausalLM.from_pretrained(backbone, folder / "saved"),
        lambda: load_prompt(folder / "saved", backbone=backbone),
        lambda: PromptTuningTrainer(backbone, arguments(folder), prompt_config=made, processing_class=tokenizer),
        lambda: MultiPromptTrainer(backbone, arguments(folder), tasks, tokenizer),
        lambda: EnsembleTrainer(backbone, arguments(folder), members, ROWS, None, tokenizer, template),
    ):
        with pytest.raises(PromptTuningError, match=message):
            call()
        if before is not None:
            assert state_of(backbone) == before


def test_a_bert_that_looks_ahead(tokenizer, tmp_path):
    made = transformers.AutoConfig.for_model("bert", **BERT)
    message = "is a BertLMHeadModel whose config says is_decoder=False"
    _refused_everywhere(transformers.BertLMHeadModel(made), message, tokenizer, tmp_path)
    made.is_decoder = True
    model = get_prompt_tuning_model(transformers.BertLMHeadModel(made), config())
    assert model(**pad(ragged_rows([3, 2]), "right"), only_labelled=True).loss.requires_grad


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt_neox_japanese"])
def test_a_causal_model_whose_config_says_nothing_of_it(kind):
    """Pythia's config has is_decoder=False, which its attention does not read."""
    made = transformers.AutoConfig.for_model(kind, **LLAMA_LIKE, is_decoder=False)
    model = get_prompt_tuning_model(transformers.AutoModelForCausalLM.from_config(made), config())
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits[0, :-1], logits[1, :-1])


class Wrapped(nn.Module):
    """As DistributedDataParallel, which needs processes, or what torch.compile gives."""

    def __init__(self, module, name="module"):
        super().__init__()
        setattr(self, name, module)


def test_models_that_are_wrapped_already(tokenizer, tmp_path):
    backbone = tiny_model("llama")
    for given, message in (
        (
            Wrapped(backbone),
            r"the backbone is a Wrapped, a model that is wrapped already; give what it wraps \(its .module",
        ),
        (nn.DataParallel(backbone), r"the backbone is a DataParallel, a model that is wrapped already; give what"),
        (
            Wrapped(backbone, "_orig_mod"),
            r"the backbone is a Wrapped, a model that is wrapped already.*\(its ._orig_mod",
        ),
        (nn.Linear(2, 2), "the backbone is a Linear; give a language model of transformers"),
        (
            peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM")),
            "the backbone is a PeftModelForCausalLM with LORA in its layers",
        ),
        (
            peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), tiny_model("llama")),
            "the backbone is a LlamaForCausalLM with adapters in its layers",
        ),
    ):
        _refused_everywhere(given, message, tokenizer, tmp_path)
    for given, message in (
        ("gpt2", r"the backbone is a str \('gpt2'\); give a loaded model, e.g. from"),
        (None, "is a NoneType; give"),
    ):
        with pytest.raises(PromptTuningError, match=message):
            get_prompt_tuning_model(given, config())
        with pytest.raises(PromptTuningError, match=message):
            PromptTuningModelForCausalLM(given, config())


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_models_that_have_a_prompt_already(kind, tmp_path):
    theirs = peft.PromptTuningConfig(
        task_type="CAUSAL_LM" if kind == "llama" else "SEQ_2_SEQ_LM", num_virtual_tokens=3
    )
    for model in (tiny_prompt_model(kind), peft.get_peft_model(tiny_model(kind), theirs)):
        for call in (
            lambda model=model: get_prompt_tuning_model(model, config()),
            lambda model=model: type(tiny_prompt_model(kind))(model, config()),
            lambda model=model: load_prompt(tmp_path, backbone=model),
        ):
            with pytest.raises(PromptTuningError, match=r"the backbone is a .*, which has a prompt already"):
                call()
        again = get_prompt_tuning_model(model.get_base_model(), config())
        assert again(**pad(ragged_rows([3, 2]), "right")).loss.requires_grad


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_config_serves_several_models_and_stays_the_callers(kind, tokenizer):
    template = PromptTemplate("{text} :", label_column="label", label_words=WORDS)
    made = config(prompt_tuning_init="CLASS_LABELS")
    before = copy.deepcopy(made)
    model = get_prompt_tuning_model(tiny_model(kind), made, tokenizer, template)
    assert made == before and made.tokenizer is None and made.token_dim is None
    other = PromptTemplate("{text} :", label_column="label", label_words={"1": "day", "2": "night"})
    again = get_prompt_tuning_model(tiny_model(kind), made, tokenizer, other)
    assert model.info.initialization["label_words"] == ["complaint", "no complaint"]
    assert again.info.initialization["label_words"] == ["day", "night"]


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_more_prompts_use_the_models_tokenizer(kind, tokenizer):
    first = config(prompt_tuning_init="TEXT", prompt_tuning_init_text="the parcel never")
    expected = get_prompt_tuning_model(tiny_model(kind), first, tokenizer)
    model = get_prompt_tuning_model(tiny_model(kind), config(), tokenizer)
    model.add_adapter("b", first)
    model.add_adapter("c", config(prompt_tuning_init="CLASS_LABELS", label_words=["great", "awful"]))
    model.delete_adapter("b")
    model.add_adapter("b", first)
    model.set_adapter("b")
    assert torch.equal(model.prompt, expected.prompt)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_loaded_model_knows_its_tokenizer(kind, tokenizer, tmp_path):
    tiny_prompt_model(kind).save_pretrained(tmp_path)
    model, _, _ = load_prompt(tmp_path, backbone=tiny_model(kind), tokenizer=tokenizer)
    model.add_adapter("b", config(prompt_tuning_init="TEXT", prompt_tuning_init_text="the parcel never"))
    assert model.prompt_encoder["b"].embedding.weight.requires_grad


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_peft_does_with_weights_has_no_meaning(kind):
    model = tiny_prompt_model(kind)
    for name, message in (
        ("merge_and_unload", "merge_and_unload adds an adapter's weights to the backbone's.*export_vllm"),
        ("merge_adapter", "merge_adapter adds an adapter's weights"),
        ("unmerge_adapter", "unmerge_adapter adds an adapter's weights"),
        ("unload", "unload is for adapters that are put into a backbone's layers.*get_base_model"),
        ("add_weighted_adapter", "add_weighted_adapter adds up changes of weights.*PromptEnsemble"),
    ):
        with pytest.raises(PromptTuningError, match=message):
            getattr(model, name)()


READING = {
    "falcon": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.5),
    "gptj": dict(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64, attn_pdrop=0.5, resid_pdrop=0.5),
    "gpt_neo": dict(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]], max_position_embeddings=64,
        intermediate_size=48, attention_dropout=0.5, resid_dropout=0.5,
    ),
    "persimmon": dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, attention_dropout=0.5,
        max_position_embeddings=64, hidden_dropout=0.5,
    ),
    "opt": dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
                max_position_embeddings=64, dropout=0.5, attention_dropout=0.5),
}  # fmt: skip


def reading(kind):
    if kind in DROPOUT:
        return tiny_model(kind, **DROPOUT[kind])
    made = transformers.AutoConfig.for_model(kind, vocab_size=VOCAB, pad_token_id=0, eos_token_id=2, **READING[kind])
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(made)


@pytest.mark.parametrize("kind", [*READING, *DROPOUT])
def test_dropout_is_off_and_the_config_says_what_it_said(kind, tmp_path):
    backbone = reading(kind)
    before, first = backbone.config.to_dict(), json.loads(backbone.config.to_json_string())
    batch = pad(ragged_rows([6, 4]), "right")
    with torch.no_grad():
        assert len({backbone.train()(**batch).loss.item() for _ in range(3)}) == 3
    shown = backbone.config
    model = get_prompt_tuning_model(backbone, config()).train()
    assert backbone.config is shown and backbone.config.to_dict() == before
    assert len({model(**batch).loss.item() for _ in range(3)}) == 1
    backbone.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.items() >= {key: value for key, value in first.items() if "drop" in key}.items()
    assert (
        type(backbone).from_pretrained(tmp_path).config.to_dict().items()
        >= {key: value for key, value in before.items() if "drop" in key}.items()
    )
    # what is set on the backbone later reaches the modules, and copies behave as it does
    backbone.set_attn_implementation("eager")
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len({one.train()(**batch).loss.item() for _ in range(3)}) == 1
        parts = one.get_base_model().modules()
        assert {part.config._attn_implementation for part in parts if hasattr(part, "config")} == {
            backbone.config._attn_implementation
        }


def test_prompts_on_one_backbone_agree_on_its_dropout():
    backbone = tiny_model("gpt2", **DROPOUT["gpt2"])
    first = get_prompt_tuning_model(backbone, config(backbone_dropout=True)).train()
    batch = pad(ragged_rows([6, 4]), "right")
    for made in (config(), config(backbone_dropout=True)):
        model = tiny_prompt_model("gpt2", backbone_dropout=not made.backbone_dropout)
        for call in (
            lambda made=made, model=model: model.add_adapter("b", made),
            lambda made=made, model=model: get_prompt_tuning_model(model.get_base_model(), made),
        ):
            with pytest.raises(PromptTuningError, match="and this backbone has a prompt whose backbone_dropout is"):
                call()
    first.add_adapter("b", config(backbone_dropout=True))
    second = get_prompt_tuning_model(backbone, config(backbone_dropout=True)).train()
    assert (
        len({first(**batch).loss.item() for _ in range(3)})
        == len({second(**batch).loss.item() for _ in range(3)})
        == 3
    )


def test_a_row_that_is_too_long_for_a_trainer_of_rows_of_ids(tokenizer, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[5] * 200], "labels": [[5] * 200]})
    backbone = dropping("llama")
    before = state_of(backbone)
    with pytest.raises(PromptTuningError, match="row 1 of the training data has 200 tokens"):
        PromptTuningTrainer(
            backbone, arguments(tmp_path), prompt_config=config(), train_dataset=rows, processing_class=tokenizer
        )
    assert state_of(backbone) == before


@pytest.mark.parametrize("older", [True, False])
def test_a_checkpoint_of_several_prompts_is_resumed_whole(monkeypatch, caplog, tmp_path, older):
    """`Trainer` before transformers 5.23 loads what stands in a checkpoint's folders, and leaves out its root."""
    monkeypatch.setattr(held_prompts, "RESUMES_THE_ROOT", not older)
    saved = with_prompts(tiny_prompt_model("llama"), ref=4)
    saved.save_pretrained(tmp_path)
    model = with_prompts(tiny_prompt_model("llama", seed=3, backbone=tiny_model("llama")), ref=4)
    before = model.prompt.detach().clone()
    model.load_adapter(tmp_path / "ref", "ref")  # without trainer_state.json it is no checkpoint
    assert torch.equal(model.prompt, before)
    (tmp_path / "trainer_state.json").write_text("{}")
    model.load_adapter(tmp_path / "ref", "ref")
    assert torch.equal(model.prompt, saved.prompt if older else before)
    assert model.prompt.requires_grad
    assert ("without its 'default'; it is loaded, too" in caplog.text) == older

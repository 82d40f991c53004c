"""What others do with a model that has a classification head: transformers' pipelines, and TRL's reward trainer."""

import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model, load_prompt
from tests.shared.classifiers import hidden_by_hand, sequence_logits_by_hand, tiny_classifier, token_logits_by_hand
from tests.shared.classifiers import tokenizer_with_cls as make_tokenizer
from tests.shared.head_runs import TEXTS, head_of, require_same
from tests.shared.reference import relative_error
from tests.shared.versions import WITHOUT_TRL

NAMES = ["bad", "fair", "good"]


def with_prompt(name, task_type="SEQ_CLS", **changes):
    names = {} if changes else {"id2label": dict(enumerate(NAMES))}
    torch.manual_seed(1)
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM")
    return get_prompt_tuning_model(tiny_classifier(name, task_type, **names | changes), config)


def logits_by_hand(model, ids):
    read = {"SEQ_CLS": sequence_logits_by_hand, "TOKEN_CLS": token_logits_by_hand}[model.task_type]
    hidden = hidden_by_hand(model.get_base_model(), model.prompt, torch.tensor(ids), behind=0)
    return read(model.get_base_model(), model.prompt_encoder["default"].classifier, hidden)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("size", [1, 3])
def test_pipelines_of_transformers_give_the_labels_of_each_text_alone(name, size):
    """In batches that are padded, too."""
    tokenizer = make_tokenizer()
    model = with_prompt(name).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    found = classify(TEXTS, batch_size=size, top_k=None)
    for text, scores in zip(TEXTS, found, strict=True):
        expected = logits_by_hand(model, tokenizer(text)["input_ids"]).softmax(-1).tolist()
        assert {score["label"]: score["score"] for score in scores} == pytest.approx(
            dict(zip(NAMES, expected, strict=True)), abs=1e-5
        )
    model = with_prompt(name, "TOKEN_CLS").eval()
    tag = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    for text, tokens in zip(TEXTS, tag(TEXTS, batch_size=size), strict=True):
        ids = tokenizer(text)["input_ids"]
        expected = logits_by_hand(model, ids).softmax(-1)
        assert [token["index"] for token in tokens] == list(range(1, len(ids)))
        for token in tokens:
            assert token["entity"] == NAMES[int(expected[token["index"]].argmax())]
            assert token["score"] == pytest.approx(expected[token["index"]].max().item(), abs=1e-5)


PAIRS = [
    {"chosen": "thank you for the quick help", "rejected": "nobody answers"},
    {"chosen": "great film", "rejected": "why is my line down again"},
]


# TRL's own: it sets a name that transformers has deprecated, and asks with another.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_trls_reward_trainer_trains_prompt_and_head(name, tmp_path):
    """A step of it is one by hand, each text alone; the prompt is saved and loaded with its head."""
    pytest.importorskip("trl", reason=WITHOUT_TRL)
    from trl import RewardConfig, RewardTrainer

    tokenizer = make_tokenizer()
    backbone = tiny_classifier(name, num_labels=1)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    torch.manual_seed(1)
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM")
    model = get_prompt_tuning_model(backbone, config)
    args = RewardConfig(
        str(tmp_path),
        max_steps=1,
        learning_rate=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        dataloader_pin_memory=False,
    )
    trainer = RewardTrainer(model, args, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer)
    rewards = {}
    for kind in ("chosen", "rejected"):
        rows = [row[f"{kind}_ids"] for row in trainer.train_dataset]
        assert [row[-1] for row in rows] == [tokenizer.eos_token_id] * 2
        rewards[kind] = torch.stack([logits_by_hand(model, row)[0] for row in rows])
    loss = -torch.nn.functional.logsigmoid(rewards["chosen"] - rewards["rejected"]).mean()
    loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    expected = {name: (weight - 0.5 * weight.grad).detach().clone() for name, weight in trained.items()}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    model.zero_grad()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, weight in trained.items():
        assert relative_error(weight.detach() - before[name], expected[name] - before[name]) < 1e-4, name
    require_same(dict(backbone.state_dict()), state)
    trainer.save_model()
    loaded = load_prompt(tmp_path, backbone=backbone).model
    require_same(head_of(loaded), head_of(model))

"""TRL's trainers, and transformers' own, train a prompt at any place on rows that begin with its head."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import set_seed

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.foreign_trainers import COMMON, by_hand
from tests.shared.places import expected_columns, placed_model, whole_loss_by_hand
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import losses
from tests.shared.trl_runs import BETA, RATE
from tests.shared.trl_runs import COMMON as STEPS
from tests.shared.vanilla_trainer import vanilla
from tests.shared.versions import WITHOUT_TRL

pytest.importorskip("trl", reason=WITHOUT_TRL)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

# TRL's own: it sets a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
PLACES = ["after_bos", "system"]


def chats(count=12):
    """Conversations of one and of two turns."""
    words = ["never came", "thank you", "awful", "great help", "why again", "the old town"]
    rows = []
    for i in range(count):
        turns = [("system", "be kind"), ("user", words[i % 6]), ("assistant", words[(i + 1) % 6])]
        turns += [("user", "again"), ("assistant", words[(i + 2) % 6])] * (i % 2)
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return Dataset.from_list(rows)


def made(place, tokenizer, name="llama"):
    """A prompt at a place of a chat template; a second call makes the same one."""
    set_seed(3)
    config = PromptTuningConfig(
        num_virtual_tokens=4, prompt_tuning_init="RANDOM", random_range=1.0, prompt_position=place
    )
    return get_prompt_tuning_model(tiny_model(name), config, tokenizer)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", ["chatml", "gemma"])
@pytest.mark.parametrize("answers_alone", [True, False])
def test_sft_on_conversations_is_the_hand_written_loop(place, family, answers_alone, tmp_path):
    tokenizer = chat_tokenizer(family, marked=True)
    data = chats() if family == "chatml" else chats().map(lambda row: {"messages": row["messages"][1:]})
    model = made(place, tokenizer)
    assert len(model.peft_config["default"].head) == (1 if place == "after_bos" else 8 if family == "chatml" else 6)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path),
            assistant_only_loss=answers_alone,
            bf16=False,
            shuffle_dataset=False,
            dataloader_pin_memory=False,
            **COMMON,
        ),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    rows = trainer.train_dataset
    if "labels" not in rows.column_names:
        rows = rows.map(lambda row: {"labels": row["input_ids"]})
    expected, prompt = by_hand(made(place, tokenizer), rows, whole_loss_by_hand)
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trainer.model.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("against", ["start", "backbone"])
def test_dpo_on_conversations_is_the_paper_by_hand(place, against, tmp_path):
    tokenizer = chat_tokenizer("chatml")
    pairs = Dataset.from_list(
        [
            {
                "prompt": row["messages"][:2],
                "chosen": [{"role": "assistant", "content": "thank you"}],
                "rejected": [{"role": "assistant", "content": f"never again {i}"}],
            }
            for i, row in enumerate(chats(6))
        ]
    )
    model, fresh = made(place, tokenizer), made(place, tokenizer)
    options = {} if against == "start" else {"ref_model": tiny_model("llama")}
    args = DPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=2, **STEPS)
    trainer = DPOTrainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer, **options)
    rows = list(trainer.train_dataset)
    trainer.train()
    head, expected = len(model.peft_config["default"].head), []

    def log_prob(scored, row, which):
        ids = torch.tensor([*row["prompt_ids"], *row[which]])
        if scored is None:
            logits = fresh.get_base_model()(input_ids=ids[None]).logits[0]
        else:
            logits = expected_columns(scored, ids[head:], True)[4:]
        places = torch.arange(len(row["prompt_ids"]), len(ids))
        return logits.log_softmax(-1)[places - 1, ids[places]].sum()

    reference = made(place, tokenizer) if against == "start" else None
    for start in (0, 2, 4):
        margins = []
        for row in rows[start : start + 2]:
            with torch.no_grad():
                before = log_prob(reference, row, "chosen_ids") - log_prob(reference, row, "rejected_ids")
            margins.append(log_prob(fresh, row, "chosen_ids") - log_prob(fresh, row, "rejected_ids") - before)
        loss = -logsigmoid(BETA * torch.stack(margins)).mean()
        expected.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, fresh.prompt)
        fresh.prompt.data -= RATE * gradient
    assert losses(trainer) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(model.prompt.detach(), fresh.prompt.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_grpo_on_conversations_follows_its_gradient_by_hand(place, tmp_path):
    """The first step: the samples are the policy's own, so the gradient is that of advantage times log-probability."""
    tokenizer, seen = chat_tokenizer("chatml"), []
    model, fresh = made(place, tokenizer), made(place, tokenizer)

    class Watched(GRPOTrainer):
        def _prepare_inputs(self, inputs):
            given = super()._prepare_inputs(inputs)
            seen.append(dict(given))
            return given

    options = dict(per_device_train_batch_size=8, num_generations=4, max_completion_length=3, beta=0.0, max_steps=1)
    steps = {name: value for name, value in STEPS.items() if name != "train_sampling_strategy"}
    trainer = Watched(
        model=model,
        args=GRPOConfig(output_dir=str(tmp_path), **steps | options),
        train_dataset=Dataset.from_list([{"prompt": row["messages"][:2]} for row in chats(2)]),
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
        processing_class=tokenizer,
    )
    trainer.train()
    given, head, gain, count = seen[0], len(model.peft_config["default"].head), 0.0, 0
    for row in range(8):
        prompt = given["prompt_ids"][row][given["prompt_mask"][row].bool()]
        words = given["completion_ids"][row][given["completion_mask"][row].bool()]
        assert prompt[:head].tolist() == list(model.peft_config["default"].head)
        logits = expected_columns(fresh, torch.cat([prompt, words])[head:], True)[4:][len(prompt) - 1 : -1]
        gain = gain + given["advantages"][row] * logits.log_softmax(-1).gather(1, words[:, None]).sum()
        count += len(words)
    (gradient,) = torch.autograd.grad(-gain / count, fresh.prompt)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(model.prompt.detach(), fresh.prompt.detach() - RATE * gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_the_trainer_of_transformers(place, tmp_path, tokenizer):
    model, twin = placed_model("llama", place), placed_model("llama", place)
    head = list(model.peft_config["default"].head)
    trainer = vanilla(tmp_path, tokenizer, model, max_grad_norm=0.0, train_sampling_strategy="sequential")
    rows = [{"input_ids": [*head, 21, 22 + i, 23], "labels": [*head, 21, 22 + i, 23]} for i in range(6)]
    trainer.train_dataset = Dataset.from_list(rows)
    trainer.args.logging_steps = 1
    trainer.train()
    expected, prompt = by_hand(twin, Dataset.from_list(rows), whole_loss_by_hand, batch=2, epochs=2)
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(model.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)

"""TRL's trainers on conversations train the prompt as ours does, with the same tokens as targets."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from hf_prompt_tuning import ChatFormat, ChatTemplate
from tests.shared.chat_templates import MARKED, chat_tokenizer
from tests.shared.conversations import CHATS
from tests.shared.foreign_trainers import COMMON as SFT_COMMON
from tests.shared.foreign_trainers import by_hand, ours
from tests.shared.reference import reference_loss, tiny_prompt_model
from tests.shared.trainers import losses
from tests.shared.trl_runs import BETA, COMMON
from tests.shared.versions import WITHOUT_TRL

pytest.importorskip("trl", reason=WITHOUT_TRL)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

# TRL's own: it sets a name that transformers has deprecated, and says that compute_metrics will go.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning", "ignore:.*return_outputs=True:FutureWarning"
)
TWELVE = [{"messages": chat} for chat in CHATS * 3]


@pytest.mark.parametrize("name", MARKED)
def test_sft_on_the_assistants_turns(name, tmp_path):
    """Its labels are those of a `ChatTemplate`, token by token, and so are losses and prompt."""
    tokenizer = chat_tokenizer(name, marked=True)
    trainer = SFTTrainer(
        model=tiny_prompt_model("llama"),
        args=SFTConfig(
            output_dir=str(tmp_path),
            assistant_only_loss=True,
            shuffle_dataset=False,
            bf16=False,
            dataloader_pin_memory=False,
            **SFT_COMMON,
        ),
        train_dataset=Dataset.from_list(TWELVE),
        processing_class=tokenizer,
    )
    encoder = tiny_prompt_model("llama").row_encoder(tokenizer, ChatTemplate(chat=ChatFormat()))
    own = encoder.encode_dataset(Dataset.from_list(TWELVE), "training")
    for theirs, row in zip(trainer.train_dataset, own, strict=True):
        assert theirs["input_ids"] == row["input_ids"]
        assert theirs["labels"] == row["labels"]
    trainer.train()
    expected, prompt = by_hand(tiny_prompt_model("llama"), own, reference_loss)
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trainer.model.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)
    again = ours(tmp_path, tokenizer, tiny_prompt_model("llama"), own.select_columns(["input_ids", "labels"]))
    assert losses(again) == pytest.approx(losses(trainer), rel=1e-4)


def test_dpo_on_conversations(tmp_path):
    """The losses by hand: completions behind [prompt | chat], against those behind the prompt's start."""
    tokenizer = chat_tokenizer("llama3")
    rows = [
        {
            "prompt": chat[:-1],
            "chosen": [{"role": "assistant", "content": "thank you"}],
            "rejected": [{"role": "assistant", "content": "why again"}],
        }
        for chat in CHATS
    ]
    model = tiny_prompt_model("llama")
    values = COMMON | {"per_device_train_batch_size": 4, "max_steps": 2}
    prompts = [model.prompt.detach().clone()]

    class Keep(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            prompts.append(model.prompt.detach().clone())

    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(output_dir=str(tmp_path), **values),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Keep()],
    )

    def log_prob(row, answer, vectors):
        before = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        ids = torch.tensor(tokenizer.apply_chat_template([*row["prompt"], *answer])["input_ids"])
        backbone = model.get_base_model()
        with torch.no_grad():
            embeds = torch.cat([vectors, backbone.get_input_embeddings()(ids)])[None]
            scores = backbone(inputs_embeds=embeds).logits[0].log_softmax(-1)
        places = torch.arange(len(vectors) + len(before), len(vectors) + len(ids))
        return scores[places - 1, ids[len(before) :]].sum()

    def loss(vectors):
        terms = []
        for row in rows:
            chosen, rejected = (
                log_prob(row, row[name], vectors) - log_prob(row, row[name], prompts[0])
                for name in ("chosen", "rejected")
            )
            terms.append(-logsigmoid(BETA * (chosen - rejected)))
        return torch.stack(terms).mean().item()

    trainer.train()
    assert losses(trainer) == pytest.approx([loss(prompts[0]), loss(prompts[1])], rel=1e-3)
    assert loss(prompts[1]) < loss(prompts[0])


def test_grpo_on_conversations(tmp_path):
    """Its samples follow what the chat template writes, and train the prompt."""
    tokenizer = chat_tokenizer("llama3")
    model = tiny_prompt_model("llama")
    asked = [chat[:-1] for chat in CHATS[1:3]]
    seen = []

    def reward(prompts, completions, completion_ids, **_):
        seen.extend(zip(prompts, completions, strict=True))
        return [float(sum(ids) % 7) for ids in completion_ids]

    values = COMMON | {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_completion_length": 3,
        "max_steps": 1,
        "beta": 0.0,
    }
    del values["train_sampling_strategy"]
    prompts = []

    class Watched(GRPOTrainer):
        def _prepare_inputs(self, inputs):
            given = super()._prepare_inputs(inputs)
            for ids, mask in zip(given["prompt_ids"], given["prompt_mask"], strict=True):
                prompts.append(ids[mask.bool()].tolist())
            return given

    trainer = Watched(
        model=model,
        args=GRPOConfig(output_dir=str(tmp_path), **values),
        train_dataset=Dataset.from_list([{"prompt": chat} for chat in asked]),
        reward_funcs=reward,
        processing_class=tokenizer,
    )
    before = model.prompt.detach().clone()
    trainer.train()
    expected = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in asked]
    assert sorted(prompts) == sorted([ids for ids in expected for _ in range(4)])
    assert all(prompt in asked and answer[0]["role"] == "assistant" for prompt, answer in seen) and len(seen) == 8
    assert not torch.equal(model.prompt, before)

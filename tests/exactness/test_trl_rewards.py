"""TRL's GRPO and RLOO train a prompt-tuning model on its own samples as a calculation by hand would."""

import pytest
import torch
from datasets import Dataset

from hf_prompt_tuning import PromptTuningError
from tests.shared.reference import greedy, tiny_prompt_model
from tests.shared.trl_runs import COMMON, RATE
from tests.shared.versions import WITHOUT_TRL

pytest.importorskip("trl", reason=WITHOUT_TRL)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import use_adapter

# TRL's own: it sets a name that transformers has deprecated, and asks with another.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
TEMPERATURE = 0.7


@pytest.fixture
def prompts(messages):
    """Two prompts of different lengths, so that one is padded, at the left."""
    return Dataset.from_list([{"prompt": f"{m['message']} Label :"} for m in messages[3:5]])


def reward(completion_ids, **_):
    """Deterministic, and different among the samples of a prompt."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def tune(kind, folder, tokenizer, model, data, rewards=reward, **values):
    """A trainer that keeps what each of its steps is given, and the prompt of that moment."""
    trainer_class, arguments = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[kind]
    values = (
        COMMON
        | {
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "num_generations": 4,
            "max_completion_length": 3,
            "temperature": TEMPERATURE,
            "beta": 0.0,
        }
        | values
    )

    class Watched(trainer_class):
        def _prepare_inputs(self, inputs):
            given = super()._prepare_inputs(inputs)
            self.seen.append((dict(given), self.model.prompt.detach().clone()))
            return given

    del values["train_sampling_strategy"]
    trainer = Watched(
        model=model,
        args=arguments(output_dir=str(folder), **values),
        train_dataset=data,
        reward_funcs=rewards,
        processing_class=tokenizer,
    )
    trainer.seen = []
    return trainer


def rows_of(given):
    """The token ids of each row's prompt and completion, without pads."""
    rows = zip(
        given["prompt_ids"], given["prompt_mask"], given["completion_ids"], given["completion_mask"], strict=True
    )
    return [(prompt[shown.bool()], words[kept.bool()]) for prompt, shown, words, kept in rows]


def log_probs(backbone, vectors, rows):
    """The log-probability of each token of each completion behind [vectors | prompt], at the trainer's temperature."""
    found = []
    for prompt, completion in rows:
        ids = torch.cat([prompt, completion])
        embeds = torch.cat([vectors, backbone.get_input_embeddings()(ids)])[None]
        scores = (backbone(inputs_embeds=embeds).logits[0] / TEMPERATURE).log_softmax(-1)
        places = torch.arange(len(vectors) + len(prompt), len(vectors) + len(ids))
        found.append(scores[places - 1, completion])
    return found


def groups(rows):
    """The numbers of the rows of each prompt."""
    found = {}
    for number, (prompt, _) in enumerate(rows):
        found.setdefault(tuple(prompt.tolist()), []).append(number)
    return list(found.values())


def grpo_loss(now, old, ref, rows, beta):
    rewards, advantages = torch.tensor(reward([c.tolist() for _, c in rows])), torch.zeros(len(rows))
    for group in groups(rows):
        advantages[group] = (rewards[group] - rewards[group].mean()) / (rewards[group].std() + 1e-4)
    total = 0.0
    for new, before, reference, advantage in zip(now, old, ref, advantages, strict=True):
        ratio, gone = (new - before).exp(), reference - new
        gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        total = total + (beta * ratio * (gone.exp() - gone - 1) - gain).sum()
    return total / sum(map(len, now)), advantages


def rloo_loss(now, old, ref, rows, beta):
    rewards, advantages = torch.tensor(reward([c.tolist() for _, c in rows])), torch.zeros(len(rows))
    rewards -= beta * torch.stack([(o - r).sum() for o, r in zip(old, ref, strict=True)])
    for group in groups(rows):
        others = (rewards[group].sum() - rewards[group]) / (len(group) - 1)
        advantages[group] = rewards[group] - others
    ratio = torch.stack([(new - before).sum() for new, before in zip(now, old, strict=True)]).exp()
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean(), advantages


def by_hand(kind, model, seen, beta, iterations):
    """Gradient descent on the prompt, on the samples that the trainer drew; what each step's loss was."""
    backbone, vectors, found = model.get_base_model(), model.prompt.detach().clone().requires_grad_(), []
    start = vectors.detach().clone()
    for step, (given, _) in enumerate(seen):
        rows = rows_of(given)
        now = log_probs(backbone, vectors, rows)
        if step % iterations == 0:
            old = [scores.detach() for scores in now]
        with torch.no_grad():
            ref = log_probs(backbone, start, rows)
        loss, advantages = {"grpo": grpo_loss, "rloo": rloo_loss}[kind](now, old, ref, rows, beta)
        torch.testing.assert_close(given["advantages"], advantages, rtol=1e-3, atol=1e-3)
        (gradient,) = torch.autograd.grad(loss, vectors)
        found.append(loss.item())
        vectors = (vectors - RATE * gradient).detach().requires_grad_()
    return found, vectors.detach()


def may_end_early(model):
    """Half of the vocabulary ends a text, so that completions differ in length."""
    model.get_base_model().generation_config.eos_token_id = [2, *range(4, 200)]
    return model


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("name", "beta", "length"), [("llama", 0.0, 1), ("llama", 0.3, 1), ("llama", 0.3, 4), ("gpt2", 0.3, 4)]
)
def test_training_is_the_paper_by_hand(name, kind, beta, length, prompts, tmp_path, tokenizer):
    """Samples of one token, or of several and different lengths; each batch used twice, so that ratios are not 1."""
    model = may_end_early(tiny_prompt_model(name))
    start = model.prompt.detach().clone()
    values = {"max_completion_length": length, "beta": beta, "num_iterations": 2, "max_steps": 4}
    trainer = tune(kind, tmp_path, tokenizer, model, prompts, **values)
    trainer.train()
    lengths = {len(completion) for given, _ in trainer.seen for _, completion in rows_of(given)}
    assert len(lengths) == min(length, 4) or len(lengths) > 1
    losses, prompt = by_hand(kind, tiny_prompt_model(name), trainer.seen, beta, iterations=2)
    found = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert found == pytest.approx(losses, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(model.prompt.detach(), prompt, rtol=1e-4, atol=1e-5)
    assert (prompt - start).abs().max() > 1e-2
    assert ("ref" in model.peft_config) == (beta > 0 or kind == "rloo")


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_samples_are_drawn_behind_the_prompt(name, kind, prompts, tmp_path, tokenizer):
    """With the likeliest token alone to draw from, they are what the model itself goes on with, row by row."""
    model = tiny_prompt_model(name)
    trainer = tune(kind, tmp_path, tokenizer, model, prompts, top_k=1, max_steps=1, max_completion_length=4)
    trainer.train()
    fresh = tiny_prompt_model(name)
    for prompt, completion in rows_of(trainer.seen[0][0]):
        assert completion.tolist() == greedy(fresh, prompt, 4)[: len(completion)]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_what_is_rewarded_becomes_likelier(kind, prompts, tmp_path, tokenizer):
    """Completions of one token, of which the even ones are rewarded."""

    def even(completion_ids, **_):
        return [float(ids[0] % 2 == 0) for ids in completion_ids]

    def chance(model):
        with torch.no_grad():
            rows = [torch.tensor(tokenizer(row["prompt"])["input_ids"]) for row in prompts]
            return min(model(input_ids=ids[None]).logits[0, -1].softmax(-1)[::2].sum().item() for ids in rows)

    model = tiny_prompt_model("llama")
    before = chance(model)
    values = {"max_completion_length": 1, "num_generations": 16, "per_device_train_batch_size": 32, "max_steps": 15}
    values |= {"optim": "adamw_torch", "learning_rate": 0.1, "logging_steps": 100}
    tune(kind, tmp_path, tokenizer, model, prompts, even, **values).train()
    assert chance(model) > before + 0.02


@torch.no_grad()
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_scores_of_policy_reference_and_backbone(kind, prompts, tmp_path, tokenizer):
    """Log-probabilities and entropies, from which every loss, mask and metric is made, where TRL reads them."""
    model = may_end_early(tiny_prompt_model("llama"))
    trainer = tune(kind, tmp_path, tokenizer, model, prompts, beta=0.3)
    trainer.model.prompt.data += 0.3
    given = trainer._generate_and_score_completions([row for row in prompts for _ in range(4)])
    ids = torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1)
    mask = torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1)
    width, rows = given["completion_ids"].shape[1], rows_of(given)
    assert not given["prompt_mask"].all() and not given["completion_mask"].all()
    start = tiny_prompt_model("llama").prompt
    for adapter, vectors in {"default": start + 0.3, "ref": start, None: start[:0]}.items():
        with use_adapter(model, adapter):
            scores, entropies, _ = trainer._get_per_token_logps_and_entropies(
                model, ids, mask, width, batch_size=3, compute_entropy=True
            )
        assert scores.shape == entropies.shape == (8, width)
        for row, right in enumerate(log_probs(model.get_base_model(), vectors, rows)):
            torch.testing.assert_close(scores[row, : len(right)], right, rtol=1e-4, atol=1e-4)
            assert not scores[row, len(right) :].any() and not entropies[row, len(right) :].any()
            assert (entropies[row, : len(right)] > 1).all()


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_generation_that_knows_nothing_of_prompts_is_refused(kind, prompts, tmp_path, tokenizer):
    """Continuous batching would go on from the backbone alone."""
    model = tiny_prompt_model("llama")
    start = model.prompt.detach().clone()
    trainer = tune(kind, tmp_path, tokenizer, model, prompts, use_transformers_continuous_batching=True)
    with pytest.raises(PromptTuningError, match="generate_batch is called, and continuous batching"):
        trainer.train()
    assert torch.equal(model.prompt, start)
    for name in ("init_continuous_batching", "continuous_batching_context_manager"):
        with pytest.raises(PromptTuningError, match=f"{name} is called, and continuous batching generates"):
            getattr(model, name)()

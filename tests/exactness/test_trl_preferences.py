"""TRL's DPO and KTO train a prompt-tuning model as the losses of their papers, written by hand, would."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid, sigmoid

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, get_prompt_tuning_model, load_prompt
from tests.shared.reference import tiny_prompt_model, with_prompts
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import losses
from tests.shared.trl_runs import BETA, COMMON, RATE
from tests.shared.versions import WITHOUT_TRL

pytest.importorskip("trl", reason=WITHOUT_TRL)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

# TRL's own: it sets a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@pytest.fixture
def pairs(messages):
    """Six pairs of prompts and completions of different lengths."""
    words = {"1": (" complaint", " no complaint at all"), "2": (" no complaint", " complaint")}
    return Dataset.from_list(
        [
            {"prompt": f"{m['message']} Label :", "chosen": words[m["label"]][0], "rejected": words[m["label"]][1]}
            for m in messages[:6]
        ]
    )


@pytest.fixture
def judged(messages):
    """Eight completions, wanted and unwanted."""
    return Dataset.from_list(
        [
            {
                "prompt": f"{m['message']} Label :",
                "completion": " complaint" if m["label"] == "1" else " no complaint",
                "label": number % 3 != 0,
            }
            for number, m in enumerate(messages[:8])
        ]
    )


def log_prob(backbone, vectors, prompt_ids, completion_ids):
    """The summed log-probability of a completion behind [vectors | prompt]."""
    ids = torch.tensor([*prompt_ids, *completion_ids])
    embeds = torch.cat([vectors, backbone.get_input_embeddings()(ids)])[None]
    scores = backbone(inputs_embeds=embeds).logits[0].log_softmax(-1)
    places = torch.arange(len(vectors) + len(prompt_ids), len(vectors) + len(ids))
    return scores[places - 1, ids[len(prompt_ids) :]].sum()


def batches(trainer, size):
    rows = list(trainer.train_dataset)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def dpo(folder, tokenizer, model, data, reference=None, **values):
    values = {"per_device_train_batch_size": 2} | values
    return DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(output_dir=str(folder), **COMMON | values),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )


def margins(backbone, vectors, rows):
    """[chosen] and [rejected] log-probabilities of some rows."""
    chosen = [log_prob(backbone, vectors, row["prompt_ids"], row["chosen_ids"]) for row in rows]
    rejected = [log_prob(backbone, vectors, row["prompt_ids"], row["rejected_ids"]) for row in rows]
    return torch.stack(chosen), torch.stack(rejected)


def dpo_by_hand(model, reference, steps):
    """Gradient descent on the prompt alone; `reference` is the vectors that the reference model has in front."""
    backbone, vectors, logged = model.get_base_model(), model.prompt.detach().clone().requires_grad_(), []
    for rows in steps:
        with torch.no_grad():
            ref_chosen, ref_rejected = margins(backbone, reference, rows)
        chosen, rejected = margins(backbone, vectors, rows)
        rewards = BETA * (chosen - ref_chosen), BETA * (rejected - ref_rejected)
        loss = -logsigmoid(rewards[0] - rewards[1]).mean()
        (gradient,) = torch.autograd.grad(loss, vectors)
        logged.append([x.mean().item() for x in (loss, chosen, rejected, *rewards)])
        vectors = (vectors - RATE * gradient).detach().requires_grad_()
    return logged, vectors.detach()


LOGGED = ("loss", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected")


def logged(trainer):
    return [[log[name] for name in LOGGED] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize(
    ("name", "against"),
    [("llama", "start"), ("llama", "backbone"), ("llama", "no copy"), ("gpt2", "start"), ("bloom", "start")],
)
def test_dpo_is_the_paper_by_hand(name, against, pairs, tmp_path, tokenizer):
    """Against the prompt as it was before training, which is TRL's choice; or the backbone, given or left alone."""
    model = tiny_prompt_model(name)
    start, fresh = model.prompt.detach().clone(), tiny_prompt_model(name)
    trainer = dpo(tmp_path, tokenizer, model, pairs, tiny_model(name) if against == "backbone" else None)
    if against == "no copy":
        model.delete_adapter("ref")
    steps = batches(trainer, 2)
    trainer.train()
    right, prompt = dpo_by_hand(fresh, start if against == "start" else start[:0], steps)
    for found, expected in zip(logged(trainer), right, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(model.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)
    assert (prompt - start).abs().max() > 1e-3


def test_dpo_raises_what_is_chosen(pairs, tmp_path, tokenizer):
    """One step from the start: the margin of every pair's mean rises, and the reference stays where it was."""
    model = tiny_prompt_model("llama")
    start = model.prompt.detach().clone()
    trainer = dpo(tmp_path, tokenizer, model, pairs, per_device_train_batch_size=6, max_steps=1)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert after["eval_rewards/margins"] > 1e-4 and after["eval_loss"] < before["eval_loss"]
    assert torch.equal(model.prompt_encoder["ref"].embedding.weight, start)
    assert not torch.equal(model.prompt, start)
    assert model.active_adapter == "default"
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["prompt_encoder.default.embedding.weight"]


@pytest.mark.parametrize(
    "values",
    [
        {"precompute_ref_log_probs": True},
        {"gradient_checkpointing": False},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"pad_to_multiple_of": 16},
    ],
)
def test_dpo_is_the_same_however_it_is_computed(values, pairs, tmp_path, tokenizer):
    model = tiny_prompt_model("llama")
    start, trainer = model.prompt.detach().clone(), dpo(tmp_path, tokenizer, model, pairs, **values)
    steps = batches(trainer, 2)
    trainer.train()
    _, prompt = dpo_by_hand(tiny_prompt_model("llama"), start, steps)
    torch.testing.assert_close(model.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)


def test_a_prompt_that_needs_a_tokenizer_or_was_loaded_is_its_own_reference(pairs, tmp_path, tokenizer):
    """TRL asks for a prompt of the same config; nothing of it is made anew."""
    text = {"prompt_tuning_init_text": "Classify if the message is a complaint", "num_virtual_tokens": 5}
    model = get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(**text), tokenizer)
    start = model.prompt.detach().clone()
    trainer = dpo(tmp_path / "a", tokenizer, model, pairs)
    trainer.train()
    assert torch.equal(model.prompt_encoder["ref"].embedding.weight, start)
    trainer.save_model()
    loaded, _, _ = load_prompt(str(tmp_path / "a"), backbone=tiny_model("llama"), is_trainable=True)
    assert torch.equal(loaded.prompt, model.prompt) and [*loaded.peft_config] == ["default"]
    again = dpo(tmp_path / "b", tokenizer, loaded, pairs)
    right, prompt = dpo_by_hand(loaded, loaded.prompt.detach().clone(), batches(again, 2))
    again.train()
    assert losses(again) == pytest.approx([row[0] for row in right], rel=1e-4)
    torch.testing.assert_close(loaded.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_has_the_reference_of_its_start(pairs, tmp_path, tokenizer):
    values = {"save_strategy": "steps", "save_steps": 1}
    whole = dpo(tmp_path, tokenizer, tiny_prompt_model("llama"), pairs, **values)
    whole.train()
    other = tiny_prompt_model("llama", seed=3, backbone=tiny_model("llama"))
    again = dpo(tmp_path, tokenizer, other, pairs, **values)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(again.model.prompt, whole.model.prompt)
    assert losses(again)[-1] == losses(whole)[-1]


def test_what_would_be_another_reference_is_refused(pairs, tmp_path, tokenizer):
    model = tiny_prompt_model("llama")
    dpo(tmp_path, tokenizer, model, pairs)
    with pytest.raises(PromptTuningError, match="there is a prompt 'ref' already; give another name, or call"):
        dpo(tmp_path, tokenizer, model, pairs)
    model.delete_adapter("ref")
    dpo(tmp_path, tokenizer, model, pairs)
    several = with_prompts(tiny_prompt_model("llama"), other=3)
    several.set_adapter("other")
    with pytest.raises(PromptTuningError, match="the prompt 'other' is active, and TRL copies 'default' as"):
        dpo(tmp_path, tokenizer, several, pairs)
    assert [*several.peft_config] == ["default", "other"]


def kto(folder, tokenizer, model, data, reference=None, **values):
    values = {"per_device_train_batch_size": 4} | values
    return KTOTrainer(
        model=model,
        ref_model=reference,
        args=KTOConfig(output_dir=str(folder), **COMMON | values),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )


def completions(backbone, vectors, rows, name="completion_ids"):
    return torch.stack([log_prob(backbone, vectors, row["prompt_ids"], row[name]) for row in rows])


def kto_by_hand(model, reference, steps):
    """Equation 7 of the paper, whose point of zero is how far other rows' completions have gone from the reference."""
    backbone, vectors, logged = model.get_base_model(), model.prompt.detach().clone().requires_grad_(), []
    for rows in steps:
        wanted = torch.tensor([row["label"] for row in rows])
        with torch.no_grad():
            ref, ref_other = (completions(backbone, reference, rows, name) for name in ("completion_ids", KL))
            gone = (completions(backbone, vectors, rows, KL) - ref_other).mean().clamp(min=0)
        ratio = completions(backbone, vectors, rows) - ref
        loss = (1 - sigmoid(BETA * torch.where(wanted, ratio - gone, gone - ratio))).mean()
        (gradient,) = torch.autograd.grad(loss, vectors)
        logged.append(
            [loss.item(), gone.item(), BETA * ratio[wanted].mean().item(), BETA * ratio[~wanted].mean().item()]
        )
        vectors = (vectors - RATE * gradient).detach().requires_grad_()
    return logged, vectors.detach()


KL = "KL_completion_ids"


@pytest.mark.parametrize(
    ("name", "against"), [("llama", "start"), ("llama", "backbone"), ("llama", "precomputed"), ("gpt2", "start")]
)
def test_kto_is_the_paper_by_hand(name, against, judged, tmp_path, tokenizer):
    model = tiny_prompt_model(name)
    start, fresh = model.prompt.detach().clone(), tiny_prompt_model(name)
    reference = tiny_model(name) if against == "backbone" else None
    options = {"precompute_ref_log_probs": True} if against == "precomputed" else {}
    trainer = kto(tmp_path, tokenizer, model, judged, reference, **options)
    steps = batches(trainer, 4) * 2
    trainer.train()
    right, prompt = kto_by_hand(fresh, start[:0] if against == "backbone" else start, steps[:3])
    names = ("loss", "kl", "rewards/chosen", "rewards/rejected")
    found = [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]
    for row, expected in zip(found, right, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(model.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)
    assert (prompt - start).abs().max() > 1e-3


def test_kto_raises_what_is_wanted(judged, tmp_path, tokenizer):
    model = tiny_prompt_model("llama")
    trainer = kto(tmp_path, tokenizer, model, judged, per_device_train_batch_size=8, max_steps=1)
    rows = list(trainer.train_dataset)
    wanted = torch.tensor([row["label"] for row in rows])
    before = completions(model.get_base_model(), model.prompt, rows).detach()
    trainer.train()
    gone = completions(model.get_base_model(), model.prompt, rows).detach() - before
    assert gone[wanted].mean() > gone[~wanted].mean() + 1e-4


@pytest.mark.parametrize("train", [dpo, kto])
def test_a_prompt_of_another_name_is_refused_by_name(train, pairs, judged, tmp_path, tokenizer):
    config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
    model = get_prompt_tuning_model(tiny_model("llama"), config, adapter_name="mine")
    message = "this model has no prompt 'default'; its prompts are 'mine'. TRL's trainers copy 'default' as what they"
    with pytest.raises(PromptTuningError, match=message):
        train(tmp_path, tokenizer, model, pairs if train is dpo else judged)
    assert [*model.peft_config] == ["mine"] and model.peft_config.get("default") is None


@pytest.mark.parametrize("train", [dpo, kto])
def test_the_same_backbone_as_reference_is_refused_by_name(train, pairs, judged, tmp_path, tokenizer):
    model = tiny_prompt_model("llama")
    trainer = train(tmp_path, tokenizer, model, pairs if train is dpo else judged, model.get_base_model())
    with pytest.raises(PromptTuningError, match=r"the backbone is also the ref_model, .* load it a second time"):
        trainer.train()


@pytest.mark.parametrize("train", [dpo, kto])
def test_encoder_decoders_are_refused(train, pairs, judged, tmp_path, tokenizer):
    model = tiny_prompt_model("t5")
    start = model.prompt.detach().clone()
    trainer = train(tmp_path, tokenizer, model, pairs if train is dpo else judged)
    with pytest.raises(
        PromptTuningError, match="fused_lm_head is given, which leaves a prompt in the encoder no"
    ) as no:
        trainer.train()
    assert "TRL's trainers that give it are for causal models" in str(no.value)
    assert torch.equal(model.prompt, start)
